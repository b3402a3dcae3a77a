"""Means, pairs and spreads against numbers that were worked out by hand."""

import math

import pytest

from ppjax.sweeping import aggregate, grid, results

_AXES = (
    grid.Axis('persona', ('a', 'b', 'global')),
    grid.Axis('estimator', ('ste', 'gumbel')),
    grid.Axis('seed', (0, 1)),
)
# (persona, estimator, seed) -> learned minus dense.
_GAINS = {
    ('a', 'ste', 0): 0.10,
    ('a', 'ste', 1): 0.20,
    ('a', 'gumbel', 0): 0.30,
    ('a', 'gumbel', 1): 0.60,
    ('b', 'ste', 0): 0.50,
    ('b', 'ste', 1): 0.40,
    ('b', 'gumbel', 0): 0.90,
    ('b', 'gumbel', 1): 0.20,
}


def _result(persona, estimator, seed, gain, *, is_global=False):
    dense = {'a': 2.0, 'b': 3.0}[persona]
    return results.Result(
        cell=f'{persona}{estimator}{seed}',
        values={'persona': persona, 'estimator': estimator, 'seed': seed},
        is_global=is_global,
        nll={
            'dense': dense,
            'random': 9.0,
            'one_shot': dense + 1,
            'learned': dense + gain,
        },
        answer_tokens=10,
    )


_OWN = [_result(*key, gain) for key, gain in _GAINS.items()]
# A global mask is worse by 0.1 for persona a, by 0.3 and 0.5 for b.
_GLOBAL = [
    _result(p, e, s, gain + (0.1 if p == 'a' else 0.3 + 0.2 * s), is_global=True)
    for (p, e, s), gain in _GAINS.items()
]


def test_a_figure_spreads_over_seeds_not_over_members():
    found = aggregate.figure([(0, 1.0), (0, 3.0), (1, 5.0), (1, 7.0)])
    # Seeds' means are 2 and 6.
    assert (found.mean, found.count) == (4.0, 4)
    assert found.std == pytest.approx(math.sqrt(8.0))


def test_one_seed_has_no_spread():
    assert aggregate.figure([(None, 1.0), (None, 2.0)]) == aggregate.Figure(
        1.5, None, 2
    )


def test_marginals_pair_with_the_first_value_and_leave_global_masks_out():
    first, second = aggregate.marginals([*_OWN, *_GLOBAL], 'estimator')
    assert (first.label, second.label) == ('ste', 'gumbel')
    assert first.difference is None
    assert first.gains[0].mean == pytest.approx(0.30)
    assert first.gains[0].std == pytest.approx(0.0, abs=1e-12)
    assert second.gains[0].mean == pytest.approx(0.50)
    # Differences: seed 0: 0.2 and 0.4, seed 1: 0.4 and -0.2.
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(0.20)
    assert second.difference.std == pytest.approx(0.2 / math.sqrt(2))
    assert second.difference.count == 4


def test_only_cells_alike_on_all_other_axes_are_paired():
    _, second = aggregate.marginals(_OWN[:5], 'estimator')
    assert second.difference is not None
    assert second.difference.mean == pytest.approx((0.2 + 0.4) / 2)
    assert second.difference.count == 2
    lonely = [_OWN[0], _OWN[7]]
    assert aggregate.marginals(lonely, 'estimator')[1].difference is None


def test_settings_average_personas_and_seeds():
    made = aggregate.settings([*_GLOBAL, *_OWN])
    assert [(x.values, x.is_global) for x in made] == [
        ({'estimator': 'ste'}, False),
        ({'estimator': 'gumbel'}, False),
        ({'estimator': 'ste'}, True),
        ({'estimator': 'gumbel'}, True),
    ]
    ste = made[0]
    assert ste.nll['dense'] == pytest.approx(2.5)
    assert ste.nll['learned'] == pytest.approx(2.8)
    assert ste.gain.mean == pytest.approx(0.3)
    assert ste.personas['a'].mean == pytest.approx(0.15)
    assert ste.personas['a'].std == pytest.approx(0.1 / math.sqrt(2))
    assert set(ste.personas) == {'a', 'b'}


def test_own_and_global_masks_are_paired_by_persona():
    a, b, mean = aggregate.versus_global([*_OWN, *_GLOBAL])
    assert (a.label, b.label, mean.label) == ('a', 'b', 'Mean')
    assert a.gains[0].mean == pytest.approx(0.3)
    assert a.gains[1].mean == pytest.approx(0.4)
    assert a.difference.mean == pytest.approx(0.1)
    assert a.difference.std == pytest.approx(0.0, abs=1e-12)
    assert b.difference.mean == pytest.approx(0.4)
    assert b.difference.std == pytest.approx(0.2 / math.sqrt(2))
    assert mean.difference.mean == pytest.approx(0.25)
    assert mean.difference.count == 8
    assert aggregate.versus_global(_OWN) == []


def test_curves_are_sorted_lines_by_persona():
    found = [
        results.Result(
            'x', {'calibration_rows': rows, 'persona': p}, False, nll, answer_tokens=1
        )
        for p in ('b', 'a')
        for rows, nll in (
            (40, {'dense': 1.0, 'learned': 1.25}),
            (10, {'dense': 1.0, 'learned': 1.5}),
        )
    ]
    ((values, lines),) = aggregate.curves(found, 'calibration_rows')
    assert values == {}
    assert list(lines) == ['b', 'a']
    assert [(x, y.mean) for x, y in lines['a']] == [(10, 0.5), (40, 0.25)]


def test_compared_axes_and_labels():
    axes = (*_AXES, grid.Axis('sparsity', (0.5,)))
    assert aggregate.compared_axes(axes) == ['estimator']
    values = {'estimator': 'ste', 'sparsity': 0.5}
    assert aggregate.label(values, axes) == 'estimator ste'
