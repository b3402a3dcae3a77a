"""How gradients pass the choice of channels: three estimators, one interface.

An estimator only decides what mask a training step sees and how its gradient
reaches the scores. Measurements and exports always use `topk.topk_mask(scores,
keep)`, whatever the estimator, so every exported layer has exactly k channels.

Hard-concrete gates (L0, Sheared-LLaMA) are left out: their Lagrange multipliers are
learned state of their own, and they meet k only on average.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from ppjax.masking import gumbel, soft_topk, topk

# For scores that start with a standard deviation of 0.1 in each layer: at first the
# softness spans it. At the end a layer of unmoved scores still has 1.7 % of its shares
# in (0.01, 0.99), and 0.6 % once they have spread to 0.3.
_EPSILON_START = 0.1
_EPSILON_END = 0.001


# Python's where they are the same for all steps, scalars of JAX where they change.
_Size = int | jax.Array
_Share = float | jax.Array


class Estimator(Protocol):
    """The mask of a training step."""

    def __call__(
        self, scores: jax.Array, keep: _Size, *, progress: _Share, key: jax.Array
    ) -> jax.Array:
        """Computes the mask values of the forward pass.

        Args:
            scores: z [..., F].
            keep: k in [1, F], an integer, or an integer scalar if k is annealed.
            progress: share of the steps done, in [0, 1].
            key: for estimators that draw; a new one every step.

        Returns:
            [..., F] in [0, 1], summing to k a row; differentiable in `scores`.

        Raises:
            ValueError: if `keep` is a Python integer outside [1, F].
        """
        ...


def _ste(
    scores: jax.Array, keep: _Size, *, progress: _Share, key: jax.Array
) -> jax.Array:
    """Hard top-k whose gradient passes unchanged (the paper's)."""
    del progress, key
    return topk.hard_mask(scores, keep)


def _gumbel(
    scores: jax.Array, keep: _Size, *, progress: _Share, key: jax.Array
) -> jax.Array:
    """Hard top-k of noisy scores; the noise matters less and less."""
    return gumbel.gumbel_topk(
        scores,
        keep,
        key,
        gumbel.temperature(progress),
        gumbel.score_multiplier(progress),
    )


def _soft_topk(
    scores: jax.Array, keep: _Size, *, progress: _Share, key: jax.Array
) -> jax.Array:
    """Soft shares that harden over the run.

    The model trains with shares and is exported with zeros and ones; eps falls, by
    the same factor every step, so that at the end this gap is small.
    """
    del key
    epsilon = _EPSILON_START * (_EPSILON_END / _EPSILON_START) ** jnp.asarray(progress)
    return soft_topk.soft_topk(scores, keep, epsilon)


_ESTIMATORS: dict[str, Estimator] = {
    'ste': _ste,
    'gumbel': _gumbel,
    'soft_topk': _soft_topk,
}
KINDS = tuple(_ESTIMATORS)


def make(kind: str) -> Estimator:
    """The estimator of a name in `KINDS`.

    Raises:
        ValueError: if there is none.
    """
    if kind not in _ESTIMATORS:
        raise ValueError(f'kind must be one of {KINDS}, got {kind!r}.')
    return _ESTIMATORS[kind]


def anneal_keep(
    progress: float | jax.Array, d_ff: int, keep: int, share: float
) -> jax.Array:
    """How many channels a step keeps when k falls during the run.

    k + (F - k) (1 - progress / share)^3, rounded to the nearest integer: F at first,
    quickly fewer, `keep` from `share` on.

    Args:
        progress: share of the steps done, in [0, 1].
        d_ff: F.
        keep: k at the end.
        share: of the run over which k falls, in (0, 1].

    Returns:
        An int32 scalar in [keep, F].

    Source: Zhu and Gupta, arXiv:1710.01878, Eq. 1.
    """
    left = jnp.maximum(1 - jnp.asarray(progress) / share, 0) ** 3
    return jnp.round(keep + (d_ff - keep) * left).astype(jnp.int32)
