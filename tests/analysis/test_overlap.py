"""Jaccard similarity: by hand, by NumPy's sets, and by chance."""

import numpy as np
import pytest

from ppjax.analysis import overlap

_A = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
_B = np.array([[0, 1, 1, 0], [1, 0, 0, 0]], bool)


def test_by_hand():
    found = overlap.Overlaps.of([_A, _B])
    # Layer 1 shares 1 of 3, layer 2 1 of 3; together 2 of 6.
    np.testing.assert_allclose(found.by_layer()[:, 0, 1], [1 / 3, 1 / 3])
    np.testing.assert_allclose(found.jaccard(), [[1, 1 / 3], [1 / 3, 1]])
    # 2 * 2 / 4 and 3 * 1 / 4 are shared by chance.
    np.testing.assert_allclose(found.chance()[0, 1], 1.75 / (5 + 3 - 1.75))
    np.testing.assert_allclose(
        found.chance_by_layer()[:, 0, 1], [1 / (4 - 1), 0.75 / (4 - 0.75)]
    )
    np.testing.assert_array_equal(found.widths, [[2, 2], [3, 1]])


def test_layers_weigh_by_what_they_keep():
    wide = np.array([[1] * 9 + [0], [1] + [0] * 9], bool)
    other = np.array([[1] * 9 + [0], [0, 1] + [0] * 8], bool)
    found = overlap.Overlaps.of([wide, other])
    assert found.jaccard()[0, 1] == pytest.approx(9 / 11)
    assert found.by_layer()[:, 0, 1].mean() == 0.5


def test_equals_sets(planted):
    masks = list(planted.values())
    found = overlap.Overlaps.of(masks).jaccard()
    for i, first in enumerate(masks):
        for j, second in enumerate(masks):
            a, b = (set(np.flatnonzero(mask).tolist()) for mask in (first, second))
            assert found[i, j] == pytest.approx(len(a & b) / len(a | b), abs=1e-12)


def test_chance_is_what_random_masks_have():
    rng = np.random.default_rng(0)
    layers, units, keep = 20, 400, (300, 100)
    masks = [
        rng.random((layers, units)).argsort(axis=1) < keep[number % 2]
        for number in range(24)
    ]
    found = overlap.Overlaps.of(masks)
    measured, expected = found.jaccard(), found.chance()
    for first, second in ((0, 0), (0, 1), (1, 1)):
        pairs = np.zeros((24, 24), bool)
        pairs[first::2, second::2] = True
        pairs &= ~np.eye(24, dtype=bool)
        assert measured[pairs].mean() == pytest.approx(expected[pairs][0], abs=2e-3)
    # At a sparsity of 25 % it is 0.75 / 1.25.
    assert expected[0, 0] == pytest.approx(0.6)


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match='of one shape'):
        overlap.Overlaps.of([_A, _A[:, :3]])
    with pytest.raises(ValueError, match='bool'):
        overlap.Overlaps.of([_A.astype(int), _B.astype(int)])
