"""A global budget: all layers together keep so many channels, each its own number."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.masking import gains as gains_lib

KINDS = ('uniform', 'global')


class Budget(NamedTuple):
    """What bounds the widths of layers beside their sum.

    Attributes:
        multiple: every layer keeps a multiple of it.
        floor: and so many at least.
    """

    multiple: int
    floor: int

    def check(self, keep: int) -> None:
        """Raises:
        InputError: if layers that keep `keep` on average cannot all keep the floor.
        """
        if self._least > keep:
            raise errors.InputError(
                f'--width_floor={self.floor} is {self._least} as a multiple of '
                f'--align={self.multiple}, more than the {keep} channels that a layer '
                'keeps on average.'
            )

    @property
    def _least(self) -> int:
        """The floor as a multiple."""
        return max(1, -(-self.floor // self.multiple)) * self.multiple

    def widths(self, scores: jax.Array, keep: int) -> jax.Array:
        """How many channels each layer keeps.

        A layer's channels in the order of their scores are cut into units of
        `multiple`; a unit's worth is the mean of its scores, so that it falls along the
        layer. Of all layers' units those of most worth are kept, each layer's first ones
        in any case; equals are broken towards the lower layer.

        Args:
            scores: z [L, F].
            keep: k, a multiple of `multiple`, that layers keep on average.

        Returns:
            int32 [L, 1], which add up to L k.
        """
        layers, channels = scores.shape
        units = channels // self.multiple
        ordered = -jnp.sort(-jax.lax.stop_gradient(scores), axis=-1)
        ordered = ordered[:, : units * self.multiple]
        worth = jnp.mean(ordered.reshape(layers, units, self.multiple), axis=-1)
        first = jnp.arange(units) < self._least // self.multiple
        worth = jnp.where(first[None], jnp.inf, worth)
        _, kept = jax.lax.top_k(worth.reshape(-1), layers * keep // self.multiple)
        counts = jnp.bincount(kept // units, length=layers)
        return (counts * self.multiple).astype(jnp.int32)[:, None]


def padded(
    mask: np.ndarray, gains: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A mask of one width, and gains that are 0 beyond what each layer keeps.

    Checkpoints have one `intermediate_size`: narrower layers get dropped channels back,
    the first ones, and the zeros take them out again.

    Args:
        mask: bool [L, F] of any widths.
        gains: float16 [L, F], or None for 1.

    Returns:
        (bool [L, F] of the largest width k, float16 [L, k] in the order of its
        channels).
    """
    counts = mask.sum(axis=1)
    missing = counts.max() - counts
    spare = ~mask & (np.cumsum(~mask, axis=1) <= missing[:, None])
    whole = mask | spare
    values = np.ones(mask.shape, gains_lib.DTYPE) if gains is None else gains
    scaled = np.where(mask, values, gains_lib.DTYPE.type(0))
    return whole, scaled[whole].reshape(len(mask), -1)


def start_scores(scores: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Scores of one distribution in every layer, moved so that widths come of them.

    Args:
        scores: z [L, F].
        widths: [L], what each layer is to keep.

    Returns:
        z [L, F] of which those above 0 are `widths` a layer, but for rounding.
    """
    channels = scores.shape[1]
    ordered = -np.sort(-scores, axis=1)
    border = np.clip(np.round(widths).astype(int), 1, channels - 1)
    rows = np.arange(len(scores))
    middle = (ordered[rows, border - 1] + ordered[rows, border]) / 2
    return scores - middle[:, None]
