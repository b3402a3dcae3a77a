"""The exact optimum: its sum, its limits, its gradient in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.masking import soft_topk, topk


def _normal(seed: int, shape: tuple[int, ...], std: float = 1.0) -> np.ndarray:
    return std * np.random.default_rng(seed).normal(size=shape)


def _coordinate_descent(
    scores: np.ndarray, keep: int, epsilon: float, iterations: int
) -> np.ndarray:
    """The published iteration, on one row in float64."""
    b = -scores
    for _ in range(iterations):
        a = epsilon * (np.log(keep) - np.logaddexp.reduce((scores + b) / epsilon))
        b = -np.maximum(scores + a, 0)
    return np.exp((scores + a + b) / epsilon)


@pytest.mark.parametrize('keep', [1, 2, 300, 1152, 1535, 1536])
@pytest.mark.parametrize('epsilon', [1e-4, 0.002, 0.1, 1.0, 30.0])
def test_shares_sum_to_keep(keep, epsilon):
    scores = jnp.asarray(_normal(0, (3, 1536), 0.3), jnp.float32)
    shares = np.asarray(jax.jit(soft_topk.soft_topk)(scores, keep, epsilon))
    assert shares.dtype == np.float32
    assert (shares >= 0).all()
    assert (shares <= 1).all()
    sums = shares.astype(np.float64).sum(axis=-1)
    np.testing.assert_allclose(sums, keep, rtol=1e-5)
    if epsilon >= 0.1:
        assert (shares > 0).all()
    # A larger score never has the smaller share.
    order = np.argsort(scores, axis=-1)
    assert (np.diff(np.take_along_axis(shares, order, axis=-1)) >= 0).all()


@pytest.mark.parametrize('keep', [1, 6, 10, 11])
def test_shares_are_the_closed_form(keep):
    epsilon = 0.37
    scores = _normal(1, (4, 11))
    with jax.enable_x64(True):
        shares = np.asarray(soft_topk.soft_topk(jnp.asarray(scores), keep, epsilon))
    assert shares.dtype == np.float64
    np.testing.assert_allclose(shares.sum(axis=-1), keep, rtol=1e-13)
    for row, found in zip(scores, shares, strict=True):
        free = found < 1
        # One number a explains every share below 1; the others are those above it.
        offsets = epsilon * np.log(found[free]) - row[free]
        np.testing.assert_allclose(offsets, offsets[:1].repeat(free.sum()), rtol=1e-12)
        if free.any():
            assert (row[~free] + offsets[0] > -1e-12).all()
        else:
            assert keep == 11


def test_keeping_all_gives_ones():
    scores = jnp.asarray(_normal(2, (3, 7), 5.0), jnp.float32)
    np.testing.assert_array_equal(soft_topk.soft_topk(scores, 7, 0.01), np.ones((3, 7)))
    grad = jax.grad(lambda z: soft_topk.soft_topk(z, 7, 0.01)[0, 2])(scores)
    np.testing.assert_array_equal(grad, np.zeros((3, 7)))


def test_it_becomes_hard_as_epsilon_falls():
    # Distinct scores, 0.1 apart.
    scores = np.random.default_rng(3).permuted(
        np.tile(np.arange(37) / 10, (5, 1)), axis=1
    )
    scores = jnp.asarray(scores, jnp.float32)
    hard = topk.topk_mask(scores, 13)
    gaps = [
        float(np.abs(soft_topk.soft_topk(scores, 13, epsilon) - hard).max())
        for epsilon in (0.2, 0.05, 0.02, 0.005)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.3
    assert gaps[-1] < 1e-6


def test_equal_scores_share_evenly():
    shares = soft_topk.soft_topk(jnp.asarray([3.0, 1.0, 1.0, -9.0]), 2, 0.01)
    np.testing.assert_allclose(shares, [1, 0.5, 0.5, 0], rtol=1e-6)


@pytest.mark.parametrize('keep', [1, 100, 999])
def test_scores_large_beside_epsilon_stay_exact(keep):
    # |z| / eps up to 1e4, and the whole row far from 0.
    scores = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, 1000), jnp.float32)
    for shift in (0.0, 1.0, -1.0):
        shares = soft_topk.soft_topk(scores + shift, keep, 1e-4)
        np.testing.assert_allclose(
            np.asarray(shares, np.float64).sum(), keep, rtol=1e-5
        )
        grad = jax.grad(
            lambda z: jnp.vdot(soft_topk.soft_topk(z, keep, 1e-4), jnp.cos(z))
        )(scores + shift)
        assert np.isfinite(grad).all()


def test_a_constant_changes_nothing():
    # Multiples of 1/64: adding 512 rounds nothing.
    scores = jnp.asarray(np.round(_normal(5, (2, 50)) * 64) / 64, jnp.float32)
    np.testing.assert_array_equal(
        soft_topk.soft_topk(scores, 20, 0.1), soft_topk.soft_topk(scores + 512, 20, 0.1)
    )


@pytest.mark.parametrize('keep', [3, 10])
def test_it_is_what_coordinate_descent_converges_to(keep):
    scores = _normal(6, (4, 16))
    want = np.stack([_coordinate_descent(row, keep, 1.0, 2000) for row in scores])
    with jax.enable_x64(True):
        got = soft_topk.soft_topk(jnp.asarray(scores), keep, 1.0)
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_twenty_iterations_of_coordinate_descent_miss_the_sum():
    # Why we solve instead: the figure that the docstring gives.
    row = _normal(7, (8192,), 0.5)
    short = _coordinate_descent(row, 6144, 0.1, 20).sum()
    assert 0.02 < abs(short / 6144 - 1) < 0.05
    solved = soft_topk.soft_topk(jnp.asarray(row, jnp.float32), 6144, 0.1)
    np.testing.assert_allclose(np.asarray(solved, np.float64).sum(), 6144, rtol=1e-5)


@pytest.mark.parametrize(('keep', 'epsilon'), [(1, 0.5), (4, 0.3), (4, 2.0), (9, 0.1)])
def test_gradient_is_that_of_finite_differences(keep, epsilon):
    scores = _normal(8, (3, 11))
    cotangent = _normal(9, (3, 11))
    step = 1e-5

    with jax.enable_x64(True):
        weights = jnp.asarray(cotangent)

        @jax.jit
        def loss(z: jax.Array) -> jax.Array:
            return jnp.vdot(soft_topk.soft_topk(z, keep, epsilon), weights)

        got = np.asarray(jax.grad(loss)(jnp.asarray(scores)))
        want = np.zeros_like(scores)
        for index in np.ndindex(*scores.shape):
            ahead, behind = scores.copy(), scores.copy()
            ahead[index] += step
            behind[index] -= step
            want[index] = (loss(ahead) - loss(behind)) / (2 * step)
        at_one = (
            np.asarray(soft_topk.soft_topk(jnp.asarray(scores), keep, epsilon)) == 1
        )
    np.testing.assert_allclose(got, want, atol=1e-8, rtol=1e-6)
    np.testing.assert_array_equal(got[at_one], 0)
    # The sum is fixed, so the gradient of a row sums to 0; and it is not all 0.
    np.testing.assert_allclose(got.sum(axis=-1), 0, atol=1e-12)
    assert np.abs(got).max() > 0.01


def test_no_gradient_reaches_epsilon():
    scores = jnp.asarray(_normal(10, (2, 9)), jnp.float32)
    grad = jax.grad(lambda e: soft_topk.soft_topk(scores, 4, e)[0, 0])(0.2)
    assert grad == 0


def test_permuting_channels_permutes_shares_and_gradients():
    scores = jnp.asarray(_normal(11, (3, 21)), jnp.float32)
    cotangent = jnp.asarray(_normal(12, (3, 21)), jnp.float32)
    order = np.random.default_rng(13).permutation(21)

    def both(z: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        shares, vjp = jax.vjp(lambda x: soft_topk.soft_topk(x, 8, 0.2), z)
        return shares, vjp(v)[0]

    for plain, moved in zip(
        both(scores, cotangent),
        both(scores[:, order], cotangent[:, order]),
        strict=True,
    ):
        np.testing.assert_allclose(moved, plain[:, order], atol=1e-6)


def test_traced_keep_and_epsilon_vmap_and_scan_change_nothing():
    scores = jnp.asarray(_normal(14, (4, 19)), jnp.float32)
    keeps = jnp.asarray([1, 5, 12, 19])
    epsilons = jnp.asarray([0.1, 0.4, 0.05, 1.0])

    def loss(z: jax.Array, keep: int, epsilon: float) -> jax.Array:
        return jnp.vdot(soft_topk.soft_topk(z, keep, epsilon), jnp.sin(z))

    value_and_grad = jax.value_and_grad(loss)
    want = [
        value_and_grad(z, int(k), float(e))
        for z, k, e in zip(scores, keeps, epsilons, strict=True)
    ]
    mapped = jax.jit(jax.vmap(value_and_grad))(scores, keeps, epsilons)
    _, scanned = jax.lax.scan(
        lambda carry, x: (carry, value_and_grad(*x)), None, (scores, keeps, epsilons)
    )
    for values, grads in (mapped, scanned):
        np.testing.assert_allclose(values, [value for value, _ in want], atol=2e-6)
        np.testing.assert_allclose(grads, [grad for _, grad in want], atol=2e-5)


@pytest.mark.parametrize('keep', [0, 9])
def test_keep_outside_the_channels_is_refused(keep):
    with pytest.raises(ValueError, match=rf'\[1, 8\], got {keep}'):
        soft_topk.soft_topk(jnp.zeros((2, 8)), keep, 0.1)
