"""Ridge regression that starts from the rows as they are, in float64 on the host.

Of activations a and what is left of the target, e = t - a W0, the change of the rows is

    D = (G + P)^-1 C,    G = sum a a^T,    C = sum a e^T,

where P is diagonal: the damping times the mean of G's diagonal for a channel, and 0 for
a bias. Damping pulls towards W0, so that nothing changes where nothing is missing.

Source: for calibrated pruning GRAIL (arXiv:2602.23795) and OSSCAR (arXiv:2403.12983),
    which pull towards 0; the bias is FLAP's (arXiv:2312.11983) where it is all that
    is fitted.
"""

import numpy as np
import scipy.linalg

from ppjax.base import errors


class Sums:
    """What all texts seen so far come to; one layer's matrix and no more.

    Attributes:
        gram: G, float64 [k, k].
        cross: C, float64 [k, D].
        energy: sum |e|^2.
        weight: of all tokens.
    """

    def __init__(self, size: int, width: int):
        """Args:
        size: k, with the column of ones where there is a bias.
        width: D.
        """
        self.gram = np.zeros((size, size))
        self.cross = np.zeros((size, width))
        self.energy = self.weight = 0.0

    def add_rows(self, start: int, gram: np.ndarray, cross: np.ndarray) -> None:
        """Adds some rows of one batch's matrices, the first of them `start`."""
        own = slice(start, start + len(gram))
        self.gram[own] += gram
        self.cross[own] += cross

    def check_finite(self, layer: int) -> None:
        """Raises:
        InputError: if activations or targets were not finite.
        """
        # A row of G that is not finite makes its diagonal so.
        if not np.isfinite([self.energy, self.gram.trace(), self.cross.sum()]).all():
            raise errors.InputError(
                f'Layer {layer}: activations of these texts are not finite; look at '
                'them, or try --dtype=float32.'
            )


def _penalty(sums: Sums, damping: float, biased: bool) -> np.ndarray:
    """P's diagonal [k]."""
    size = len(sums.gram) - biased
    penalty = np.zeros(len(sums.gram))
    penalty[:size] = damping * sums.gram.diagonal()[:size].mean()
    return penalty


# What rounding to float32 may have made of an entry of G, as a share of the root of
# its two diagonal entries: nothing, then ever more. Qwen2.5 has channels of activations
# so large, and so much alike, that G's least eigenvalue is below 0 by 1e-6 of theirs.
_ROUNDING = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)


def solve(sums: Sums, damping: float, *, biased: bool) -> np.ndarray:
    """D, float64 [k, D]; takes a second matrix of G's size while it runs.

    Args:
        sums: of the texts.
        damping: positive.
        biased: whether the last of the k is the bias.

    Raises:
        InputError: if G is not one of activations, whatever rounding did to it.
    """
    penalty = _penalty(sums, damping, biased)
    if not penalty.any():  # Channels that are never active: nothing to go by.
        return np.zeros_like(sums.cross)
    for share in _ROUNDING:
        system = sums.gram.copy()
        system[np.diag_indices(len(system))] *= 1 + share
        system[np.diag_indices(len(system))] += penalty
        try:
            # LAPACK's order, so that it works in place.
            factor = scipy.linalg.cho_factor(
                system.T, lower=True, overwrite_a=True, check_finite=False
            )
        except np.linalg.LinAlgError:
            continue
        return scipy.linalg.cho_solve(factor, sums.cross, check_finite=False)
    raise errors.InputError(
        f'No rows can be fitted with --damping={damping:g}: the activations are too '
        'much alike for their precision; try larger ones, or --dtype=float32.'
    )


def left(sums: Sums, change: np.ndarray, damping: float, *, biased: bool) -> float:
    """sum |e - a D|^2 of the texts that `solve` made D of.

    Since (G + P) D = C it is the energy less <D, C> and <D, P D>.
    """
    penalty = _penalty(sums, damping, biased)
    gained = np.sum(change * sums.cross) + penalty @ np.square(change).sum(axis=1)
    return max(0.0, sums.energy - float(gained))
