"""From scores z to a mask with exactly k channels a layer (paper, Eq. 5)."""

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors


def keep_size(d_ff: int, sparsity: float, align: int) -> int:
    """How many channels of each layer stay.

    Args:
        d_ff: F, the channels of a layer.
        sparsity: share to remove, in [0, 1).
        align: k is rounded to the nearest multiple of it, since tensor parallelism
            and quantised kernels want multiples of 64, 128 or 256; 1 gives the
            paper's exact k.

    Returns:
        k in [1, F].

    Raises:
        InputError: if no such k exists.
    """
    if not 0 <= sparsity < 1:
        raise errors.InputError(f'--sparsity must be in [0, 1), got {sparsity}.')
    if align < 1:
        raise errors.InputError(f'--align must be at least 1, got {align}.')
    keep = int(d_ff * (1 - sparsity) / align + 0.5) * align
    if not 1 <= keep <= d_ff:
        raise errors.InputError(
            f'--sparsity={sparsity} with --align={align} gives a keep size of {keep}, '
            f'outside [1, {d_ff}]; use a smaller --align.'
        )
    return keep


def check_keep(keep: int | jax.Array, num_channels: int) -> None:
    """Raises ValueError for a k outside [1, F]; a traced one has no value yet."""
    if not isinstance(keep, jax.Array) and not 1 <= keep <= num_channels:
        raise ValueError(f'keep must be in [1, {num_channels}], got {keep}.')


@jax.custom_vjp
def _straight_through(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """The mask, whose gradient becomes that of the scores unchanged."""
    del scores
    return mask


_straight_through.defvjp(
    lambda scores, mask: (mask, None), lambda residuals, grad: (grad, None)
)


def topk_mask(scores: jax.Array, keep: int) -> jax.Array:
    """Binary mask of the `keep` largest scores, with a straight-through gradient.

    Forward    m_i = 1 if z_i is among the `keep` largest of z, else 0.
    Backward   dL/dz := dL/dm (identity), also for channels now off, so that a
               dropped channel can come back.

    Exactly `keep` ones a row: equal scores are broken towards the lower index, so
    the mask, and the exported checkpoint, do not depend on the device.

    Args:
        scores: z [..., F].
        keep: k.

    Returns:
        m [..., F] of zeros and ones, in the dtype of `scores`.

    Raises:
        ValueError: if `keep` is not in [1, F].

    Source: Persona-Pruner, arXiv:2606.14695, Eq. 5; the straight-through
        estimator of Bengio et al., arXiv:1308.3432.
    """
    check_keep(keep, scores.shape[-1])
    off = jnp.zeros_like(scores)
    # `top_k` puts -0.0 below 0.0, where they are equal to everyone else.
    ordered = jax.lax.stop_gradient(jnp.where(scores == 0, off, scores))
    _, kept = jax.lax.top_k(ordered, keep)  # [..., keep]
    mask = jnp.put_along_axis(off, kept, 1, axis=-1, inplace=False)
    return _straight_through(scores, mask)


def finite_mask(scores: jax.Array, keep: int | jax.Array) -> np.ndarray:
    """The `hard_mask` of scores z [..., F] that something is kept by, bool [..., F].

    Raises:
        InputError: if a score is not finite: top-k would make a mask of anything.
    """
    bad = int(np.size(scores) - np.isfinite(np.asarray(scores)).sum())
    if bad:
        raise errors.InputError(
            f'{bad} of {np.size(scores)} scores are not finite, so they make no mask; '
            "look for such numbers in the model's weights, or lower --learning_rate, "
            '--weight_decay or --score_scale.'
        )
    return np.asarray(hard_mask(scores, keep)).astype(bool)


def kth_largest(scores: jax.Array, keep: int | jax.Array) -> jax.Array:
    """The `keep`-th largest of z [..., F], as [..., 1]; `keep` may be traced.

    It may be [..., 1] as well, another k in every row.
    """
    index = scores.shape[-1] - keep
    if jnp.ndim(index):
        return jnp.take_along_axis(jnp.sort(scores, axis=-1), index, axis=-1)
    return jax.lax.dynamic_index_in_dim(jnp.sort(scores, axis=-1), index, axis=-1)


def ranked_mask(scores: jax.Array, keep: int | jax.Array) -> jax.Array:
    """`topk_mask` for a k that is known only when the step runs.

    The same mask and the same gradient. The k-th largest score is a threshold: all
    above it stay, and of those equal to it the first ones, until k are kept.

    Args:
        scores: z [..., F], finite.
        keep: k in [1, F], an integer or an integer scalar, or [..., 1] of each row;
            no gradient reaches it.

    Returns:
        m [..., F] of zeros and ones, in the dtype of `scores`.

    Raises:
        ValueError: if `keep` is a Python integer outside [1, F].
    """
    check_keep(keep, scores.shape[-1])
    threshold = kth_largest(jax.lax.stop_gradient(scores), keep)
    above = scores > threshold
    equal = scores == threshold
    room = keep - jnp.sum(above, axis=-1, keepdims=True)
    stays = above | (equal & (jnp.cumsum(equal, axis=-1) <= room))
    return _straight_through(scores, stays.astype(scores.dtype))


def hard_mask(scores: jax.Array, keep: int | jax.Array) -> jax.Array:
    """`topk_mask` of a Python integer k, `ranked_mask` of a JAX array."""
    if isinstance(keep, jax.Array):
        return ranked_mask(scores, keep)
    return topk_mask(scores, keep)
