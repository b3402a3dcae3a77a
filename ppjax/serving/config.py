"""The settings of `python -m ppjax.serve`."""

import dataclasses
import ipaddress
import pathlib
import re
from typing import Literal

from ppjax.base import errors, flags, ranges, settings
from ppjax.personas import macros

CLIENT_SYSTEM = ('replace', 'follow')
_MAX_TOKENS = 512
_ORIGIN = re.compile(
    r'https?://[A-Za-z0-9.\-_]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?'
)


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Who is served, on which model, and to whom."""

    base_model: str | None = flags.setting(
        None,
        'Model that all personas are masks of: a directory, a .gguf file, a Hugging '
        'Face Hub id, or smollm2-135m.',
        path=True,
    )
    personas: str | None = flags.setting(
        None,
        'Folder of mask files (.pmask) and of character cards that carry a mask; each '
        'is a model id. Files that come and go are noticed while it is served.',
        path=True,
    )
    demo: bool = flags.setting(
        False,
        "Serve the quickstart's personas; instead of --base_model and --personas.",
    )
    host: str = flags.setting(
        '127.0.0.1',
        'Address that is served on: of this machine alone, or 0.0.0.0, which everyone '
        'who reaches the machine can use; then PPJAX_API_KEY must be set in the '
        'environment.',
    )
    port: int = flags.setting(8080, 'Port; 0 takes a free one.', within='[0, 65535]')
    slots: int = flags.setting(
        8, 'Answers that are under way at a time; others wait.', within='[1, 1024]'
    )
    max_context: int = flags.setting(
        4096,
        "Most tokens of prompt and answer together; at most the model's positions.",
        least=2,
    )
    queue: int = flags.setting(
        64, 'Answers that may wait; more are refused with status 429.'
    )
    max_tokens: int | None = flags.setting(
        None,
        'Longest answer in a chat, in tokens, where a client does not say; by default '
        '512, or half of --max_context where that is less.',
        least=1,
    )
    client_system: str = flags.setting(
        'replace',
        "A system message that a client sends stands in the persona's own place, or "
        'follows it.',
        choices=CLIENT_SYSTEM,
    )
    user_name: str = flags.setting(
        macros.DEFAULT_USER_NAME, 'What {{user}} in a character card stands for.'
    )
    pin: str | None = flags.setting(
        None,
        'Personas, with commas between them, that get weights of their own without '
        'what their mask removes: faster, for more memory.',
    )
    dtype: str = settings.dtype_setting()
    int8_base: bool = flags.setting(
        False, "Keep the base model's matrices in 8 bits: about half the memory of 16."
    )
    mesh: str | None = flags.setting(None, settings.MESH_HELP)
    cache_mib: int = flags.setting(
        1024, 'Most memory for known starts of prompts, in MiB; 0 keeps none.'
    )
    date: str = flags.setting(
        settings.DATE, 'The date that chat templates which print one are told.'
    )
    allow_origin: str | None = flags.setting(
        None,
        'Other web pages that may use the server from a browser: origins, as in '
        'http://localhost:3000, with commas between them; * for all, with a key.',
    )
    max_body_kib: int = flags.setting(
        1024, 'Longest request, in KiB; a longer one is refused.', least=1
    )
    max_messages: int = flags.setting(1024, 'Most messages of a request.', least=1)
    max_choices: int = flags.setting(
        16, 'Most answers to one request: its prompts times its n.', least=1
    )
    drain_seconds: float = flags.setting(
        30.0,
        'When it is told to end, for how long answers under way may go on.',
        within='[0, 86400]',
    )
    log_texts: bool = flags.setting(
        False, 'Write prompts and answers to the log; by default none is.'
    )

    def __post_init__(self) -> None:
        if self.demo and (self.base_model or self.personas):
            raise errors.InputError(
                '--demo brings its own model and personas; leave out --base_model and '
                '--personas, or --demo.'
            )
        if not self.demo:
            settings.require_given(self, 'base_model', 'personas')
        if self.personas and not pathlib.Path(self.personas).is_dir():
            raise errors.InputError(
                f'--personas={self.personas} is no folder; wanted one of .pmask files '
                'and character cards.'
            )
        ranges.check(self)
        if self.longest >= self.max_context:
            raise errors.InputError(
                f'--max_tokens={self.max_tokens} leaves no room for a prompt in '
                f'--max_context={self.max_context}.'
            )
        if self.pinned and self.mesh:
            raise errors.InputError(
                '--pin keeps weights on one device, and --mesh spreads them out; give '
                'one of the two.'
            )
        _ = self.origins  # Checks its flag.

    @property
    def longest(self) -> int:
        """--max_tokens."""
        return self.max_tokens or min(_MAX_TOKENS, self.max_context // 2)

    @property
    def system(self) -> Literal['replace', 'follow']:
        """--client_system."""
        return 'follow' if self.client_system == 'follow' else 'replace'

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)

    @property
    def origins(self) -> frozenset[str]:
        """--allow_origin."""
        found = _listed(self.allow_origin)
        for origin in found:
            if origin != '*' and not _ORIGIN.fullmatch(origin):
                raise errors.InputError(
                    f'--allow_origin: {origin!r} is no origin; wanted one as in '
                    'http://localhost:3000, without a path.'
                )
        return frozenset(found)

    @property
    def pinned(self) -> tuple[str, ...]:
        """--pin."""
        found = _listed(self.pin)
        if len(set(found)) < len(found):
            raise errors.InputError(f'--pin={self.pin} names a persona twice.')
        return found


def _listed(text: str | None) -> tuple[str, ...]:
    parts = (part.strip() for part in (text or '').split(','))
    return tuple(part for part in parts if part)


def is_loopback(host: str) -> bool:
    """Whether a host, as in an address without its port, is this machine alone."""
    if host.lower().rstrip('.') == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return False
