"""Correlation between two tables of similarities of the same personas.

Similarities of pairs are not independent: each persona is in many of them. So beside
the p value that takes them for independent, as the paper gives it, there is one from
permutations of the personas (Mantel, Cancer Research 27:209, 1967).
"""

import dataclasses
import itertools
import math

import numpy as np
from scipy import stats

PERMUTATIONS = 9999
# Up to 7 personas, 5040 orders, all are tried.
_MOST_TRIED = 5040
_FEWEST = 3
# Cosines that are equal but for rounding are no spread.
_SPREAD = 1e-9


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Pearson's r over pairs of personas.

    Attributes:
        r: None where it is not defined.
        p: two-sided, of pairs taken for independent.
        mantel_p: two-sided, by permutations of the personas.
        personas: how many there are.
        permutations: how many were tried, the order as it is included.
        undefined: why there is no r; '' where there is.
    """

    r: float | None
    p: float | None
    mantel_p: float | None
    personas: int
    permutations: int = 0
    undefined: str = ''

    @property
    def pairs(self) -> int:
        """How many pairs of personas."""
        return self.personas * (self.personas - 1) // 2


def correlate(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Correlation:
    """Correlates the pairs of two symmetric tables.

    Args:
        first: [P, P]; a persona with NaN on the diagonal of either table is left
            out.
        second: [P, P].
        seed: of the permutations, where not all are tried.

    Raises:
        ValueError: if the shapes differ, or another value is NaN.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f'wanted two tables [P, P], got {first.shape} {second.shape}.')
    known = ~np.isnan(first.diagonal() + second.diagonal())
    first, second = (table[np.ix_(known, known)] for table in (first, second))
    if np.isnan(first + second).any():
        raise ValueError('a similarity of two personas is not known.')
    count = len(first)
    if count < _FEWEST:
        reason = f'{_FEWEST} personas are needed, and there are {count}'
        return Correlation(None, None, None, count, undefined=reason)
    rows, columns = np.triu_indices(count, 1)
    pairs = first[rows, columns], second[rows, columns]
    if any(np.ptp(values) <= _SPREAD for values in pairs):
        reason = 'all similarities are equal'
        return Correlation(None, None, None, count, undefined=reason)
    found = stats.pearsonr(*pairs)
    mantel_p, tried = _mantel(first, pairs[1], float(found.statistic), seed)
    return Correlation(
        float(found.statistic), float(found.pvalue), mantel_p, count, tried
    )


def _mantel(
    table: np.ndarray, values: np.ndarray, r: float, seed: int
) -> tuple[float, int]:
    """The share of orders of personas whose |r| is as large, and how many there were."""
    count = len(table)
    rows, columns = np.triu_indices(count, 1)
    centred = values - values.mean()
    own = table[rows, columns]
    # The same values in all orders, so mean and spread of them are too.
    scale = np.linalg.norm(own - own.mean()) * np.linalg.norm(centred)
    if every := math.factorial(count) <= _MOST_TRIED:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        rng = np.random.default_rng(seed)
        orders = rng.permuted(np.tile(np.arange(count), (PERMUTATIONS, 1)), axis=1)
    as_large = 0
    for order in orders:
        moved = table[order[rows], order[columns]]
        as_large += bool(abs(moved @ centred / scale) >= abs(r) - 1e-9)
    if every:
        return as_large / len(orders), len(orders)
    return (as_large + 1) / (len(orders) + 1), len(orders) + 1
