"""Gain files: what they hold comes back, belongs to one model, and is checked."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

from ppjax.base import errors
from ppjax.masking import gain_files
from ppjax.models import base_model
from ppjax.models import masks as masks_lib


def _of(base: base_model.BaseModel) -> gain_files.PersonaGains:
    rng = np.random.default_rng(4)
    drawn = {
        name: rng.normal(1, 0.5, shape).astype(np.float32)
        for name, shape in masks_lib.shapes(base.config).items()
        if name in ('channels', 'attn_norm', 'final_norm')
    }
    return gain_files.PersonaGains(
        masks_lib.Masks(**drawn), base.name, base.fingerprint(), 'You are Bö.'
    )


@pytest.fixture
def saved(tmp_path: pathlib.Path, tiny_models: Callable[[str], Any]) -> pathlib.Path:
    gain_files.save(tmp_path / 'a.safetensors', _of(tiny_models('llama').base))
    return tmp_path / 'a.safetensors'


def test_all_comes_back_from_the_file(
    saved: pathlib.Path, tiny_models: Callable[[str], Any], tmp_path: pathlib.Path
) -> None:
    base = tiny_models('llama').base
    before, after = _of(base), gain_files.load_for(saved, base)
    assert dataclasses.replace(after, masks=before.masks) == before
    assert after.masks.given().keys() == before.masks.given().keys()
    assert after.masks.digest() == before.masks.digest()
    for name, value in after.masks.given().items():
        np.testing.assert_array_equal(value, before.masks.given()[name])
        assert value.dtype == np.float32
    name = 'model.norm.weight'
    np.testing.assert_array_equal(
        after.folded(base).reader.read(name),
        base.reader.read(name) * before.masks.final_norm,
    )
    gain_files.save(tmp_path / 'b.safetensors', after)
    assert (tmp_path / 'b.safetensors').read_bytes() == saved.read_bytes()


def test_gains_of_another_model_are_refused(
    saved: pathlib.Path, tiny_models: Callable[[str], Any]
) -> None:
    with pytest.raises(errors.InputError, match=r'learned on .* other weights'):
        gain_files.load_for(saved, tiny_models('llama-tied').base)
    base = tiny_models('llama').base
    smaller = dataclasses.replace(
        base, config=dataclasses.replace(base.config, d_ff=20)
    )
    with pytest.raises(
        errors.InputError, match=r'channels are \(3, 52\), .* \(3, 20\)'
    ):
        gain_files.load_for(saved, smaller)


def _with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: tensors | changes


_NAN = np.full((3, 24), np.nan, np.float32)


@pytest.mark.parametrize(
    ('damage', 'metadata', 'message'),
    [
        (_with(attn_norm=_NAN), {}, '72 of 72 attn_norm are not finite'),
        (_with(channels=np.ones((3, 52))), {}, 'channels must be float32, got float64'),
        (_with(blocks=np.ones(3, np.float32)), {}, 'holds blocks; gains are of chan'),
        (lambda tensors: {}, {}, 'there are no gains'),
        (_with(), {'format': 'ppjax.pmask.v1'}, "format 'ppjax.pmask.v1', wanted"),
        (_with(), {'base_fingerprint': None}, 'lacks metadata base_fingerprint'),
    ],
)
def test_damage_is_one_line(
    saved: pathlib.Path,
    damage: Callable[[dict[str, Any]], dict[str, Any]],
    metadata: dict[str, Any],
    message: str,
) -> None:
    with safetensors.safe_open(saved, framework='np') as handle:
        found = handle.metadata() | metadata
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    kept = {key: value for key, value in found.items() if value is not None}
    safetensors_numpy.save_file(damage(tensors), saved, metadata=kept)
    with pytest.raises(errors.InputError, match=message) as caught:
        gain_files.load(saved)
    assert str(saved) in str(caught.value) and '\n' not in str(caught.value)


def test_what_is_no_file_of_tensors_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.InputError, match='Gain file'):
        gain_files.load(tmp_path / 'absent')
    (tmp_path / 'text').write_text('gains')
    with pytest.raises(errors.InputError, match='no readable gain file'):
        gain_files.load(tmp_path / 'text')
