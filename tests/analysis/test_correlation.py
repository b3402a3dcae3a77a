"""Pearson's r and its p values: SciPy, and every order of personas."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ppjax.analysis import correlation


def _table(rng, count):
    table = rng.random((count, count))
    table = (table + table.T) / 2
    np.fill_diagonal(table, 1.0)
    return table


def _pairs(table):
    return table[np.triu_indices(len(table), 1)]


@pytest.mark.parametrize('count', [3, 4, 6, 9])
def test_r_and_p_equal_scipys(count):
    rng = np.random.default_rng(count)
    first, second = _table(rng, count), _table(rng, count)
    found = correlation.correlate(first, second)
    wanted = stats.pearsonr(_pairs(first), _pairs(second))
    assert found.r == pytest.approx(wanted.statistic, abs=1e-12)
    assert found.p == pytest.approx(wanted.pvalue, abs=1e-12)
    assert (found.personas, found.pairs) == (count, count * (count - 1) // 2)


@pytest.mark.parametrize('count', [3, 4, 5])
def test_mantel_p_is_the_share_of_all_orders(count):
    rng = np.random.default_rng(1)
    first = _table(rng, count)
    second = first + 0.4 * _table(rng, count)
    as_large = 0
    own = np.corrcoef(_pairs(first), _pairs(second))[0, 1]
    orders = list(itertools.permutations(range(count)))
    for order in orders:
        moved = first[np.ix_(order, order)]
        as_large += (
            abs(np.corrcoef(_pairs(moved), _pairs(second))[0, 1]) >= abs(own) - 1e-9
        )
    found = correlation.correlate(first, second)
    assert found.permutations == len(orders)
    assert found.mantel_p == pytest.approx(as_large / len(orders))
    assert 0 < found.mantel_p < 1


def test_mantel_p_of_many_personas_is_drawn():
    rng = np.random.default_rng(2)
    first = _table(rng, 9)
    related = correlation.correlate(first, first + 0.2 * _table(rng, 9))
    assert related.permutations == correlation.PERMUTATIONS + 1
    assert related.mantel_p <= 3 / related.permutations
    # The order as it is counts too: no p value is 0.
    table = _table(rng, 12)
    assert correlation.correlate(table, table).mantel_p == 1 / related.permutations
    other = _table(rng, 9)
    unrelated = correlation.correlate(first, other, seed=3)
    assert unrelated.mantel_p > 0.05
    assert unrelated == correlation.correlate(first, other, seed=3)
    assert unrelated.mantel_p != correlation.correlate(first, other, seed=4).mantel_p


def test_pairs_taken_for_independent_overstate_what_one_persona_does():
    # One persona is unlike all others in both tables; else they are unrelated.
    rng = np.random.default_rng(0)
    first, second = (0.1 * _table(rng, 7) for _ in range(2))
    for table in (first, second):
        table[0, 1:] += 1
        table[1:, 0] += 1
    found = correlation.correlate(first, second)
    assert found.p < 1e-6
    assert found.mantel_p > 0.01


def test_order_of_personas_is_no_matter():
    rng = np.random.default_rng(4)
    first, second = _table(rng, 6), _table(rng, 6)
    found = correlation.correlate(first, second)
    order = rng.permutation(6)
    moved = correlation.correlate(
        first[np.ix_(order, order)], second[np.ix_(order, order)]
    )
    assert moved.r == pytest.approx(found.r, abs=1e-12)
    assert moved.mantel_p == found.mantel_p


def test_what_is_constant_has_no_r():
    rng = np.random.default_rng(0)
    same = np.full((4, 4), 0.6) + 1e-13 * _table(rng, 4)
    found = correlation.correlate(_table(rng, 4), same)
    assert (found.r, found.p, found.mantel_p) == (None, None, None)
    assert found.undefined == 'all similarities are equal'


def test_personas_that_a_table_lacks_are_left_out():
    rng = np.random.default_rng(6)
    first, second = _table(rng, 5), _table(rng, 5)
    holed = second.copy()
    holed[2], holed[:, 2] = np.nan, np.nan
    kept = [0, 1, 3, 4]
    wanted = correlation.correlate(
        first[np.ix_(kept, kept)], second[np.ix_(kept, kept)]
    )
    assert correlation.correlate(first, holed) == wanted
    two = correlation.correlate(first[:2, :2], second[:2, :2])
    assert two.r is None
    assert two.undefined == '3 personas are needed, and there are 2'
    holed[0, 1] = np.nan
    with pytest.raises(ValueError, match='not known'):
        correlation.correlate(first, holed)
    with pytest.raises(ValueError, match='two tables'):
        correlation.correlate(first, second[:4, :4])
