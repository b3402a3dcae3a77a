"""Soft top-k: the entropy-regularised choice of k channels, solved exactly."""

import jax
import jax.numpy as jnp

from ppjax.masking import topk


def soft_topk(
    scores: jax.Array, keep: int | jax.Array, epsilon: float | jax.Array
) -> jax.Array:
    """Shares in (0, 1] that sum to k and favour the largest scores.

    Forward    p maximises z.p + eps * H(p) with H(p) = -sum_i p_i log p_i, subject to
               sum_i p_i = k and p_i <= 1. Hence p_i = min(1, exp((z_i + a) / eps))
               with the one number a a row that makes the sum k, found by bisection.
    Backward   With v = dL/dp, F = {i: p_i < 1} and w = p / sum_F p:
               dL/dz_i = (p_i / eps) * (v_i - sum_F w_j v_j) on F, 0 elsewhere.

    As eps -> 0, p becomes `topk.topk_mask` (equal scores share evenly). Adding a
    constant to a row of z changes nothing.

    The sources iterate a coordinate descent to the same p for a fixed number of
    times. That stops short when eps is small beside the spread of z: for F = 8192,
    k = 6144, z ~ N(0, 0.5^2), eps = 0.1, 20 iterations miss the sum by 3.5 %.

    Args:
        scores: z [..., F], finite; the shares are right to the precision of its
            dtype, for (max z - min z) / eps up to 1e4 and beyond.
        keep: k in [1, F], an integer or an integer scalar. k = F gives ones.
        epsilon: eps > 0. No gradient reaches it, nor `keep`.

    Returns:
        p [..., F]; shares below the smallest number of the dtype are 0.

    Raises:
        ValueError: if `keep` is a Python integer outside [1, F].

    Source: CoLT5, arXiv:2303.09752; Conditional Adapters (CoDA), Lei et al.,
        arXiv:2304.04947, appendix on soft top-k.
    """
    topk.check_keep(keep, scores.shape[-1])
    return _soft_topk(scores, keep, epsilon)


@jax.custom_vjp
def _soft_topk(
    scores: jax.Array, keep: int | jax.Array, epsilon: float | jax.Array
) -> jax.Array:
    num_channels = scores.shape[-1]
    target = jnp.asarray(keep, scores.dtype)
    # Measured from the k-th largest score, a lies near 0 whatever the scores are, so
    # no precision is lost to their size: at a = 0 the first k shares are 1, and at
    # a / eps = -log(F - k + 1) the others, and the k-th, sum to at most 1.
    distance = (scores - topk.kth_largest(scores, keep)) / epsilon
    high = jnp.zeros_like(distance[..., :1])
    low = high - jnp.log(num_channels - target + 1)

    def shares(offset: jax.Array) -> jax.Array:
        return jnp.exp(jnp.minimum(distance + offset, 0))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(shares(middle), axis=-1, keepdims=True) >= target
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # The bounds start less than 2^4 apart; then one step a bit, and some to spare.
    steps = jnp.finfo(scores.dtype).nmant + 8
    _, high = jax.lax.fori_loop(0, steps, halve, (low, high))
    return shares(high)


def _forward(
    scores: jax.Array, keep: int | jax.Array, epsilon: float | jax.Array
) -> tuple[jax.Array, tuple[jax.Array, float | jax.Array]]:
    shares = _soft_topk(scores, keep, epsilon)
    return shares, (shares, epsilon)


def _backward(
    residuals: tuple[jax.Array, float | jax.Array], grad: jax.Array
) -> tuple[jax.Array, None, None]:
    shares, epsilon = residuals
    free = jnp.where(shares < 1, shares, 0)
    total = jnp.sum(free, axis=-1, keepdims=True)
    # Where every share is 1 or has vanished, nothing is free and nothing moves.
    weights = free / jnp.where(total > 0, total, 1)
    mean = jnp.sum(weights * grad, axis=-1, keepdims=True)
    return free / epsilon * (grad - mean), None, None


_soft_topk.defvjp(_forward, _backward)
