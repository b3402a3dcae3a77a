"""Gain files: what multiplies a small model's channels, attention outputs and norms.

Of 100 to 1,000 KB, so that many personas can share one small model and differ by such
a file; float32, so that the model of a file is exactly the one that it was folded into.
"""

import dataclasses
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

import ppjax
from ppjax.base import atomic, errors, tensor_files
from ppjax.masking import pmask
from ppjax.models import base_model as base_lib
from ppjax.models import folded
from ppjax.models import masks as masks_lib

FORMAT = 'ppjax.gains.v1'
_NAMES = tuple(name for name in masks_lib.Masks._fields if name != 'blocks')
_REQUIRED = ('base_model', 'base_fingerprint', 'system_prompt', 'tool_version')


@dataclasses.dataclass(frozen=True)
class PersonaGains:
    """One persona's gains of one model, which may be pruned.

    Attributes:
        masks: float32, on the host, for all rows together; no `blocks`.
        base_model: what the user called the model; for people, not checked.
        base_fingerprint: `loading.fingerprint` of the model; checked.
        system_prompt: the persona prompt that they were learned under; may be empty.
    """

    masks: masks_lib.Masks
    base_model: str
    base_fingerprint: str
    system_prompt: str = ''

    def __post_init__(self) -> None:
        given = self.masks.given()
        if not given:
            raise ValueError('there are no gains.')
        for name, value in given.items():
            if name not in _NAMES:
                raise ValueError(f'{name} are no gains.')
            if value.dtype != np.float32:
                raise ValueError(f'{name} must be float32, got {value.dtype}.')
            if bad := int((~np.isfinite(value)).sum()):
                raise ValueError(f'{bad} of {value.size} {name} are not finite.')

    def check_base(self, base: base_lib.BaseModel) -> None:
        """Refuses a model that the gains were not learned on.

        Raises:
            InputError: if shapes or fingerprints differ.
        """
        wanted = masks_lib.shapes(base.config)
        for name, value in self.masks.given().items():
            if value.shape != wanted[name]:
                raise errors.InputError(
                    f'These gains are for {self.base_model}: its {name} are '
                    f'{value.shape}, those of the model given {wanted[name]}.'
                )
        if self.base_fingerprint != (found := base.fingerprint()):
            raise errors.InputError(
                f'These gains were learned on {self.base_model} with fingerprint '
                f'{self.base_fingerprint[:12]}; the model given has {found[:12]}: '
                'other weights, or another precision.'
            )

    def folded(self, base: base_lib.BaseModel) -> base_lib.BaseModel:
        """Their model with them folded in; nothing is read yet."""
        return folded.folded_model(base, self.masks)


def save(path: str | pathlib.Path, gains: PersonaGains) -> None:
    """Writes a gain file atomically.

    Raises:
        DiskError: if it cannot.
    """
    metadata = {
        'format': FORMAT,
        'base_model': gains.base_model,
        'base_fingerprint': gains.base_fingerprint,
        'system_prompt': gains.system_prompt,
        'tool_version': ppjax.__version__,
    }
    tensors = {
        name: np.ascontiguousarray(value) for name, value in gains.masks.given().items()
    }
    content = pmask.in_order(safetensors_numpy.save(tensors, metadata=metadata))
    with atomic.file(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | pathlib.Path) -> PersonaGains:
    """Reads a gain file.

    Raises:
        InputError: if the file is absent, damaged or of another format.
    """
    metadata, tensors = tensor_files.read(
        path, what='gain file', wanted=FORMAT, keys=_REQUIRED
    )
    if unknown := sorted(tensors.keys() - set(_NAMES)):
        raise errors.InputError(
            f'{path} holds {", ".join(unknown)}; gains are of {", ".join(_NAMES)}.'
        )
    try:
        return PersonaGains(
            masks_lib.Masks(**tensors),
            metadata['base_model'],
            metadata['base_fingerprint'],
            metadata['system_prompt'],
        )
    except ValueError as error:
        raise errors.InputError(f'{path} is damaged: {error}') from None


def load_for(path: str | pathlib.Path, base: base_lib.BaseModel) -> PersonaGains:
    """Reads a gain file that must be of a model.

    Raises:
        InputError: see `load` and `PersonaGains.check_base`.
    """
    found = load(path)
    found.check_base(base)
    return found
