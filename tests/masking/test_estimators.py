"""One interface: jit, vmap, scan and annealed k with every estimator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.masking import estimators, topk


def _scores(seed: int, shape: tuple[int, ...], std: float = 0.1) -> jax.Array:
    return std * jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('kind', ['ste', 'gumbel'])
@pytest.mark.parametrize('progress', [0.0, 0.4, 1.0])
def test_hard_kinds_keep_exactly_k(kind, progress):
    estimate = estimators.make(kind)
    scores = _scores(0, (3, 52))
    for keep in (1, 13, 52, jnp.asarray(13)):
        mask = np.asarray(
            estimate(scores, keep, progress=progress, key=jax.random.key(1))
        )
        assert set(np.unique(mask)) <= {0.0, 1.0}
        np.testing.assert_array_equal(mask.sum(axis=-1), keep)


def test_ste_is_topk_mask():
    estimate = estimators.make('ste')
    scores = _scores(2, (3, 52))
    cotangent = _scores(3, (3, 52))
    for keep in (13, jnp.asarray(13)):
        mask, vjp = jax.vjp(
            functools.partial(estimate, keep=keep, progress=0.3, key=jax.random.key(0)),
            scores,
        )
        np.testing.assert_array_equal(mask, topk.topk_mask(scores, 13))
        np.testing.assert_array_equal(vjp(cotangent)[0], cotangent)


def test_gumbels_noise_matters_less_as_the_run_proceeds():
    estimate = estimators.make('gumbel')
    scores = _scores(4, (4, 900))
    want = np.asarray(topk.topk_mask(scores, 300))

    def differing(progress: float) -> float:
        mask = estimate(scores, 300, progress=progress, key=jax.random.key(5))
        return float(np.mean(mask != want))

    shares = [differing(progress) for progress in (0.0, 0.5, 1.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2  # Of 0.44 if noise were all.
    assert shares[2] < 0.15


def test_soft_top_k_ends_nearly_hard():
    estimate = estimators.make('soft_topk')
    scores = _scores(6, (4, 1536))

    def gap(progress: float, scores: jax.Array) -> np.ndarray:
        mask = estimate(scores, 768, progress=progress, key=jax.random.key(0))
        np.testing.assert_allclose(mask.sum(axis=-1), 768, rtol=1e-5)
        return np.abs(mask - topk.topk_mask(scores, 768))

    assert gap(0.0, scores).mean() > 0.1
    assert gap(1.0, scores).mean() < 0.004
    # The shares that the module's comment states.
    assert np.mean(gap(1.0, scores) > 0.01) < 0.02
    assert np.mean(gap(1.0, 3 * scores) > 0.01) < 0.008
    # Geometric: halfway, eps is sqrt(0.1 * 0.001) = 0.01.
    halfway = estimate(scores, 768, progress=0.5, key=jax.random.key(0))
    want = estimate(10 * scores, 768, progress=0.0, key=jax.random.key(0))
    np.testing.assert_allclose(halfway, want, atol=1e-4)


@pytest.mark.parametrize('kind', estimators.KINDS)
@pytest.mark.parametrize('progress', [0.0, 1.0])
def test_gradients_are_finite_and_not_nothing(kind, progress):
    estimate = estimators.make(kind)
    cotangent = _scores(7, (3, 300), 1.0)

    def loss(z: jax.Array) -> jax.Array:
        mask = estimate(z, 75, progress=progress, key=jax.random.key(8))
        return jnp.vdot(mask, cotangent)

    for scores in (_scores(9, (3, 300)), _scores(9, (3, 300), 1.0)):
        grad = np.asarray(jax.grad(loss)(scores))
        assert np.isfinite(grad).all()
        assert (np.abs(grad).max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize('kind', estimators.KINDS)
def test_personas_mapped_are_personas_alone(kind):
    estimate = estimators.make(kind)
    scores = _scores(10, (3, 2, 52))  # [P, L, F]
    cotangents = _scores(11, (3, 2, 52), 1.0)
    keys = jax.random.split(jax.random.key(12), 3)

    @jax.jit
    def one(z: jax.Array, v: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask, vjp = jax.vjp(
            lambda x: estimate(x, 13, progress=jnp.asarray(0.3), key=key), z
        )
        return mask, vjp(v)[0]

    want = [one(*row) for row in zip(scores, cotangents, keys, strict=True)]
    for masks, grads in (
        jax.jit(jax.vmap(one))(scores, cotangents, keys),
        jax.jit(lambda *xs: jax.lax.map(lambda x: one(*x), xs))(
            scores, cotangents, keys
        ),
    ):
        # soft - soft is 0 also after compilation, so hard masks stay hard.
        if kind != 'soft_topk':
            assert set(np.unique(masks)) <= {0.0, 1.0}
        np.testing.assert_allclose(masks, [mask for mask, _ in want], atol=1e-6)
        np.testing.assert_allclose(grads, [grad for _, grad in want], atol=1e-5)


@pytest.mark.parametrize('kind', estimators.KINDS)
def test_a_run_compiles_once_with_annealed_keep(kind):
    estimate = estimators.make(kind)

    @jax.jit
    def step(
        z: jax.Array, progress: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        keep = estimators.anneal_keep(progress, 52, 13, 0.5)
        mask, vjp = jax.vjp(lambda x: estimate(x, keep, progress=progress, key=key), z)
        return mask, vjp(jnp.cos(z))[0]

    scores = _scores(13, (2, 52))
    for number in range(5):
        progress = jnp.float32(number / 4)
        mask, grad = step(scores, progress, jax.random.key(number))
        want = int(estimators.anneal_keep(number / 4, 52, 13, 0.5))
        np.testing.assert_allclose(mask.sum(axis=-1), want, rtol=1e-5)
        assert np.isfinite(grad).all()
    assert step._cache_size() == 1


@pytest.mark.parametrize('kind', estimators.KINDS)
def test_micro_batches_may_be_scanned(kind):
    estimate = estimators.make(kind)
    scores = _scores(14, (2, 52))
    weights = _scores(15, (4, 2, 52), 1.0)

    def loss(z: jax.Array, v: jax.Array) -> jax.Array:
        mask = estimate(z, 13, progress=0.6, key=jax.random.key(16))
        return jnp.vdot(mask, v)

    total, _ = jax.lax.scan(
        lambda carry, v: (carry + jax.grad(loss)(scores, v), None),
        jnp.zeros_like(scores),
        weights,
    )
    want = jax.grad(loss)(scores, weights.sum(axis=0))
    np.testing.assert_allclose(total, want, rtol=1e-4, atol=1e-4)


def test_annealed_keep_falls_cubically_from_all_to_keep():
    progress = np.linspace(0, 1, 101)
    kept = np.asarray(
        [estimators.anneal_keep(share, 1536, 768, 0.4) for share in progress]
    )
    assert kept.dtype == np.int32
    want = 768 + 768 * np.clip(1 - progress / 0.4, 0, None) ** 3
    np.testing.assert_allclose(kept, want, atol=0.51)
    assert kept[0] == 1536
    assert (kept[40:] == 768).all()
    assert (np.diff(kept) <= 0).all()
    assert kept[20] == 768 + 768 // 8


def test_an_unknown_kind_is_refused():
    assert estimators.KINDS == ('ste', 'gumbel', 'soft_topk')
    with pytest.raises(ValueError, match=r"'ste', 'gumbel', 'soft_topk'.*got 'hard'"):
        estimators.make('hard')
