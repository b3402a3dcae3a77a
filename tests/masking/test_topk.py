"""Exactly k channels, the same on every device, and a gradient that passes."""

import hypothesis
from hypothesis.extra import numpy as hypothesis_numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.masking import topk


def _reference(scores: np.ndarray, keep: int) -> np.ndarray:
    """By a stable sort: of equal scores the lower index comes first."""
    order = np.argsort(-scores, axis=-1, kind='stable')[..., :keep]
    mask = np.zeros(scores.shape, scores.dtype)
    np.put_along_axis(mask, order, 1, axis=-1)
    return mask


def test_known_scores():
    scores = jnp.asarray([[0.1, -3.0, 2.0, 0.5], [-1.0, -2.0, -3.0, -4.0]])
    mask = topk.topk_mask(scores, 2)
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1], [1, 1, 0, 0]])
    assert mask.dtype == scores.dtype


def test_ties_go_to_the_lower_index():
    scores = jnp.asarray([1.0, 2.0, 1.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(topk.topk_mask(scores, 3), [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(topk.topk_mask(jnp.zeros(5), 2), [1, 1, 0, 0, 0])
    # Wide enough that another sorting algorithm may be used.
    wide = jnp.zeros((2, 9000)).at[:, 7777].set(1.0)
    kept = np.nonzero(np.asarray(topk.topk_mask(wide, 4000))[1])[0]
    np.testing.assert_array_equal(kept, [*range(3999), 7777])


def test_both_zeros_are_equal():
    scores = jnp.asarray([-0.0, 0.0, -0.0, 0.0])
    np.testing.assert_array_equal(topk.topk_mask(scores, 2), [1, 1, 0, 0])


# Few distinct values make many ties; one shape compiles but once a keep size.
_scores = hypothesis_numpy.arrays(
    np.float32,
    (4, 6),
    elements=st.sampled_from([-2.0, -0.0, 0.0, 0.5, 3.0])
    | st.floats(-10, 10, width=32, allow_subnormal=False),
)


@hypothesis.given(scores=_scores, keep=st.integers(1, 6))
def test_mask_is_the_stable_sorts(scores, keep):
    mask = np.asarray(jax.jit(topk.topk_mask, static_argnums=1)(scores, keep))
    np.testing.assert_array_equal(mask, _reference(scores, keep))
    np.testing.assert_array_equal(mask.sum(axis=-1), keep)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_jit_and_vmap_change_nothing(dtype):
    scores = jax.random.normal(jax.random.key(0), (3, 4, 33)).astype(dtype)
    want = _reference(np.asarray(scores, np.float32), 7)
    jitted = jax.jit(topk.topk_mask, static_argnums=1)(scores, 7)
    mapped = jax.vmap(jax.vmap(lambda row: topk.topk_mask(row, 7)))(scores)
    assert jitted.dtype == mapped.dtype == scores.dtype
    np.testing.assert_array_equal(np.asarray(jitted, np.float32), want)
    np.testing.assert_array_equal(np.asarray(mapped, np.float32), want)


def test_backward_is_the_identity_for_kept_and_dropped_alike():
    scores = jax.random.normal(jax.random.key(1), (3, 8))
    cotangent = jax.random.normal(jax.random.key(2), (3, 8))

    def loss(z: jax.Array) -> jax.Array:
        return jnp.sum(topk.topk_mask(z, 3) * cotangent)

    np.testing.assert_array_equal(jax.grad(loss)(scores), cotangent)
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(scores), cotangent)
    mapped = jax.vmap(lambda z, c: jax.vjp(lambda x: topk.topk_mask(x, 3), z)[1](c)[0])
    np.testing.assert_array_equal(mapped(scores, cotangent), cotangent)


@hypothesis.given(scores=_scores, keep=st.integers(1, 6))
def test_ranked_mask_of_a_traced_keep_is_the_stable_sorts(scores, keep):
    mask = np.asarray(jax.jit(topk.ranked_mask)(scores, keep))
    np.testing.assert_array_equal(mask, _reference(scores, keep))


def test_ranked_mask_equals_topk_mask_for_every_keep():
    # Rounded, so that there are many ties, also at the threshold.
    normal = jax.random.normal(jax.random.key(4), (2, 3, 33))
    scores = jnp.round(normal * 4) / 4
    every = jnp.arange(1, 34)
    masks = jax.vmap(topk.ranked_mask, in_axes=(None, 0))(scores, every)
    assert masks.dtype == scores.dtype
    for keep, mask in zip(range(1, 34), masks, strict=True):
        want = topk.topk_mask(scores, keep)
        np.testing.assert_array_equal(mask, want)
        np.testing.assert_array_equal(topk.ranked_mask(scores, keep), want)
        np.testing.assert_array_equal(topk.hard_mask(scores, keep), want)
        np.testing.assert_array_equal(
            topk.kth_largest(scores, keep)[..., 0],
            np.sort(scores, axis=-1)[..., 33 - keep],
        )


def test_ranked_masks_backward_is_the_identity_and_spares_keep():
    scores = jax.random.normal(jax.random.key(1), (3, 8))
    cotangent = jax.random.normal(jax.random.key(2), (3, 8))

    def loss(z: jax.Array, share: jax.Array) -> jax.Array:
        keep = jnp.round(8 * share).astype(jnp.int32)
        return jnp.sum(topk.ranked_mask(z, keep) * cotangent)

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(scores, 0.4)
    np.testing.assert_array_equal(grads[0], cotangent)
    assert grads[1] == 0
    # Another k, the same program.
    mask = jax.jit(lambda z, keep: topk.ranked_mask(z, keep))
    np.testing.assert_array_equal(mask(scores, 2).sum(axis=-1), 2)
    np.testing.assert_array_equal(mask(scores, 5).sum(axis=-1), 5)
    assert mask._cache_size() == 1


@pytest.mark.parametrize('keep', [0, -1, 9])
def test_keep_outside_the_channels_is_refused(keep):
    with pytest.raises(ValueError, match=rf'\[1, 8\], got {keep}'):
        topk.topk_mask(jnp.zeros((2, 8)), keep)
    with pytest.raises(ValueError, match=rf'\[1, 8\], got {keep}'):
        topk.ranked_mask(jnp.zeros((2, 8)), keep)


@pytest.mark.parametrize(
    ('d_ff', 'sparsity', 'keep'),
    [
        (8192, 0.25, 6144),  # Llama-3.2-3B
        (8192, 0.5, 4096),
        (14336, 0.25, 10752),  # Llama-3.1-8B
        (14336, 0.5, 7168),
        (11008, 0.25, 8256),  # Qwen2.5-3B
        (11008, 0.5, 5504),
        (18944, 0.25, 14208),  # Qwen2.5-7B
        (18944, 0.5, 9472),
        (27648, 0.5, 13824),  # Qwen2.5-32B
    ],
)
def test_keep_sizes_of_the_paper(d_ff, sparsity, keep):
    assert topk.keep_size(d_ff, sparsity, 1) == keep
    # All of them are multiples of 64 already, the default.
    assert topk.keep_size(d_ff, sparsity, 64) == keep


@pytest.mark.parametrize(
    ('d_ff', 'sparsity', 'align', 'keep'),
    [
        (1536, 0.25, 64, 1152),
        (1536, 0.25, 256, 1280),  # 4.5 multiples: halves go up
        (1536, 0.3, 1, 1075),  # of 1075.2
        (1536, 0.3, 64, 1088),  # 17 of 16.8
        (100, 0.0, 1, 100),
        (1000, 0.999, 1, 1),
        (10, 0.3, 1, 7),  # 10 * (1 - 0.3) is 6.999... or 7.000...
        (10, 0.7, 1, 3),
    ],
)
def test_keep_size_rounds_to_the_nearest_multiple(d_ff, sparsity, align, keep):
    assert topk.keep_size(d_ff, sparsity, align) == keep


@hypothesis.given(
    d_ff=st.integers(1, 40_000),
    sparsity=st.floats(0, 1, exclude_max=True),
    align=st.sampled_from([1, 2, 7, 64, 128, 256]),
)
def test_keep_size_is_near_usable_or_refused(d_ff, sparsity, align):
    exact = d_ff * (1 - sparsity)
    try:
        keep = topk.keep_size(d_ff, sparsity, align)
    except errors.InputError:
        # Nothing in [1, F] is a multiple that near.
        assert exact < align / 2 + 1e-6 or exact + align / 2 > d_ff - 1e-6
        return
    assert 1 <= keep <= d_ff
    assert keep % align == 0
    assert abs(keep - exact) <= align / 2 + 1e-6


@pytest.mark.parametrize(
    ('sparsity', 'align', 'wanted'),
    [
        (1.0, 1, '--sparsity'),
        (-0.1, 1, '--sparsity'),
        (float('nan'), 1, '--sparsity'),
        (0.5, 0, '--align'),
        (0.9999, 1, 'smaller --align'),
        (0.0, 64, 'smaller --align'),  # 100 would become 128
        (0.9, 64, 'smaller --align'),  # 10 would become 0
    ],
)
def test_impossible_keep_sizes_are_refused(sparsity, align, wanted):
    with pytest.raises(errors.InputError, match=wanted):
        topk.keep_size(100, sparsity, align)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_no_mask_is_made_of_scores_that_are_not_finite(bad):
    scores = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(
        topk.finite_mask(scores, 4), np.asarray(topk.topk_mask(scores, 4)) > 0
    )
    scores[1, 2] = bad
    with pytest.raises(errors.InputError, match='1 of 12 scores are not finite'):
        topk.finite_mask(scores, 4)
