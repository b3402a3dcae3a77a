"""Gains of a mask: kept in its file, applied, and folded into `down_proj`."""

from collections.abc import Callable
import copy
import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy
import tokenizers
import torch
import transformers

from ppjax.base import errors
from ppjax.exporting import hf_export, pruned_source, verify
from ppjax.exporting import source as export_source
from ppjax.masking import pmask
from ppjax.models import base_model, loading

_KEEP = 20
_TOKENS = np.random.default_rng(2).integers(0, 97, (2, 20))


def _bits(num_layers: int, d_ff: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    order = np.argsort(rng.random((num_layers, d_ff)), axis=-1)
    return order < _KEEP


def _of(base: base_model.BaseModel, *, gains: bool = True) -> pmask.PersonaMask:
    layers = base.config.num_layers
    drawn = np.random.default_rng(4).normal(1, 0.5, (layers, _KEEP))
    return pmask.PersonaMask(
        _bits(layers, base.config.d_ff),
        base.name,
        base.fingerprint(),
        '0' * 64,
        'You are Bo.',
        gains=drawn.astype(np.float16) if gains else None,
    )


@pytest.fixture
def saved(tmp_path: pathlib.Path, tiny_models: Callable[[str], Any]) -> pathlib.Path:
    path = tmp_path / 'a.pmask'
    pmask.save(path, _of(tiny_models('llama').base))
    return path


def test_gains_come_back_from_their_file(
    saved: pathlib.Path, tiny_models: Callable[[str], Any]
) -> None:
    before, after = _of(tiny_models('llama').base), pmask.load(saved)
    assert before.gains is not None
    assert after.gains is not None
    assert after.gains.dtype == np.float16
    np.testing.assert_array_equal(after.gains, before.gains)
    np.testing.assert_array_equal(after.mask, before.mask)
    with safetensors.safe_open(saved, framework='np') as handle:
        assert handle.metadata()['format'] == 'ppjax.pmask.v2'
    pmask.save(saved, dataclasses.replace(before, gains=None))
    with safetensors.safe_open(saved, framework='np') as handle:
        assert handle.metadata()['format'] == 'ppjax.pmask.v1'
        assert list(handle.keys()) == ['mask']
    assert pmask.load(saved).gains is None


def _nan(gains: np.ndarray) -> np.ndarray:
    gains[0, 0] = np.nan
    return gains


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda gains: gains.astype(np.float32), r'float16 \(3, 20\), got float32'),
        (lambda gains: gains[:, :-1].copy(), r'got float16 \(3, 19\)'),
        (_nan, '1 of 60 gains are not finite'),
    ],
)
def test_damaged_gains_are_one_line(
    saved: pathlib.Path, damage: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    with safetensors.safe_open(saved, framework='np') as handle:
        metadata = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    tensors['gains'] = damage(tensors['gains'])
    safetensors_numpy.save_file(tensors, saved, metadata=metadata)
    with pytest.raises(errors.InputError, match=message) as caught:
        pmask.load(saved)
    assert str(saved) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_masks_of_blocks_have_none() -> None:
    with pytest.raises(ValueError, match='blocks has no gains'):
        pmask.PersonaMask(
            np.ones((1, 3), bool),
            'm',
            'f',
            'p',
            granularity=pmask.BLOCKS,
            gains=np.ones((1, 3), np.float16),
        )


def test_folded_equals_applied_here_and_in_transformers(any_tiny: Any) -> None:
    mask = _of(any_tiny.base)
    assert mask.gains is not None
    channels = np.asarray(mask.decoder_masks().channels)
    want = any_tiny.logits(_TOKENS, channels=channels)
    plain = any_tiny.logits(_TOKENS, channels=mask.mask)
    assert np.abs(want - plain).max() > 0.1

    model = mask.pruned(any_tiny.base)
    for int8 in (False, True):
        decoder = loading.load_decoder(
            model.reader, model.config, dtype=jnp.float32, int8_matrices=int8
        )
        small = dataclasses.replace(any_tiny, base=model, decoder=decoder)
        tolerance = 1.0 if int8 else 1e-5
        np.testing.assert_allclose(small.logits(_TOKENS), want, atol=tolerance, rtol=0)

    # An own folding, by transformers' model.
    pruned = any_tiny.pruned_hf(mask.mask)
    with torch.no_grad():
        for layer, gains in zip(pruned.model.layers, mask.gains, strict=True):
            layer.mlp.down_proj.weight *= torch.tensor(gains.astype(np.float32))
        got = pruned(torch.tensor(_TOKENS)).logits.numpy()
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_an_export_is_verified_and_differs_in_name(
    tiny_models: Callable[[str], Any], tmp_path: pathlib.Path, dtype: str
) -> None:
    base = tiny_models('qwen2').base
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={'a': 0}, merges=[]))
    sources = [
        export_source.ExportSource(base, _of(base, gains=gains), ())
        for gains in (True, False)
    ]
    hf_export.export_model(
        sources[0].pruned,
        tmp_path / 'hf',
        dtype=dtype,
        tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=backend),
        model_card='',
        system_prompt='',
    )
    want, without = (
        verify.masked_logits(
            base, source.persona_mask.decoder_masks(), _TOKENS, dtype=dtype
        )
        for source in sources
    )
    assert np.abs(want - without).max() > 0.1
    for loader in verify._LOADERS.values():
        got = loader(str(tmp_path / 'hf'), _TOKENS)
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)

    one, other = (source.identity(dtype)['mask_sha256'] for source in sources)
    assert one != other
    one, other = (
        pruned_source.PrunedSource(base, base, source.persona_mask, '').hashes
        for source in sources
    )
    assert one != other
    card, plain = (
        export_source.facts(source, dtype, '', has_template=False) for source in sources
    )
    assert (card.gains, plain.gains) == (True, False)


def test_what_gains_are_folded_into_is_exported_as_it_was_stored(
    tiny_models: Callable[[str], Any], tmp_path: pathlib.Path
) -> None:
    half = copy.deepcopy(tiny_models('llama').hf).to(torch.bfloat16)
    half.save_pretrained(tmp_path / 'base')
    base = base_model.open_base_model(str(tmp_path / 'base'))
    pmask.save(tmp_path / 'a.pmask', _of(base))
    found = pruned_source.open_source(
        base_model_name=str(tmp_path / 'base'), mask=str(tmp_path / 'a.pmask')
    )
    name = 'model.layers.0.mlp.down_proj.weight'
    assert found.model.reader.dtype(name) == np.float32
    assert found.stored_dtype == 'bfloat16'
