"""Average linkage, by hand."""

import numpy as np
import pytest

from ppjax.analysis import clustering


def test_by_hand():
    similarity = np.eye(4)
    for first, second, value in (
        *((0, 2, 0.9), (1, 3, 0.7), (0, 1, 0.4), (0, 3, 0.3)),
        *((2, 1, 0.2), (2, 3, 0.1)),
    ):
        similarity[first, second] = similarity[second, first] = value
    found = clustering.tree(similarity)
    heights = [max(distances) for _, distances in found.merges]
    assert sorted(heights) == pytest.approx([0.1, 0.3, 0.75])
    assert {frozenset(found.order[:2]), frozenset(found.order[2:])} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }
    ends = sorted(
        places[corner]
        for places, distances in found.merges
        for corner in (0, 3)
        if min(distances[0], distances[3]) == 0
    )
    assert ends == [0, 1, 2, 3]


def test_what_is_no_table_of_similarities_is_refused():
    with pytest.raises(ValueError, match='two at least'):
        clustering.tree(np.eye(1))
    with pytest.raises(ValueError, match='two at least'):
        clustering.tree(np.full((2, 2), np.nan))
