"""Within against between: by hand, and where sub-networks are planted."""

import numpy as np
import pytest

from ppjax.analysis import closeness, overlap

_ANY = [[1, 0]]


def _similarity(values):
    """Symmetric, from what is above the diagonal."""
    table = np.array(values, float)
    return np.triu(table, 1) + np.triu(table, 1).T + np.eye(len(table))


def test_by_hand(compare):
    masks = compare(
        ('jack', 'seed 0', _ANY),
        ('jack', 'seed 1', _ANY),
        ('walt', 'seed 0', _ANY),
        ('walt', 'seed 1', _ANY),
    )
    similarity = _similarity(
        [[0, 0.9, 0.5, 0.2], [0, 0, 0.3, 0.6], [0, 0, 0, 0.7], [0, 0, 0, 0]]
    )
    names = ['walt', 'jack']
    found = closeness.measure(masks, similarity, names, named=True)
    assert found.within == closeness.Mean(pytest.approx(0.8), None, 2)
    assert found.between == closeness.Mean(pytest.approx(0.4), None, 4)
    assert found.between_same == closeness.Mean(pytest.approx(0.55), None, 2)
    assert found.between_other == closeness.Mean(pytest.approx(0.25), None, 2)
    # Of two seeds on both sides.
    assert found.difference == closeness.Mean(pytest.approx(0.55), None, 4)
    numbered = closeness.measure(masks, similarity, names, named=False)
    assert numbered.between_same is numbered.between_other is None
    assert numbered.difference == closeness.Mean(pytest.approx(0.4), None, 6)
    means, numbers = closeness.table(masks, similarity, names)
    np.testing.assert_allclose(means, [[0.7, 0.4], [0.4, 0.9]])
    np.testing.assert_array_equal(numbers, [[1, 4], [4, 1]])


def test_personas_weigh_the_same_however_many_masks_they_have(compare):
    masks = compare(
        ('jack', '1', _ANY),
        ('jack', '2', _ANY),
        ('jack', '3', _ANY),
        ('walt', '1', _ANY),
        ('walt', '2', _ANY),
    )
    table = np.full((5, 5), 0.1)
    table[:3, :3], table[3:, 3:] = 0.9, 0.5
    found = closeness.measure(masks, _similarity(table), ['jack', 'walt'], named=False)
    assert found.within.value == pytest.approx((0.9 + 0.5) / 2)
    assert found.within.pairs == 3 + 1


def test_planted_sub_networks_are_found(compare, planted):
    masks = compare(*((name, f'seed {s}', kept) for (name, s), kept in planted.items()))
    overlaps = overlap.Overlaps.of(list(planted.values()))
    names = ['persona0', 'persona1', 'persona2']
    found = closeness.measure(masks, overlaps.jaccard(), names, named=True)
    low, high = found.difference.interval
    assert 0.1 < low < found.difference.value < high
    low, high = found.within.interval
    assert low <= found.within.value <= high
    assert found.within.pairs == 3 * 3
    assert found.between.pairs == 3 * 9
    assert found.between_same.pairs + found.between_other.pairs == 27
    # Personas 0 and 1 share half of their sub-networks, persona 2 has its own.
    means, _ = closeness.table(masks, overlaps.jaccard(), names)
    assert means[0, 1] > means[0, 2] + 0.03
    assert means[0, 2] == pytest.approx(overlaps.chance()[0, -1], abs=0.05)


def test_intervals_are_over_personas(compare):
    """Of P personas that differ, the mean's spread is near std / sqrt(P)."""
    rng = np.random.default_rng(0)
    count = 40
    masks = compare(*((f'p{x // 2}', f'{x % 2}', _ANY) for x in range(2 * count)))
    own = rng.normal(0.5, 0.1, count)
    table = np.zeros((2 * count, 2 * count))
    table[range(0, 2 * count, 2), range(1, 2 * count, 2)] = own
    names = [f'p{x}' for x in range(count)]
    found = closeness.measure(masks, _similarity(table), names, named=False)
    low, high = found.within.interval
    assert high - low == pytest.approx(2 * 1.96 * own.std() / count**0.5, rel=0.15)
    assert found.between.interval == (0.0, 0.0)


def test_what_there_are_no_pairs_of_is_none(compare):
    alone = compare(('jack', '1', _ANY), ('jack', '2', _ANY))
    found = closeness.measure(alone, _similarity([[0, 0.4], [0, 0]]), ['jack'], named=1)
    assert found.within.value == pytest.approx(0.4)
    assert found.between is found.between_same is found.difference is None
    single = compare(('jack', '1', _ANY), ('walt', '1', _ANY))
    found = closeness.measure(
        single, _similarity([[0, 0.4], [0, 0]]), ['jack', 'walt'], named=True
    )
    assert found.within is found.difference is found.between_other is None
    assert found.between_same.value == pytest.approx(0.4)
