"""launch/rolebench_methods.py: chains of verbs, and the table of what came of them."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import types

import pytest

from ppjax.base import errors, run_directory

_LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'


@pytest.fixture(scope='module')
def methods():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_LAUNCH))
        return importlib.import_module('rolebench_methods')


@pytest.fixture
def started(monkeypatch):
    """The commands that were started; one in a folder named `bad` fails."""
    commands = []

    def start(command, **options):
        del options
        commands.append(command)
        [output] = [part for part in command if part.startswith('--output_dir=')]
        return types.SimpleNamespace(returncode=int(output.endswith('/bad')))

    monkeypatch.setattr(subprocess, 'run', start)
    return commands


def _cell(methods, tmp_path, **changed):
    cfg = methods.Settings(rolebench='x', steps=60, **changed)
    rows = [tmp_path / f'{name}.jsonl' for name in ('own', 'a', 'b')]
    for file in rows:
        file.write_text('{}\n' * 10)
    split = methods.rolebench_rows.Split(rows[0], rows[0], rows[0])
    return methods.Cell(cfg, '0.5', split, rows[1:], tmp_path / 'r', tmp_path / 's')


def _last(command, name):
    """The value that counts of an option given twice."""
    values = [part for part in command if part.startswith(f'--{name}=')]
    return int(values[-1].partition('=')[2])


def _option(command, name):
    [found] = [part for part in command if part.startswith(f'--{name}=')]
    return found.partition('=')[2]


def test_a_new_persona_is_in_nothing_that_is_shared(methods, started, tmp_path):
    cell = _cell(methods, tmp_path, shared_rows=5)
    made = methods.METHODS['new_persona'](cell)
    assert made == tmp_path / 'r' / 'new_persona' / 'hf'
    verbs = [command[2] for command in started]
    assert verbs == ['ppjax.compensate', 'ppjax.recover', 'ppjax.recover']
    own = str(tmp_path / 'own.jsonl')
    assert [own in _option(c, 'calibration') for c in started] == [False, False, True]
    assert _option(started[2], 'steps') == '60'
    for file in _option(started[0], 'calibration').split(','):
        assert len(pathlib.Path(file).read_text().splitlines()) == 5


def test_every_method_takes_the_same_steps_of_the_role(methods, started, tmp_path):
    for name in methods.METHODS:
        if name in ('one_shot', 'ridge', 'shared', 'paper', 'a_fifth'):
            continue
        started.clear()
        (tmp_path / name).mkdir()
        cell = _cell(methods, tmp_path / name)
        methods.METHODS[name](cell)
        learning = [c for c in started if c[2] in ('ppjax.train', 'ppjax.recover')]
        own = [
            c for c in learning if str(cell.split.every) in _option(c, 'calibration')
        ]
        steps = [int(_option(c, 'steps')) for c in own]
        assert sum(steps) == 60, name


def test_a_fifth_of_the_papers_examples(methods, started, tmp_path):
    cell = _cell(methods, tmp_path)
    cell.split.train.write_text('{}\n' * 440)
    cell.paper()
    cell.a_fifth()
    learned, refit, gains = started
    taken = [
        _last(command, 'steps') * _last(command, 'batch_size')
        for command in (learned, gains)
    ]
    refitted = len(pathlib.Path(_option(refit, 'calibration')).read_text().splitlines())
    assert taken[0] == 3 * 27 * 16
    assert 0.9 * taken[0] / 5 < refitted + taken[1] <= taken[0] / 5
    assert '--score_init=random' in learned
    assert [c for c in learned if c.startswith('--heldout_every=')][
        -1
    ] == '--heldout_every=11'


def test_one_nested_mask_serves_both_sparsities(methods, started, tmp_path):
    for sparsity in ('0.25', '0.5'):
        cell = dataclasses.replace(
            _cell(methods, tmp_path),
            sparsity=sparsity,
            folder=tmp_path / 'r' / sparsity,
        )
        assert cell.nested() == tmp_path / 'r' / sparsity / 'nested'
    assert [command[2] for command in started] == [
        'ppjax.train',
        'ppjax.export',
        'ppjax.export',
    ]
    sparsities = [_option(command, 'mask_sparsity') for command in started[1:]]
    assert sparsities == ['0.25', '0.5']


def test_what_has_ended_is_not_started_again(methods, started, tmp_path):
    for options in (('--a=1',), ('--a=1',), ('--a=2',)):
        methods.run('train', tmp_path / 'good', *options)
    assert [command[-1] for command in started] == ['--a=1', '--a=2']
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad' / run_directory.MARKER).write_text('{}')
    for _ in range(2):
        with pytest.raises(errors.InputError, match='ended with exit code 1'):
            methods.run('train', tmp_path / 'bad')
    assert len(started) == 4
    made = json.loads((tmp_path / 'bad' / 'made.json').read_text())
    assert not made['finished'] and made['seconds'] > 0


def test_a_verb_that_fails_before_its_run_leaves_no_folder(methods, started, tmp_path):
    for _ in range(2):
        with pytest.raises(errors.InputError, match='ended with exit code 1'):
            methods.run('train', tmp_path / 'bad')
    assert len(started) == 2 and not (tmp_path / 'bad').exists()


def test_a_model_is_refitted_on_some_of_the_rows(methods, started, tmp_path):
    _cell(methods, tmp_path, refit_rows=3).refitted()
    [command] = started
    rows = pathlib.Path(_option(command, 'calibration'))
    assert len(rows.read_text().splitlines()) == 3 and rows.name == 'own.jsonl'


def test_models_of_a_cell_are_measured_side_by_side(methods, started, tmp_path):
    cell = _cell(methods, tmp_path, evaluate='--plain=P --plain_examples=5')
    results = tmp_path / 'r' / 'measured' / 'ridge,one_shot' / 'results'
    results.mkdir(parents=True)
    figures = {'dense': {'x': 0}, 'ridge': {'x': 1}, 'one_shot': {'x': 2}}
    (results / 'piqa.json').write_text(json.dumps({'models': figures}))
    models = {name: methods.METHODS[name](cell) for name in ('ridge', 'one_shot')}
    started.clear()
    found = methods.measure(cell, models)
    assert found == {
        'ridge': {'piqa': {'dense': {'x': 0}, 'own': {'x': 1}}},
        'one_shot': {'piqa': {'dense': {'x': 0}, 'own': {'x': 2}}},
    }
    [command] = started
    assert _option(command, 'model') == f'ridge={tmp_path}/r/refitted/hf'
    assert _option(command, 'mask') == f'one_shot={tmp_path}/r/one_shot/mask.pmask'
    assert command[-2:] == ['--plain=P', '--plain_examples=5']


@pytest.mark.parametrize(
    'changed, said',
    [
        ({'methods': 'ridge,x'}, "got 'x'"),
        ({'steps': 61}, 'must be even'),
        ({'rates': 'gains=1'}, '--rates lacks again, full, lora'),
        ({'rolebench': None}, '--rolebench must be given'),
    ],
)
def test_refused_settings(methods, changed, said):
    with pytest.raises(errors.InputError, match=said):
        methods.Settings(**{'rolebench': 'x'} | changed)


def _row(method, nll, **more):
    difference = {'mean': nll - 2.0, 'interval': [nll - 2.1, nll - 1.9]}
    likelihood = {
        'dense': {'nll': {'mean': 2.0}},
        'own': {'nll': {'mean': nll}, 'nll_difference': difference},
    }
    results = {'persona_likelihood': likelihood} | more
    return {
        'role': 'A',
        'sparsity': '0.5',
        'method': method,
        'minutes': 1.5,
        'results': results,
    }


def test_table_says_how_far_each_model_came(methods):
    piqa = {n: {'acc': {'value': v}} for n, v in (('dense', 0.7), ('own', 0.6))}
    rows = [_row('one_shot', 4.0), _row('ridge', 2.5, piqa=piqa)]
    head, rule, _, row = methods.rolebench_table.markdown(rows).splitlines()
    assert head.count('|') == rule.count('|') == row.count('|')
    assert row == (
        '| A | 50% | ridge | 2.000 | 4.000 | 2.500 | +0.500, +0.400 to +0.600 | 75% |  | '
        '70.0% -> 60.0% |  | 1.5 |'
    )
    assert '| 2.500 | +0.500' in methods.rolebench_table.markdown(rows[1:])


def test_summary_means_over_roles(methods):
    rows = [_row('one_shot', 4.0), _row('ridge', 2.5)]
    rows += [row | {'role': 'B', 'minutes': 2.5} for row in rows]
    rows[3] = _row('ridge', 3.5) | {'role': 'B'}
    head, rule, first, second = methods.rolebench_table.summary(rows).splitlines()
    assert head.count('|') == rule.count('|') == second.count('|')
    assert first == (
        '| 50% | one_shot | +2.000 | +2.000 | +2.000 | 0% |  |  |  | 2.0 |'
    )
    # 75 and 25 % of the way.
    assert second == '| 50% | ridge | +0.500 | +1.500 | +1.000 | 50% |  |  |  | 1.5 |'
    assert '| +1.000 |  |' in methods.rolebench_table.summary(rows[1::2])


def test_other_results_stay(methods):
    rows = [_row('one_shot', 4.0), _row('ridge', 2.5)]
    again = _row('ridge', 2.25)
    assert methods.rolebench_table.merged(rows, again) == [rows[0], again]
