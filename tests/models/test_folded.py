"""Gains applied, one for all rows or one a row, and gains folded into weights."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppjax.models import config as config_lib
from ppjax.models import folded, loading
from ppjax.models import masks as masks_lib

_TOKENS = np.random.default_rng(2).integers(3, 97, (2, 20))
_NAMES = ('channels', 'attention', 'attn_norm', 'ffn_norm', 'final_norm')


def _gains(cfg: config_lib.ModelConfig, *names: str, seed: int = 0) -> masks_lib.Masks:
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.normal(1, 0.3, shape).astype(np.float32)
        for name, shape in masks_lib.shapes(cfg).items()
        if name in (names or _NAMES)
    }
    return masks_lib.Masks(**drawn)


def test_folded_equals_applied_here_and_in_transformers(any_tiny: Any) -> None:
    gains = _gains(any_tiny.config)
    want = any_tiny.logits(_TOKENS, masks=gains)

    model = folded.folded_model(any_tiny.base, gains)
    decoder = loading.load_decoder(model.reader, model.config, dtype=jnp.float32)
    got = dataclasses.replace(any_tiny, base=model, decoder=decoder).logits(_TOKENS)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)

    # Their model does not multiply weights: it multiplies what goes through.
    def times(values: np.ndarray, *, after: bool) -> Any:
        own = torch.tensor(values)
        if after:
            return lambda module, given, found: found * own
        return lambda module, given: (given[0] * own,)

    hf, hooks = any_tiny.hf, []
    for number, layer in enumerate(hf.model.layers):
        for module, name in (
            (layer.mlp.down_proj, 'channels'),
            (layer.self_attn.o_proj, 'attention'),
        ):
            change = times(getattr(gains, name)[number], after=False)
            hooks.append(module.register_forward_pre_hook(change))
        for module, name in (
            (layer.input_layernorm, 'attn_norm'),
            (layer.post_attention_layernorm, 'ffn_norm'),
        ):
            change = times(getattr(gains, name)[number], after=True)
            hooks.append(module.register_forward_hook(change))
    change = times(gains.final_norm, after=True)
    hooks.append(hf.model.norm.register_forward_hook(change))
    theirs = any_tiny.hf_logits(_TOKENS)
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(theirs, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', _NAMES)
def test_each_kind_does_something(tiny_models: Callable[[str], Any], name: str) -> None:
    tiny = tiny_models('qwen2')
    gains = _gains(tiny.config, name)
    want = tiny.logits(_TOKENS, masks=gains)
    assert np.abs(want - tiny.logits(_TOKENS)).max() > 0.1
    model = folded.folded_model(tiny.base, gains)
    changed = {
        tensor
        for tensor in model.reader.names()
        if not np.array_equal(model.reader.read(tensor), tiny.base.reader.read(tensor))
    }
    assert len(changed) == (1 if name == 'final_norm' else 3)
    assert not any(tensor.endswith('bias') for tensor in changed)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_ones_change_no_bit(tiny_models: Callable[[str], Any], dtype: str) -> None:
    tiny = tiny_models('qwen3')
    decoder = jax.tree.map(lambda x: x.astype(dtype), tiny.decoder)
    tiny = dataclasses.replace(tiny, decoder=decoder)
    ones = jax.tree.map(np.ones_like, _gains(tiny.config))
    np.testing.assert_array_equal(
        tiny.logits(_TOKENS, masks=ones), tiny.logits(_TOKENS)
    )


def test_rows_have_gains_of_their_own(tiny_models: Callable[[str], Any]) -> None:
    tiny = tiny_models('qwen3-biased')
    each = [_gains(tiny.config, seed=seed) for seed in (1, 2)]
    both = masks_lib.Masks(
        **{
            name: np.stack([getattr(own, name) for own in each], axis=-2)
            for name in _NAMES
        }
    )
    assert both.final_norm is not None and both.final_norm.shape == (2, 24)
    got = tiny.logits(_TOKENS, masks=both)
    for row, own in enumerate(each):
        want = tiny.logits(_TOKENS[row : row + 1], masks=own)[0]
        np.testing.assert_allclose(got[row], want, atol=1e-5, rtol=0)


def test_pieces_are_parts_of_the_whole(tiny_models: Callable[[str], Any]) -> None:
    base = tiny_models('llama-tied').base
    reader = folded.folded_model(base, _gains(base.config)).reader
    for name in (
        'model.layers.1.mlp.down_proj.weight',
        'model.layers.2.input_layernorm.weight',
        'model.norm.weight',
    ):
        whole = reader.read(name)
        pieces = [reader.read(name, slice(i, i + 5)) for i in range(0, 24, 5)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        assert (reader.shape(name), reader.dtype(name)) == (whole.shape, np.float32)


def test_blocks_and_other_shapes_are_not_folded(
    tiny_models: Callable[[str], Any],
) -> None:
    base = tiny_models('llama').base
    with pytest.raises(ValueError, match='whole blocks'):
        folded.folded_model(base, masks_lib.Masks(blocks=np.ones(3)))
    with pytest.raises(AssertionError, match=r'\(3, 24\)'):
        folded.folded_model(base, masks_lib.Masks(attention=np.ones((3, 24))))
