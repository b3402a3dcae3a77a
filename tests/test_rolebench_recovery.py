"""launch/rolebench_recovery.py: the table of what recovery brought."""

import importlib.util
import pathlib
import sys

import pytest

from ppjax.base import errors

_SCRIPT = pathlib.Path(__file__).parents[1] / 'launch' / 'rolebench_recovery.py'


@pytest.fixture(scope='module')
def recovery():
    spec = importlib.util.spec_from_file_location('rolebench_recovery', _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'rolebench_recovery', module)
        spec.loader.exec_module(module)
    return module


def _result(rank=0, **changed):
    models = {'dense': 2.5, 'start': 3.0, 'recovered': 2.25}
    return {
        'role': 'jack_sparrow',
        'models': {name: {'nll': nll} for name, nll in models.items()},
        'settings': {'lora_rank': rank},
        'steps': 63,
        'learning_rate': 1e-4,
        'to_dense': {'nll': -0.25, 'interval': [-0.5, 0.125]},
    } | changed


@pytest.mark.parametrize('rank, trained', [(0, 'all weights'), (16, 'LoRA, rank 16')])
def test_table_compares_with_the_dense_model(recovery, rank, trained):
    head, rule, row = recovery.markdown([_result(rank)]).splitlines()
    assert head.count('|') == rule.count('|') == row.count('|')
    assert row == (
        f'| jack_sparrow | {trained} | 63 | 0.0001 | 2.500 | 3.000 | 2.250 | -0.250 | '
        '-0.500 to +0.125 |'
    )


def test_difference_to_dense_is_over_tokens(recovery):
    examples = [
        {'answer_tokens': 30, 'dense': 90.0, 'recovered': 60.0},
        {'answer_tokens': 10, 'dense': 20.0, 'recovered': 30.0},
    ]
    found = recovery.to_dense({'examples': examples})
    assert found['nll'] == pytest.approx(-20 / 40)
    # Drawn twice, one example or the other is all there is.
    assert found['interval'] == pytest.approx([-1.0, 1.0])


def test_other_commands_results_stay(recovery):
    first, longer = _result(), _result(steps=126)
    again = _result(models={'recovered': {'nll': 2.0}})
    assert recovery.merged([first], longer) == [first, longer]
    assert recovery.merged([first, longer], again) == [longer, again]
    assert recovery.merged([first], _result(16)) == [first, _result(16)]


def test_tries_each_rate_of_both_methods(recovery):
    settings = recovery.Settings(roles='a', rates='1e-4, 2e-4', lora_rates='2e-3')
    assert settings.tried == [(0, '1e-4'), (0, '2e-4'), (16, '2e-3')]
    assert recovery.Settings(roles='a', rates='').tried == [(16, '2e-3')]


def test_a_failed_run_ends_in_one_line(recovery, tmp_path):
    settings = recovery.Settings(runs=str(tmp_path), roles='nobody')
    with pytest.raises(errors.InputError, match='nobody ended with exit code 1'):
        recovery.main(settings)
    assert not (tmp_path / 'recovery.json').exists()
