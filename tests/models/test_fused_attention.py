"""Fused attention equals the plain one, as far as a CPU can tell.

XLA's own implementation stands in for cuDNN's: it is called the same way.
"""

import dataclasses
import functools
import importlib

import jax
from jax import custom_batching
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.data import packing
from ppjax.models import attention, fused_attention, weights
from ppjax.models import masks as masks_lib
from ppjax.planning import step_shape
from ppjax.training import step as step_lib

_N, _K, _H = 6, 2, 8
_FUSED = 'xla'


def _inputs(batch: int, length: int, *more: int) -> tuple[jax.Array, ...]:
    return tuple(
        jax.random.normal(jax.random.key(seed), (*more, batch, length, heads, _H))
        for seed, heads in enumerate((_N, _K, _K, _N))
    )


def _segments(batch: int, length: int) -> jax.Array:
    # Several examples a chunk, and padding behind them.
    drawn = np.random.default_rng(0).integers(1, 4, (batch, length))
    return jnp.asarray(np.where(np.arange(length) < length - 3, np.sort(drawn), 0))


def _with_gradients(run, q, k, v, back):
    out, pull = jax.vjp(run, q, k, v)
    return out, pull(back)


@pytest.mark.parametrize('prefix', [0, 5])
def test_packed_rows(prefix):
    batch, chunk, chunks = 2, 12, 3
    length = prefix + chunk * chunks
    segments = _segments(batch, length - prefix)
    *qkv, back = _inputs(batch, length)

    def run(fused):
        pattern = attention.Packed(prefix, chunk, segments, fused=fused)
        return _with_gradients(lambda *x: pattern(*x)[0], *qkv, back)

    want, got = (jax.jit(run, static_argnums=0)(fused) for fused in (None, _FUSED))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), got, want)


def test_an_axis_of_vmap_is_more_rows(monkeypatch):
    slots, batch, length = 3, 2, 9
    *qkv, back = _inputs(batch, length, slots)
    mask = jnp.tril(jnp.ones((1, length, length), bool))

    def fused(*x):
        return fused_attention.attend(*x, mask, implementation=_FUSED)

    def plain(*x):
        return attention.dot_product_attention(*x, mask)

    def each(attend):
        run = functools.partial(_with_gradients, attend)
        return jax.jit(jax.vmap(run))(*qkv, back)

    got, want = each(fused), each(plain)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), got, want)

    # What the kernels are given has rows, not an axis more.
    own = jax.nn.dot_product_attention

    def without_a_rule(q, k, v, **options):
        call = custom_batching.custom_vmap(lambda *x: own(*x, **options))

        @call.def_vmap
        def refuse(*_):
            raise AssertionError('an axis more')

        return call(q, k, v)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', without_a_rule)
    np.testing.assert_allclose(jax.vmap(fused)(*qkv), want[0], atol=2e-6)
    with pytest.raises(AssertionError, match='an axis more'):
        jax.vmap(without_a_rule)(*qkv)


def test_a_whole_model_under_remat(tiny_models, make_examples):
    decoder = tiny_models('llama').decoder
    examples = make_examples(4, prefix=5)
    shape = packing.plan_shape(examples, [np.arange(4)], prefix=5)
    rows = packing.pack(examples, np.arange(4), shape).first()
    cfg = decoder.cfg

    def run(channels, fused):
        pattern = attention.Packed(
            shape.prefix, shape.chunk, jnp.asarray(rows.segments), fused=fused
        )
        hidden, _, _ = decoder(
            jnp.asarray(rows.tokens),
            jnp.asarray(rows.positions),
            masks_lib.Masks(channels),
            pattern,
            remat='dots',
        )
        return jnp.sum(jnp.sin(hidden))

    channels = jnp.ones((cfg.num_layers, cfg.d_ff))
    step = jax.jit(jax.value_and_grad(run), static_argnums=1)
    (value, got), (wanted, want) = (step(channels, x) for x in (_FUSED, None))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_who_asks_for_it(monkeypatch):
    shape = packing.PackedShape(2, 4, 1, 3, 1, 1)
    segments = jnp.ones((1, 4), jnp.int32)
    assert shape.attend(segments).fused is None
    monkeypatch.setenv(fused_attention.VARIABLE, '1')
    assert shape.attend(segments).fused == fused_attention.CUDNN
    # Not on a CPU, whatever was asked for.
    assert not fused_attention.applies(fused_attention.CUDNN, 64, jnp.bfloat16)
    monkeypatch.setenv(fused_attention.VARIABLE, 'yes')
    with pytest.raises(errors.InputError, match="must be 0 or 1, got 'yes'"):
        shape.attend(segments)


def test_where_cudnn_applies(monkeypatch):
    class Device:
        class client:
            platform_version = 'cuda 13000'

    monkeypatch.setattr(fused_attention.jax, 'devices', lambda: [Device])
    cudnn = fused_attention.CUDNN
    assert fused_attention.applies(cudnn, 128, jnp.bfloat16)
    assert not fused_attention.applies(cudnn, 128, jnp.float32)
    assert not fused_attention.applies(cudnn, 136, jnp.bfloat16)
    assert not fused_attention.applies(cudnn, 100, jnp.bfloat16)


@pytest.mark.parametrize('prefix', [0, 5])
def test_a_step_is_lowered_to_cudnn(prefix, tiny_models, make_examples, monkeypatch):
    """The whole mask learning step, as far as JAX takes it without a GPU."""
    kernels = importlib.import_module('jax._src.cudnn.fused_attention_stablehlo')
    monkeypatch.setattr(kernels, 'check_cudnn_version', lambda: 91900)
    monkeypatch.setattr(fused_attention, 'applies', lambda *_: True)
    cfg = tiny_models('llama').base.config
    cfg = dataclasses.replace(cfg, head_dim=8)
    model = weights.decoder_of(cfg, weights.abstract(cfg, jnp.bfloat16))
    examples = make_examples(4, prefix=prefix, vocab=cfg.vocab_size)
    shape = packing.plan_shape(examples, [np.arange(4)], prefix=prefix)
    batch = packing.pack(examples, np.arange(4), shape)
    learning = step_shape.plain_learning(cfg.d_ff // 2, remat='dots')
    state = step_lib.init_state(jnp.zeros((1, cfg.num_layers, cfg.d_ff)), learning)
    args = state, model, jax.tree.map(lambda x: x[None], batch), step_shape.plain_turn()

    def calls():
        step = step_lib.make_train_step(learning, shape)
        lowered = step.trace(*args).lower(lowering_platforms=('cuda',))
        return lowered.as_text().count('custom_call @__cudnn')

    assert calls() == 0
    monkeypatch.setenv(fused_attention.VARIABLE, '1')
    # Forward, and twice in the backward pass: of the chunks, and of the prefix.
    assert calls() == (6 if prefix else 3)
