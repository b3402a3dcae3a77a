"""Means, intervals and paired differences of cells, against NumPy and by construction."""

import numpy as np
import pytest

from ppjax.comparing import rows, statistics, tables
from ppjax.evaluation import bootstrap


def _cell(persona, values, weights, *, measure='nll', seed=None, method='mask'):
    axes = {'persona': persona, 'method': method}
    if seed is not None:
        axes['seed'] = seed
    items = [
        [f'q{number}', float(x), float(w)]
        for number, (x, w) in enumerate(zip(values, weights, strict=True))
    ]
    return {
        'cell': f'{method} {persona} {seed}',
        'values': axes,
        'measures': {measure: items},
        'types': {},
        'answers': [],
        'size': {'parameters': {'unique': 10, 'untied': 10, 'blocks': 5}},
        'minutes': 2.0,
    }


@pytest.fixture
def drawn():
    """Sums [2 personas, 3 seeds, 40 items] and weights [2, 40]."""
    rng = np.random.default_rng(5)
    weights = rng.integers(3, 30, (2, 40))
    return rng.normal(3, 1, (2, 3, 40)) * weights[:, None], weights


def _cells(values, weights, **more):
    return [
        _cell('ab'[p], values[p, s], weights[p], seed=s, **more)
        for p in range(2)
        for s in range(3)
    ]


def test_a_mean_is_over_personas_of_ratios(drawn):
    values, weights = drawn
    found = statistics.estimate(_cells(values, weights), 'nll')
    ratios = values.sum(-1) / weights.sum(-1)[:, None]
    assert found.value == pytest.approx(ratios.mean())
    assert found.std == pytest.approx(ratios.mean(axis=0).std(ddof=1))
    low, high = found.interval
    assert low < found.value < high
    assert found.count == 80


def test_one_persona_is_the_bootstrap_of_evaluate(drawn):
    values, weights = drawn
    found = statistics.estimate([_cell('a', values[0, 0], weights[0])], 'nll')
    wanted = bootstrap.ratio_interval(values[0, 0], weights[0])
    # Other draws of the same kind.
    np.testing.assert_allclose(found.interval, wanted, atol=0.05)
    assert found.std is None


def test_a_constant_shift_has_a_difference_of_no_width(drawn):
    values, weights = drawn
    own = _cells(values, weights)
    other = _cells(values - 0.25 * weights[:, None], weights)
    found = statistics.difference(own, other, 'nll')
    assert found.value == pytest.approx(0.25)
    np.testing.assert_allclose(found.interval, 0.25, atol=1e-9)
    wide = statistics.estimate(own, 'nll').interval
    assert wide[1] - wide[0] > 0.1


def test_other_items_are_not_paired(drawn):
    values, weights = drawn
    own = [_cell('a', values[0, 0], weights[0])]
    assert (
        statistics.difference(own, [_cell('b', values[1, 0], weights[1])], 'nll')
        is None
    )
    fewer = [_cell('a', values[0, 0, :30], weights[0, :30])]
    assert statistics.difference(own, fewer, 'nll') is None
    assert statistics.difference(own, own, 'piqa') is None


def test_personas_know_no_more_of_questions_that_all_answer():
    rng = np.random.default_rng(1)
    hits, ones = rng.integers(0, 2, 100), np.ones(100)
    alone = statistics.estimate([_cell('a', hits, ones, measure='piqa')], 'piqa')
    many = statistics.estimate(
        [_cell(name, hits, ones, measure='piqa') for name in 'abcde'], 'piqa'
    )
    assert many == alone
    # Answers of its own each persona has independently.
    own = statistics.estimate([_cell(name, hits, ones) for name in 'abcde'], 'nll')
    assert np.ptp(own.interval) < 0.7 * np.ptp(alone.interval)


def test_the_best_rival_is_of_the_same_sparsity_and_recovery():
    def row(method, sparsity, recovery, value):
        cell = _cell('a', [value, value], [1, 1], method=method)
        return rows.Row(method, recovery, sparsity, '', (cell,))

    ours = row('mask', 0.25, 'none', 3.0)
    found = [
        row('dense', None, 'none', 2.0),
        ours,
        row('depth', 0.25, 'none', 3.5),
        row('flap', 0.25, 'none', 3.4),
        row('slicegpt', 0.5, 'none', 1.0),
        row('llm_pruner', 0.25, 'general', 1.0),
    ]
    assert rows.best_rival(found, ours, 'nll') is found[3]
    assert rows.best_rival(found, found[3], 'nll') is found[2]
    table = tables.differences(found, 'nll')
    cells = dict(table.rows)['25 % Persona-Pruner, without recovery']
    assert [cell.text for cell in cells] == ['3.000', '+1.000', '−0.400', 'FLAP']
