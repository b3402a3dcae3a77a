"""Starting scores against NumPy, on activations that transformers computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppjax.masking import score_init
from ppjax.models import attention
from ppjax.models import masks as masks_lib

_LENGTHS = (19, 11, 4)


def _channel_inputs(hf, tokens: np.ndarray, real: np.ndarray) -> np.ndarray:
    """What every down_proj sees, [L, B, T, F]."""
    seen = []
    handles = [
        block.mlp.down_proj.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].numpy())
        )
        for block in hf.model.layers
    ]
    with torch.no_grad():
        hf(torch.tensor(tokens), attention_mask=torch.tensor(real))
    for handle in handles:
        handle.remove()
    return np.stack(seen)


@pytest.mark.parametrize('name', ['llama-biased', 'qwen3'])
def test_activation_scores_equal_numpys(tiny_models, name):
    tiny = tiny_models(name)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 97, (3, 20))
    real = (np.arange(20) < np.asarray(_LENGTHS)[:, None]).astype(np.int64)

    hidden = _channel_inputs(tiny.hf, tokens, real).astype(np.float64)
    square_sums = (hidden**2 * real[None, :, :, None]).sum(axis=(1, 2))  # [L, F]
    w_down = np.stack(
        [block.mlp.down_proj.weight.detach().numpy() for block in tiny.hf.model.layers]
    )  # [L, D, F]
    importance = np.sqrt(square_sums / sum(_LENGTHS)) * np.linalg.norm(w_down, axis=1)
    want = np.log(importance)
    want = (want - want.mean(axis=1, keepdims=True)) / want.std(axis=1, keepdims=True)

    @jax.jit
    def scores(model, tokens, weights):
        positions = jnp.broadcast_to(jnp.arange(20)[None], (3, 20))
        tap = score_init.square_sum_tap(weights)
        attend = attention.causal(3, 20)
        _, _, sums = model(tokens, positions, masks_lib.DENSE, attend, tap=tap)
        z = score_init.activation_scores(
            sums, jnp.sum(weights), model.blocks.w_down.values[...]
        )
        return sums, z

    got_sums, got = scores(tiny.decoder, tokens, real.astype(np.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got_sums, square_sums, rtol=1e-4)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_activation_scores_are_standardised_and_monotone():
    square_sums = jnp.asarray([[4.0, 1.0, 9.0, 16.0], [1.0, 1.0, 1.0, 1.0]])
    w_down = jnp.ones((2, 4, 5)).at[1, 2].mul(7.0)
    z = np.asarray(score_init.activation_scores(square_sums, jnp.asarray(10.0), w_down))
    np.testing.assert_array_equal(np.argsort(z[0]), [1, 0, 2, 3])
    assert np.argmax(z[1]) == 2  # Equal activations: the longer output row wins.
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=1), 1, atol=1e-5)


def test_silent_channels_and_equal_layers_stay_finite():
    square_sums = jnp.asarray([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    z = score_init.activation_scores(square_sums, jnp.asarray(3.0), jnp.ones((2, 3, 4)))
    assert np.isfinite(z).all()
    assert np.argmin(z[0]) == 0


def test_padding_weights_nothing():
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 5))
    weights = jnp.asarray([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    tap = score_init.square_sum_tap(weights)
    got = tap(jnp.zeros(()), jnp.zeros((2, 3, 4)), hidden)
    want = hidden[0, 0] ** 2 + hidden[0, 1] ** 2 + hidden[1, 0] ** 2
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # Squares of bfloat16 values are rounded nowhere.
    half = hidden.astype(jnp.bfloat16)
    got = tap(jnp.zeros(()), jnp.zeros(()), half)
    assert got.dtype == jnp.float32
    exact = np.asarray(half, np.float64) ** 2
    want = exact[0, 0] + exact[0, 1] + exact[1, 0]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_random_scores_are_drawn_from_the_key():
    first = score_init.random_scores(jax.random.key(1), 3, 400)
    assert first.shape == (3, 400)
    assert first.dtype == jnp.float32
    again = score_init.random_scores(jax.random.key(1), 3, 400)
    other = score_init.random_scores(jax.random.key(2), 3, 400)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first)) > 1190  # Ties would be broken by index.
    np.testing.assert_allclose(np.mean(first), 0, atol=0.1)
    np.testing.assert_allclose(np.std(first), 1, atol=0.1)
