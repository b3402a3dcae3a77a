"""Gains: what each kept channel is multiplied by."""

import jax
import numpy as np

from ppjax.base import errors

# In mask files, and whatever is measured or exported of gains.
DTYPE = np.dtype(np.float16)


def check(gains: np.ndarray, shape: tuple[int, int]) -> None:
    """Raises ValueError for what are no gains of a shape."""
    if gains.dtype != DTYPE or gains.shape != shape:
        raise ValueError(
            f'gains must be {DTYPE} {shape}, got {gains.dtype} {gains.shape}.'
        )
    if bad := int((~np.isfinite(gains)).sum()):
        raise ValueError(f'{bad} of {gains.size} gains are not finite.')


def rounded(gains: jax.Array) -> jax.Array:
    """Gains as mask files have them, still float32."""
    return gains.astype(DTYPE).astype(gains.dtype)


def stored(gains: jax.Array) -> np.ndarray:
    """Gains as mask files have them.

    Raises:
        InputError: if one is not finite.
    """
    with np.errstate(over='ignore'):
        found = np.asarray(gains).astype(DTYPE)
    if bad := int((~np.isfinite(found)).sum()):
        raise errors.InputError(
            f'{bad} of {found.size} gains are not finite as {DTYPE}; lower '
            '--gain_learning_rate.'
        )
    return found


def of_masks(known: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Gains from masks that were learned before.

    Args:
        known: bool [M, L, F], the channels that each mask has gains of, or keeps.
        gains: float32 [M, L, F], 1 where a mask keeps a channel as it is.

    Returns:
        [L, F] float32: of every channel the mean over the masks that know it, and 1
        where none does.
    """
    counts = known.sum(axis=0)
    sums = np.where(known, gains, 0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
