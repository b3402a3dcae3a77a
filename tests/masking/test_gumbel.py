"""Exactly k channels, drawn with the right odds, and soft top-k's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.masking import gumbel, soft_topk, topk


def _scores(seed: int, shape: tuple[int, ...], std: float = 0.1) -> jax.Array:
    return std * jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('keep', [1, 17, 32, 33])
def test_exactly_keep_ones(keep):
    scores = _scores(0, (3, 33))
    for traced in (keep, jnp.asarray(keep)):
        mask = np.asarray(
            gumbel.gumbel_topk(scores, traced, jax.random.key(1), 0.7, 10.0)
        )
        assert set(np.unique(mask)) <= {0.0, 1.0}
        np.testing.assert_array_equal(mask.sum(axis=-1), keep)


def test_the_key_decides():
    scores = _scores(0, (3, 33))
    first, again, other = (
        np.asarray(gumbel.gumbel_topk(scores, 11, jax.random.key(seed), 0.7, 10.0))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.1
    # Every layer has noise of its own.
    level = np.asarray(
        gumbel.gumbel_topk(jnp.zeros((3, 33)), 11, jax.random.key(1), 0.7, 10.0)
    )
    assert len(np.unique(level, axis=0)) == 3


def test_a_large_multiplier_leaves_the_top_k_of_the_scores():
    scores = jax.random.permutation(jax.random.key(2), jnp.arange(33.0)) / 10
    want = topk.topk_mask(scores, 11)
    mask = gumbel.gumbel_topk(scores, 11, jax.random.key(1), 0.7, 1e4)
    np.testing.assert_array_equal(mask, want)
    mask = gumbel.gumbel_topk(scores, 11, jax.random.key(1), 0.7, 0.01)
    assert (np.asarray(mask) != want).any()


def test_one_channel_is_drawn_with_the_probabilities_of_a_softmax():
    scores = jnp.asarray([0.1, -0.2, 0.0, 0.15])
    keys = jax.random.split(jax.random.key(3), 20_000)
    draws = jax.vmap(lambda key: gumbel.gumbel_topk(scores, 1, key, 1.0, 7.0))(keys)
    want = jax.nn.softmax(7.0 * scores)
    # Five standard errors of a share of 20,000 draws are at most 0.018.
    np.testing.assert_allclose(draws.mean(axis=0), want, atol=0.018)


@pytest.mark.parametrize('tau', [4.0, 0.5, 0.05])
def test_gradient_is_soft_top_ks_at_the_noisy_scores(tau):
    scores, key, multiplier = _scores(4, (3, 33)), jax.random.key(5), 20.0
    cotangent = _scores(6, (3, 33), 1.0)
    noise = jax.random.gumbel(key, (3, 33))

    def hard(z: jax.Array) -> jax.Array:
        return jnp.vdot(gumbel.gumbel_topk(z, 11, key, tau, multiplier), cotangent)

    def soft(z: jax.Array) -> jax.Array:
        return jnp.vdot(soft_topk.soft_topk(multiplier * z + noise, 11, tau), cotangent)

    got = jax.grad(hard)(scores)
    want = jax.grad(soft)(scores)
    assert np.isfinite(got).all()
    assert np.abs(want).max() > 0.01
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_for_one_channel_the_gradient_is_straight_through_gumbel_softmaxs():
    scores, key = _scores(7, (5, 9)), jax.random.key(8)
    cotangent = _scores(9, (5, 9), 1.0)

    def softmax(z: jax.Array) -> jax.Array:
        noisy = 10.0 * z + jax.random.gumbel(key, z.shape)
        return jnp.vdot(jax.nn.softmax(noisy / 0.8, axis=-1), cotangent)

    got = jax.grad(
        lambda z: jnp.vdot(gumbel.gumbel_topk(z, 1, key, 0.8, 10.0), cotangent)
    )(scores)
    np.testing.assert_allclose(got, jax.grad(softmax)(scores), atol=2e-5)


def test_schedules_are_maskllms_for_our_scores():
    np.testing.assert_allclose(
        [gumbel.temperature(share) for share in (0.0, 0.5, 1.0)],
        [4.0, 2.025, 0.05],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        [gumbel.score_multiplier(share) for share in (0.0, 0.5, 1.0)], [10, 30, 50]
    )
