"""From scores z to a mask with exactly k channels a layer (paper, Eq. 5)."""

import functools

import jax
import jax.numpy as jnp

from ppjax import errors


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
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
    num_channels = scores.shape[-1]
    if not 1 <= keep <= num_channels:
        raise ValueError(f'keep must be in [1, {num_channels}], got {keep}.')
    off = jnp.zeros_like(scores)
    # `top_k` puts -0.0 below 0.0, where they are equal to everyone else.
    _, kept = jax.lax.top_k(jnp.where(scores == 0, off, scores), keep)  # [..., keep]
    return jnp.put_along_axis(off, kept, 1, axis=-1, inplace=False)


def _forward(scores: jax.Array, keep: int) -> tuple[jax.Array, None]:
    return topk_mask(scores, keep), None


def _backward(keep: int, residuals: None, grad: jax.Array) -> tuple[jax.Array]:
    del keep, residuals
    return (grad,)


topk_mask.defvjp(_forward, _backward)
