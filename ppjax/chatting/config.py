"""The settings of `python -m ppjax.chat`."""

import dataclasses

from ppjax.base import errors, flags, ranges, settings
from ppjax.models import generation
from ppjax.personas import macros


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Flags of `python -m ppjax.chat`."""

    model: str | None = flags.setting(
        None, 'Directory of an exported, or any other Hugging Face, model.', path=True
    )
    base_model: str | None = flags.setting(
        None,
        'Model to talk to as it is, or to apply --mask to: a directory, a .gguf file, '
        'a Hugging Face Hub id, or smollm2-135m. By default the one --mask names.',
        path=True,
    )
    mask: str | None = flags.setting(
        None, 'Persona mask file (.pmask) to apply to the base model.', path=True
    )
    mask_sparsity: float | None = settings.mask_sparsity_setting()
    persona: str | None = flags.setting(
        None,
        'Persona: a text, a text file, or a character card; by default the one that '
        'the mask or the exported model was made for.',
    )
    system_prompt: str | None = flags.setting(
        None,
        'Instead of --persona: the system message as it is, or empty for none, as of a '
        'model that learned with --prompt_dropout.',
        may_be_empty=True,
    )
    user_name: str = flags.setting(
        macros.DEFAULT_USER_NAME, 'What {{user}} in a character card stands for.'
    )
    prompt: str | None = flags.setting(
        None, 'Answer this one message and exit, instead of a conversation.'
    )
    temperature: float = flags.setting(
        0.0,
        'Randomness of answers; 0 always takes the likeliest token.',
        within='[0, 100]',
    )
    top_p: float = flags.setting(
        1.0,
        'Draw from the likeliest tokens that together have this probability.',
        within='(0, 1]',
    )
    top_k: int | None = flags.setting(
        None, 'Draw from this many likeliest tokens; by default from all.'
    )
    max_new_tokens: int = flags.setting(256, 'Longest answer, in tokens.', least=1)
    seed: int = flags.setting(0, 'Fixes what is drawn at a --temperature above 0.')
    dtype: str = settings.dtype_setting()
    int8_base: bool = flags.setting(
        False, "Keep the model's matrices in 8 bits: less memory, and faster on a CPU."
    )
    date: str | None = flags.setting(
        None,
        'The date that chat templates which print one are told; by default that of '
        f'the run which --mask or --model lies in, elsewhere {settings.DATE}.',
    )
    stats: bool = flags.setting(
        False, 'Print prefill seconds and tokens per second after every answer.'
    )

    def __post_init__(self) -> None:
        if not (self.model or self.base_model or self.mask):
            raise errors.InputError(
                'One of --model, --mask and --base_model must be given.'
            )
        for name in ('base_model', 'mask'):
            if self.model and getattr(self, name):
                raise errors.InputError(
                    f'--model and --{name} exclude each other: an exported model has '
                    'its mask applied already.'
                )
        if self.mask_sparsity is not None and not self.mask:
            raise errors.InputError('--mask_sparsity needs --mask.')
        if self.persona and self.system_prompt is not None:
            raise errors.InputError(
                '--persona and --system_prompt both say who is spoken to; give one.'
            )
        ranges.check(self)
        _ = self.sampling  # Checks its flags.

    @property
    def sampling(self) -> generation.Sampling:
        """--temperature, --top_p and --top_k."""
        return generation.Sampling(self.temperature, self.top_p, self.top_k)
