"""Blocks one by one compute what stacked ones do, and share their memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.models import attention, shared_prefix, unstacked
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib


@jax.jit
def _run(model, tokens, positions, masks, adapters):
    model = unstacked.module(model)
    attend = attention.causal(*tokens.shape)
    hidden, _, taps = model(
        tokens,
        positions,
        masks,
        attend,
        tap=lambda x, y, h: (y[:, -1], h.sum()),
        adapters=adapters,
    )
    return model.unembed(hidden), taps


@pytest.mark.parametrize('name', ['llama-biased', 'qwen3-tied'])
def test_equal_with_masks_taps_and_adapters(tiny_models, name):
    tiny = tiny_models(name)
    cfg = tiny.config
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 97, (2, 17)).astype(np.int32)
    positions = np.broadcast_to(np.arange(17), tokens.shape)
    masks = masks_lib.Masks(
        channels=rng.random((cfg.num_layers, 2, cfg.d_ff)).astype(np.float32),
        blocks=np.array([1.0, 0.5, 0.0], np.float32),
    )
    adapters = {
        'w_up': (
            rng.normal(size=(cfg.num_layers, cfg.d_model, 2)).astype(np.float32),
            rng.normal(size=(cfg.num_layers, 2, cfg.d_ff)).astype(np.float32),
        )
    }
    apart = unstacked.unstacked(tiny.decoder)
    for more in (None, adapters):
        want, found = (
            _run(model, tokens, positions, masks, more)
            for model in (tiny.decoder, apart)
        )
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
            found,
            want,
        )


def test_equal_with_a_cache(tiny_models):
    cfg = dataclasses.replace(tiny_models('llama').config, vocab_size=64)
    stacked = decoder_lib.Decoder(cfg, dtype=jnp.float32, key=jax.random.key(1))

    @jax.jit
    def step(model, tokens, at):
        model = unstacked.module(model)
        cache = shared_prefix.empty_cache(model, 2, 8)
        found = model(tokens, at, masks_lib.DENSE, attention.Cached(at), cache=cache)
        return found[:2]

    tokens = np.array([[4], [9]], np.int32)
    at = np.array([[0], [3]], np.int32)
    want, found = (
        step(model, tokens, at) for model in (stacked, unstacked.unstacked(stacked))
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, want
    )


def test_a_flat_one_is_its_arrays(tiny_models):
    flat = unstacked.unstacked(tiny_models('llama').decoder)
    leaves, structure = jax.tree.flatten(flat)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again.module()) == jax.tree.structure(flat.module())
    assert jax.tree.structure(again) == structure


def test_where_it_is_worth_it(tiny_models):
    tiny = tiny_models('llama')
    assert unstacked.is_worth_it(tiny.decoder)
    cfg = tiny.config
    int8 = decoder_lib.Decoder(
        cfg, dtype=jnp.float32, key=jax.random.key(1), int8_matrices=True
    )
    assert not unstacked.is_worth_it(int8)
    assert unstacked.is_on_one_cpu(int8)


def test_no_second_copy_on_a_cpu():
    stacked = jnp.arange(4 * 64 * 64, dtype=jnp.float32).reshape(4, 64, 64)
    parts = unstacked._apart(stacked)
    starts = [part.unsafe_buffer_pointer() for part in parts]
    assert starts == [
        stacked.unsafe_buffer_pointer() + 4 * 64 * 64 * n for n in range(4)
    ]
    del stacked
    np.testing.assert_array_equal(parts[3][0, :3], [3 * 4096 + n for n in range(3)])
