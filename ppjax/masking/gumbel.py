"""Gumbel-softmax over channels, in its top-k form, and MaskLLM's schedules."""

import jax
import jax.numpy as jnp

from ppjax.masking import soft_topk, topk


def gumbel_topk(
    scores: jax.Array,
    keep: int | jax.Array,
    key: jax.Array,
    tau: float | jax.Array,
    multiplier: float | jax.Array,
) -> jax.Array:
    """A random mask of exactly k channels, drawn in favour of large scores.

    Forward    m = top-k of y = c z + g, with g_i = -log(-log u_i), u_i ~ U(0, 1): k
               channels drawn one after another without replacement, each with
               probability proportional to exp(c z_i) among those left.
    Backward   that of soft top-k p(y, k, tau): dL/dz = c * (dp/dy)^T dL/dm.

    For k = 1 this is the straight-through Gumbel-softmax: p is then softmax(y / tau).

    Args:
        scores: z [..., F].
        keep: k in [1, F], an integer or an integer scalar.
        key: of the noise g, which every entry of `scores` has its own of.
        tau: the temperature of the backward pass, > 0.
        multiplier: c, what the scores weigh against the noise.

    Returns:
        m [..., F] of zeros and ones, exactly k ones a row.

    Raises:
        ValueError: if `keep` is a Python integer outside [1, F].

    Source: Jang et al., arXiv:1611.01144 (Gumbel-softmax); Kool et al.,
        arXiv:1903.06059 (Gumbel top-k); MaskLLM, arXiv:2409.17481 (for masks).
    """
    noise = jax.random.gumbel(key, scores.shape, scores.dtype)
    noisy = scores * multiplier + noise
    soft = soft_topk.soft_topk(noisy, keep, tau)
    hard = jax.lax.stop_gradient(topk.hard_mask(noisy, keep))
    # soft - soft is exactly 0, so the values are those of the hard mask.
    return hard + (soft - jax.lax.stop_gradient(soft))


def temperature(progress: float | jax.Array) -> jax.Array:
    """tau of MaskLLM: linear from 4 to 0.05 while `progress` goes from 0 to 1."""
    return 4 + (0.05 - 4) * jnp.asarray(progress)


def score_multiplier(progress: float | jax.Array) -> jax.Array:
    """c: linear from 10 to 50 while `progress` goes from 0 to 1.

    What counts is c times the spread of the scores, beside noise of standard
    deviation 1.3. MaskLLM has c from 100 to 500 for scores that start with a standard
    deviation of 0.01, a product of 1 to 5; ours start with 0.1.
    """
    return 10 + (50 - 10) * jnp.asarray(progress)
