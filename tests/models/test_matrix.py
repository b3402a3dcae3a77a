"""Matrices as int8: rounding, loading, and what the decoder makes of them."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.models import attention, loading, weights
from ppjax.models import masks as masks_lib
from ppjax.models import matrix as matrix_lib
from ppjax.parallel import sharding

_MATRICES = ('w_q', 'w_k', 'w_v', 'w_o', 'w_gate', 'w_up', 'w_down')


@pytest.fixture(scope='module', params=['llama', 'qwen2'])
def models(request, tiny_models):
    """(as float32, rounded to int8)."""
    tiny = tiny_models(request.param)
    rounded = loading.load_decoder(
        tiny.base.reader, tiny.base.config, dtype=jnp.float32, int8_matrices=True
    )
    return tiny, rounded


def test_a_column_is_off_by_half_a_scale_at_most():
    w = jax.random.normal(jax.random.key(0), (2, 30, 7))
    q, scale = matrix_lib.quantise(w)
    assert (q.dtype, q.shape, scale.shape) == (jnp.int8, (2, 30, 7), (2, 7))
    np.testing.assert_array_equal(np.abs(q).max(axis=1), 127)
    whole = matrix_lib.Matrix(w, dtype=jnp.float32, int8=True).dense()
    error = np.abs(whole - w)
    assert (error <= scale[:, None] * 0.5001).all()


def test_a_column_of_zeros_stays_zero():
    zeros = matrix_lib.Matrix(jnp.zeros((4, 2)), dtype=jnp.float32, int8=True)
    np.testing.assert_array_equal(zeros.dense(), 0)


def test_rows_of_files_are_rounded_alike():
    w = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    rows, of_rows = matrix_lib.quantise_rows(w)
    columns, of_columns = matrix_lib.quantise(jnp.asarray(w.T))
    np.testing.assert_array_equal(rows.T, columns)
    np.testing.assert_allclose(of_rows, of_columns, rtol=1e-6)


def test_only_the_blocks_matrices_are_rounded(models):
    tiny, rounded = models
    for name in _MATRICES:
        matrix = getattr(rounded.blocks, name)
        assert matrix.values[...].dtype == jnp.int8
        got, exact = matrix.dense(), getattr(tiny.decoder.blocks, name).dense()
        largest = np.abs(exact).max(axis=-2, keepdims=True)
        assert (np.abs(got - exact) <= largest / 127 * 0.5001).all()
    np.testing.assert_array_equal(rounded.embedding[...], tiny.decoder.embedding[...])
    np.testing.assert_array_equal(
        rounded.blocks.attn_norm[...], tiny.decoder.blocks.attn_norm[...]
    )


def test_weights_and_back_keeps_the_scales(models):
    tiny, rounded = models
    found = weights.weights_of(rounded)
    assert set(found['scales']) == set(_MATRICES)
    assert set(found['blocks']) == set(weights.weights_of(tiny.decoder)['blocks'])
    again = weights.decoder_of(tiny.base.config, found)
    assert jax.tree.structure(again) == jax.tree.structure(rounded)
    assert all(map(operator.is_, jax.tree.leaves(again), jax.tree.leaves(rounded)))


def test_the_decoder_computes_with_what_the_integers_stand_for(models):
    tiny, rounded = models
    plain = weights.weights_of(tiny.decoder)
    plain['blocks'] = plain['blocks'] | {
        name: getattr(rounded.blocks, name).dense() for name in _MATRICES
    }
    plain = weights.decoder_of(tiny.base.config, plain)
    cfg = tiny.base.config
    tokens = jax.random.randint(jax.random.key(1), (2, 11), 0, cfg.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(11), (2, 11))
    mask = jax.random.uniform(jax.random.key(2), (cfg.num_layers, cfg.d_ff))

    def loss(mask, model):
        hidden, _, _ = model(
            tokens, positions, masks_lib.Masks(mask), attention.causal(2, 11)
        )
        return jnp.sum(jnp.sin(model.unembed(hidden)))

    got, wanted = (jax.value_and_grad(loss)(mask, m) for m in (rounded, plain))
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-4)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-3, atol=1e-4)
    exact = jax.grad(loss)(mask, tiny.decoder)
    error = np.linalg.norm(got[1] - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.1


@pytest.mark.parametrize('text', ['data:2,fsdp:2', 'data:4', 'fsdp:4'])
def test_a_mesh_gets_the_same_integers(models, text):
    tiny, rounded = models
    mesh = sharding.make_mesh(text, jax.devices()[:4])
    spread = loading.load_decoder(
        tiny.base.reader,
        tiny.base.config,
        dtype=jnp.float32,
        int8_matrices=True,
        mesh=mesh,
    )
    jax.tree.map(np.testing.assert_array_equal, rounded, spread)
