"""Queries packed into rows, as the arrays that a call of the model takes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppjax.data import row_calls


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
    calls = row_calls.plan(
        [len(suffix) for suffix in suffixes],
        batch_tokens=batch_tokens,
        row_multiple=row_multiple,
    )
    most_queries: dict[int, int] = {}
    for call in calls:
        longest = max(len(row) for row in call.rows)
        most = most_queries.get(call.capacity, 0)
        most_queries[call.capacity] = max(most, longest)
    return [_arrays(suffixes, call, most_queries[call.capacity]) for call in calls]


def _arrays(
    suffixes: Sequence[np.ndarray], call: row_calls.Call, most_queries: int
) -> PackedQueries:
    tokens = np.zeros((call.size, call.capacity), np.int32)
    offsets, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    ends = np.zeros((call.size, most_queries), np.int32)
    owners = np.full_like(ends, -1)
    for row, queries in enumerate(call.rows):
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
