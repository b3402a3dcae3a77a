"""Queries of like length packed into rows, in calls of a few fixed shapes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppjax.data import packing

# A row holds whole queries; the shortest rows. Attention within a row costs its
# length a token, so long queries get rows of their own.
_SHORTEST_ROW = 128


class PackedQueries(NamedTuple):
    """The queries of one call.

    Axes: B rows of C tokens; M queries a row at most.

    Attributes:
        tokens: int32 [B, C].
        offsets: int32 [B, C], a token's place in its own query.
        segments: int32 [B, C]; 1, 2, ... for queries, 0 for padding.
        ends: int32 [B, M], where a query's last token is.
        owners: int32 [B, M], which query it is; -1 for none.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    segments: np.ndarray
    ends: np.ndarray
    owners: np.ndarray


def _capacities(lengths: np.ndarray) -> np.ndarray:
    """The row length for each query: two sizes an octave."""
    power = 2 ** np.ceil(np.log2(lengths)).astype(int)
    fitting = np.where(4 * lengths <= 3 * power, 3 * power // 4, power)
    return np.maximum(_SHORTEST_ROW, fitting)


def _rows(
    lengths: np.ndarray, queries: Sequence[int], capacity: int
) -> list[list[int]]:
    """Best-fit rows of one call's queries."""
    chunks = packing.assign_chunks([int(lengths[q]) for q in queries], capacity)
    return [[queries[item] for item in chunk] for chunk in chunks]


def _calls(
    lengths: np.ndarray, queries: list[int], capacity: int, rows: int
) -> list[list[list[int]]]:
    """Cuts queries of one capacity into calls of at most `rows` rows."""
    calls, start, carried = [], 0, list[int]()
    while start < len(queries) or carried:
        # As many as would fill the call exactly, then the rows that fit.
        taken, total = carried, int(lengths[carried].sum()) if carried else 0
        while start < len(queries) and total < rows * capacity:
            taken.append(queries[start])
            total += int(lengths[queries[start]])
            start += 1
        packed = _rows(lengths, taken, capacity)
        # The emptiest rows wait for the next call.
        packed.sort(key=lambda row: -int(lengths[row].sum()))
        calls.append(packed[:rows])
        carried = [query for row in packed[rows:] for query in row]
    return calls


def pack(
    suffixes: Sequence[np.ndarray], *, batch_tokens: int, row_multiple: int
) -> list[PackedQueries]:
    """Packs all queries, deterministically.

    Args:
        suffixes: token ids of each query.
        batch_tokens: about how many tokens a call should run.
        row_multiple: B is a multiple of this (data-parallel devices).

    Returns:
        Calls; those with rows of the same length have the same shapes.
    """
    lengths = np.array([len(suffix) for suffix in suffixes])
    capacities = _capacities(lengths)
    packed = []
    for capacity in np.unique(capacities):
        queries = np.nonzero(capacities == capacity)[0].tolist()
        most = max(1, batch_tokens // int(capacity))
        total = int(lengths[queries].sum())
        if total <= 4 * most * capacity:
            # Few calls: as even as they can be, or the last one would run padding.
            needed = len(_rows(lengths, queries, int(capacity)))
            most = -(-needed // -(-needed // most))
        rows = -(-most // row_multiple) * row_multiple
        calls = _calls(lengths, queries, int(capacity), rows)
        most_queries = max(len(row) for call in calls for row in call)
        packed += [
            _arrays(suffixes, call, rows, int(capacity), most_queries) for call in calls
        ]
    return packed


def _arrays(
    suffixes: Sequence[np.ndarray],
    call: list[list[int]],
    rows: int,
    capacity: int,
    most_queries: int,
) -> PackedQueries:
    tokens = np.zeros((rows, capacity), np.int32)
    offsets, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    ends = np.zeros((rows, most_queries), np.int32)
    owners = np.full_like(ends, -1)
    for row, queries in enumerate(call):
        start = 0
        for place, query in enumerate(queries):
            own = slice(start, start + len(suffixes[query]))
            tokens[row, own] = suffixes[query]
            offsets[row, own] = np.arange(len(suffixes[query]))
            segments[row, own] = place + 1
            ends[row, place] = own.stop - 1
            owners[row, place] = query
            start = own.stop
    return PackedQueries(tokens, offsets, segments, ends, owners)
