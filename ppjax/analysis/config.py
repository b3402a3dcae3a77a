"""The settings of `python -m ppjax.masks`."""

import dataclasses
import pathlib

from ppjax.base import errors, flags, ranges, settings
from ppjax.chat_api import addresses

INFO = 'info'
OPERATIONS = ('and', 'or', 'xor', 'diff')
EMBEDDINGS = ('none', 'base', 'local', 'openai')
# What only the comparison of masks reads.
_OF_COMPARISON = ('output_dir', 'labels')


@dataclasses.dataclass(frozen=True)
class MasksConfig:
    """Which masks, and what is wanted of them."""

    masks: str = flags.setting(
        None,
        'Masks of one base model, with commas between them: .pmask files, run '
        'directories, folders of several of either (a sweep, a run of several '
        "personas), or globs. Masks of one persona's prompt are its repetitions.",
        path=True,
    )
    operation: str | None = flags.setting(
        None,
        'Instead of a comparison: info prints what the files say; and, or and xor '
        'combine two masks or more into --output, diff keeps what the first of two has '
        'and the second lacks.',
        choices=(INFO, *OPERATIONS),
    )
    output: str | None = flags.setting(
        None, 'The .pmask file that --operation writes.', writes=True
    )
    output_dir: str | None = flags.setting(
        None,
        'Folder for the comparison: masks.html, masks.md, masks.csv, masks.json.',
        path=True,
    )
    labels: str | None = flags.setting(
        None,
        'Names of the personas, with commas between them, in the order in which '
        '--masks names them; by default those of their files or folders.',
    )
    mask_sparsity: float | None = settings.mask_sparsity_setting()
    embeddings: str = flags.setting(
        'none',
        "What the masks' similarity is compared with: cosines between embeddings of "
        "the personas' texts. base: the base model's last hidden states, their mean "
        'over the text; local: those of --embedding_model; openai: what a server at '
        '--embedding_url sends from /v1/embeddings.',
        choices=EMBEDDINGS,
    )
    embedding_model: str | None = flags.setting(
        None,
        'Name of the embedding model on the server; for --embeddings=local a model as '
        '--base_model takes it.',
    )
    embedding_url: str | None = flags.setting(
        None,
        'Address of the embedding server, as in http://localhost:8000/v1. The key is '
        'read from OPENAI_API_KEY, if that is set.',
    )
    base_model: str | None = flags.setting(
        None,
        'For --embeddings=base: the base model of the masks; by default what they '
        'name, if it is on this machine.',
        path=True,
    )
    dtype: str = settings.dtype_setting()
    seed: int = flags.setting(0, 'Fixes what is drawn for intervals and p values.')
    overwrite: bool = flags.setting(
        False,
        'Discard what --output_dir holds of another comparison, or replace --output.',
    )

    def __post_init__(self) -> None:
        settings.require_given(self, 'masks')
        ranges.check(self)
        if self.operation is None:
            settings.require_given(self, 'output_dir')
            if self.output:
                raise errors.InputError(
                    '--output is for --operation; a comparison writes to --output_dir.'
                )
        else:
            self._check_operation()
        self._check_embeddings()

    def _check_operation(self) -> None:
        for name in _OF_COMPARISON:
            if getattr(self, name):
                raise errors.InputError(
                    f'--{name} is of a comparison, and --operation={self.operation} '
                    'makes none.'
                )
        if self.embeddings != 'none':
            raise errors.InputError(
                f'--embeddings={self.embeddings} is for a comparison, and '
                f'--operation={self.operation} makes none.'
            )
        if self.operation == INFO:
            if self.output:
                raise errors.InputError('--operation=info writes no --output.')
            return
        settings.require_given(self, 'output')
        assert self.output is not None
        path = pathlib.Path(self.output)
        if path.suffix != '.pmask':
            raise errors.InputError(
                f'--output must end in .pmask, got {self.output!r}.'
            )
        if path.exists() and not self.overwrite:
            raise errors.InputError(
                f'--output={self.output} is there already; give --overwrite to replace '
                'it.'
            )

    def _check_embeddings(self) -> None:
        kind = self.embeddings
        for name, kinds in (
            ('embedding_model', ('local', 'openai')),
            ('embedding_url', ('openai',)),
        ):
            if kind in kinds and not getattr(self, name):
                raise errors.InputError(f'--embeddings={kind} needs --{name}.')
            if kind not in kinds and getattr(self, name):
                raise errors.InputError(
                    f'--{name} is for --embeddings={" or ".join(kinds)}.'
                )
        if self.base_model and kind != 'base':
            raise errors.InputError('--base_model is for --embeddings=base.')
        if self.embedding_url:
            addresses.checked(self.embedding_url, '--embedding_url')


# What may differ between two calls on one folder without making another comparison.
RESUMABLE = frozenset({'output_dir', 'overwrite'})
