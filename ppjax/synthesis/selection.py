"""Which queries are kept, and which of them are for testing."""

from collections.abc import Sequence

import numpy as np


def ranking(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Queries by falling score; equal scores keep their order."""
    return np.argsort(-np.asarray(scores, np.float64), kind='stable')


def select(scores: Sequence[float] | np.ndarray, keep_fraction: float) -> np.ndarray:
    """The `keep_fraction` of queries with the highest scores, highest first.

    Exactly round(fraction x n) of them, and one at least (paper, section 3.1: 40%).
    """
    count = max(1, round(keep_fraction * len(scores)))
    return ranking(scores)[:count]
