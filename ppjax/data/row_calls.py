"""Items of like length packed whole into rows, in calls of a few fixed shapes."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from ppjax.data import packing

# The shortest rows. Attention within a row costs its length a token, so long items
# get rows of their own.
_SHORTEST_ROW = 128


@dataclasses.dataclass(frozen=True)
class Call:
    """What is run at a time.

    Attributes:
        capacity: C, tokens a row.
        size: B, rows, of which the last may be empty.
        rows: the items of each row that has any.
    """

    capacity: int
    size: int
    rows: list[list[int]]


def _capacities(lengths: np.ndarray) -> np.ndarray:
    """The row length for each item: two sizes an octave."""
    power = 2 ** np.ceil(np.log2(lengths)).astype(int)
    fitting = np.where(4 * lengths <= 3 * power, 3 * power // 4, power)
    return np.maximum(_SHORTEST_ROW, fitting)


def _rows(lengths: np.ndarray, items: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit rows of one call's items."""
    chunks = packing.assign_chunks([int(lengths[i]) for i in items], capacity)
    return [[items[place] for place in chunk] for chunk in chunks]


def _calls(
    lengths: np.ndarray, items: list[int], capacity: int, rows: int
) -> list[list[list[int]]]:
    """Cuts items of one capacity into calls of at most `rows` rows."""
    calls, start, carried = [], 0, list[int]()
    while start < len(items) or carried:
        # As many as would fill the call exactly, then the rows that fit.
        taken, total = carried, int(lengths[carried].sum()) if carried else 0
        while start < len(items) and total < rows * capacity:
            taken.append(items[start])
            total += int(lengths[items[start]])
            start += 1
        packed = _rows(lengths, taken, capacity)
        # The emptiest rows wait for the next call.
        packed.sort(key=lambda row: -int(lengths[row].sum()))
        calls.append(packed[:rows])
        carried = [item for row in packed[rows:] for item in row]
    return calls


def plan(lengths: Sequence[int], *, batch_tokens: int, row_multiple: int) -> list[Call]:
    """Packs all items, deterministically.

    Args:
        lengths: tokens of each item, at least 1.
        batch_tokens: about how many tokens a call should run.
        row_multiple: B is a multiple of this (data-parallel devices).

    Returns:
        Calls; those of one capacity have one size.
    """
    sizes = np.array(lengths)
    capacities = _capacities(sizes)
    planned = []
    for capacity in np.unique(capacities).tolist():
        items = np.nonzero(capacities == capacity)[0].tolist()
        most = max(1, batch_tokens // capacity)
        if int(sizes[items].sum()) <= 4 * most * capacity:
            # Few calls: as even as they can be, or the last one would run padding.
            needed = len(_rows(sizes, items, capacity))
            most = -(-needed // -(-needed // most))
        size = -(-most // row_multiple) * row_multiple
        planned += [
            Call(capacity, size, rows) for rows in _calls(sizes, items, capacity, size)
        ]
    return planned
