"""Whole comparisons on a tiny model: made, measured, resumed, taken over, refused."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors, flags
from ppjax.comparing import cells, config, general, runner, stages
from ppjax.data import calibration

_PERSONAS = ('ferryman', 'clockmaker')
_GRID = (
    'method=dense,llm_pruner,mask;recovery=none,general;sparsity=0.5;'
    'persona=ferryman,clockmaker'
)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Few and short rows for each persona, and general instructions."""
    folder = tmp_path_factory.mktemp('rows')
    for name in _PERSONAS:
        for split, count in (('train', 6), ('test', 3)):
            lines = [
                json.dumps({'messages': [*row.messages], 'query_id': row.query_id})
                for row in demo.rows(name, split)[:count]
            ]
            (folder / f'{name}.{split}.jsonl').write_text('\n'.join(lines))
    questions = [row.query for row in demo.rows('ferryman', 'test')[:1]]
    rows = [{'instruction': f'Count to {n}.', 'output': '1 2 3'} for n in range(12)]
    rows += [{'instruction': question, 'output': 'Leaked.'} for question in questions]
    (folder / 'general.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return folder


def _settings(model, files, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': f'{files}/{{persona}}.train.jsonl',
        'heldout': f'{files}/{{persona}}.test.jsonl',
        'instructions': f'{files}/general.jsonl',
        'output_dir': str(output),
        'grid': _GRID,
        'train': '--align=1 --batch_size=3 --steps=2',
        'recover': '--steps=2 --batch_size=3 --lora_rank=2',
        'prune': '--batch_size=4; llm_pruner: --spare_first=0 --spare_last=0',
        'evaluate': '--tasks=likelihood,answers --max_new_tokens=4 --questions=2',
    }
    return config.CompareConfig(**(values | changes))


@pytest.fixture(scope='module')
def compared(chatty_model, files, tmp_path_factory):
    """A finished comparison, and its tables."""
    run = tmp_path_factory.mktemp('comparisons') / 'run'
    return run, runner.compare(_settings(chatty_model, files, run))


def _figures(run):
    return {
        path.stem: json.loads(path.read_text()) for path in (run / 'cells').iterdir()
    }


def test_a_comparison_leaves_its_results_in_every_form(compared):
    run, shown = compared
    assert (run / 'compare.md').read_text() == shown
    page = (run / 'compare.html').read_text()
    for text in ('Methods, without recovery', 'Paired differences', 'LLM-Pruner'):
        assert text in page
    # Three methods, two personas, with recovery and without.
    found = json.loads((run / 'compare.json').read_text())['cells']
    assert len(found) == len(_figures(run)) == 12
    rows = list(csv.DictReader((run / 'compare.csv').open()))
    assert [row['cell'] for row in rows] == [cell['cell'] for cell in found]
    status = json.loads((run / 'status.json').read_text())
    assert (status['state'], status['step']) == ('done', 12)


def test_general_models_are_made_once_for_all_personas(compared):
    run, _ = compared
    names = {path.name for path in (run / 'models').iterdir()}
    of_rivals = [name for name in names if 'llm_pruner' in name]
    assert len(of_rivals) == 2
    assert not any('persona-' in name for name in of_rivals)
    assert sum('persona-ferryman' in name for name in names) == 2


def test_what_is_measured_is_never_learned_from(compared):
    run, _ = compared
    rows = calibration.read_rows(run / stages.GENERAL_ROWS)
    assert len(rows) == 12
    assert not any(row.answer == 'Leaked.' for row in rows)
    assert all(row.system_prompt == '' for row in rows)


def test_rivals_keep_no_less_than_the_mask(compared):
    run, _ = compared
    blocks = {
        cell['values']['method']: cell['size']['parameters']['blocks']
        for cell in _figures(run).values()
        if cell['values']['recovery'] == 'none'
    }
    assert blocks['mask'] <= blocks['llm_pruner'] < blocks['dense']


def test_recovery_changes_what_a_model_says_and_not_its_size(compared):
    run, _ = compared
    own = {
        cell['values']['recovery']: cell
        for cell in _figures(run).values()
        if (cell['values']['method'], cell['values']['persona']) == ('mask', 'ferryman')
    }
    sizes = [cell['size']['parameters'] for cell in own.values()]
    assert sizes[0] == sizes[1]
    values = {name: cell['measures']['nll'] for name, cell in own.items()}
    assert values['none'] != values['general']


def test_the_same_command_measures_nothing_again(compared, chatty_model, files):
    run, shown = compared
    before = {path: path.stat().st_mtime_ns for path in (run / 'cells').iterdir()}
    assert runner.compare(_settings(chatty_model, files, run)) == shown
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_known_cells_are_taken_over_without_their_models(
    compared, chatty_model, files, tmp_path
):
    run, shown = compared
    known = tmp_path / 'known'
    shutil.copytree(run / 'cells', known)
    elsewhere = tmp_path / 'elsewhere'
    settings = _settings(chatty_model, files, elsewhere, known_cells=str(known))
    assert runner.compare(settings) == shown
    assert not (elsewhere / 'models').exists()


def test_cells_of_other_settings_are_not_taken_over(
    compared, chatty_model, files, tmp_path
):
    run, _ = compared
    settings = _settings(
        chatty_model,
        files,
        tmp_path / 'run',
        grid='method=dense,mask;persona=ferryman;sparsity=0.5',
        known_cells=str(run / 'cells'),
        train='--align=1 --batch_size=3 --steps=1',
        keep_models=False,
        curves=True,
    )
    shown = runner.compare(settings)
    figures = _figures(tmp_path / 'run')
    assert len(figures) == 2
    [(examples, nll)] = next(x['curve'] for x in figures.values() if x['curve'])
    assert examples == 3
    assert f'| {examples:.0f} | {nll:.3f} |' in shown
    [mask] = [x for x in figures.values() if x['values']['method'] == 'mask']
    items = mask['measures']['nll']
    own = sum(x for _, x, _ in items) / sum(x for _, _, x in items)
    assert nll == pytest.approx(own, abs=1e-4)
    # The mask was learned anew, and its model is gone again.
    assert not any((tmp_path / 'run' / 'models').glob('*'))


def test_other_rows_are_never_measured_on_a_model_of_before(
    chatty_model, files, tmp_path
):
    own = tmp_path / 'rows'
    shutil.copytree(files, own)
    settings = _settings(
        chatty_model,
        own,
        tmp_path / 'run',
        grid='method=mask;persona=ferryman;sparsity=0.5',
        evaluate='--tasks=likelihood',
    )
    runner.compare(settings)
    rows = own / 'ferryman.train.jsonl'
    rows.write_text('\n'.join(rows.read_text().splitlines()[:4]))
    with pytest.raises(errors.InputError, match=r'Cell .*the content of'):
        runner.compare(settings)


def test_figures_on_other_data_are_others(chatty_model, files, tmp_path):
    data = tmp_path / 'piqa.jsonl'
    settings = _settings(
        chatty_model,
        files,
        tmp_path / 'run',
        grid='method=dense;persona=ferryman',
        evaluate=f'--tasks=piqa --piqa={data}:5',
    )

    def planned(text):
        data.write_text(text)
        rows = general.read(settings)
        [cell] = cells.plan(settings, runner._hashes(settings, rows))
        return cell.identity

    assert planned('{}') == planned('{}') != planned('{ }')


def test_an_interrupted_cell_is_gone_on_with(
    compared, chatty_model, files, tmp_path, monkeypatch
):
    run, _ = compared
    small = {'grid': 'method=mask;persona=ferryman;sparsity=0.5'}
    settings = _settings(chatty_model, files, tmp_path / 'run', **small)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner.measuring, 'measure', killed)
        with pytest.raises(KeyboardInterrupt):
            runner.compare(settings)
    made = [path.stat().st_mtime_ns for path in tmp_path.glob('run/models/*/hf')]
    assert len(made) == 1
    assert runner.compare(settings)
    assert [x.stat().st_mtime_ns for x in tmp_path.glob('run/models/*/hf')] == made
    [mine] = _figures(tmp_path / 'run').values()
    [same] = [
        cell
        for cell in _figures(run).values()
        if cell['values'].get('method') == 'mask'
        and cell['values']['persona'] == 'ferryman'
        and cell['values']['recovery'] == 'none'
    ]
    assert mine['measures'] == same['measures']


def test_a_model_whose_run_has_more_to_write_is_not_done(compared):
    run, _ = compared
    path = next(x for x in (run / 'models').iterdir() if 'llm_pruner' in x.name)
    stage = stages.Stage(path.name, 'prune', path, path / 'hf', bool, '', 0)
    assert stage.is_done
    status = (path / 'status.json').read_text()
    (path / 'status.json').write_text(status.replace('"done"', '"failed"'))
    assert not stage.is_done
    (path / 'status.json').write_text(status)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'grid': 'persona=ferryman'}, 'no axis method'),
        ({'grid': 'method=magic;persona=ferryman'}, "unknown method 'magic'"),
        ({'grid': 'method=mask;persona=ferryman;recovery=x'}, "unknown recovery 'x'"),
        ({'grid': 'method=mask;persona=ferryman;sparsity=2'}, 'sparsity'),
        ({'instructions': None}, 'asks for general rows'),
        ({'train': '--nothing=1'}, '--train: .*nothing'),
        ({'prune': 'magic: --batch_size=1'}, "'magic' is no rival"),
        ({'evaluate': '--tasks=piqa'}, '--evaluate: .*--piqa'),
        ({'calibration': 'rows.jsonl'}, r'must hold \{persona\}'),
        ({'heldout': 'rows.jsonl'}, r'--heldout must hold \{persona\}'),
        (
            {
                'grid': 'method=mask;persona=a;kind=b;recovery=persona:neeko',
                'calibration': '{kind}.jsonl',
            },
            r'must hold \{persona\}: persona:neeko',
        ),
        ({'heldout': '{persona}.{kind}.jsonl'}, r'--heldout holds \{kind\}'),
        (
            {
                'grid': 'method=mask;persona=ferryman|method=dense;persona=ferryman;'
                'kind=a',
                'calibration': '{persona}.{kind}.jsonl',
            },
            r'holds \{kind\}, and a grid that reads it has no axis kind',
        ),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_made(
    chatty_model, files, tmp_path, changes, message
):
    with pytest.raises(errors.InputError, match=message):
        runner.compare(_settings(chatty_model, files, tmp_path / 'run', **changes))
    assert not (tmp_path / 'run').exists()


class Anything(dict):
    """A hash of everything."""

    def __missing__(self, key):
        return key


@pytest.mark.parametrize(
    ('cell', 'identity'),
    [
        ('method-dense--recovery-none', 'b3f98e977e5777d2'),
        ('method-slicegpt--recovery-none--sparsity-0.25', '7435ab2b8a9756f8'),
        ('method-depth--recovery-general--sparsity-0.25', '138a32a0555d4cf4'),
        ('method-mask--recovery-persona--sparsity-0.25', 'e12aab4dd0181f92'),
    ],
)
def test_figures_of_before_hold_as_long_as_nothing_of_them_changes(cell, identity):
    """What fails here makes the figures in launch/results void.

    A new setting belongs into stages._LATER. A changed default does change figures.
    """
    flagfile = pathlib.Path(__file__).parents[2] / 'configs/small-table-1.flags'
    settings = flags.parse(
        config.CompareConfig, [f'--flagfile={flagfile}', '--output_dir=x']
    )
    planned = {own.name: own.identity for own in cells.plan(settings, Anything())}
    assert planned[f'persona-jack_sparrow--{cell}'][:16] == identity


def test_values_that_change_nothing_make_no_cells_of_their_own(chatty_model, files):
    settings = _settings(
        chatty_model,
        files,
        'nowhere',
        grid='method=dense,depth,mask;persona=ferryman;sparsity=0.25,0.5;'
        'estimator=ste,gumbel;seed=0,1|method=depth;persona=ferryman;sparsity=0.5;'
        'recovery=none,general',
    )

    planned = cells.plan(settings, Anything())
    count = {
        name: sum(cell.values['method'] == name for cell in planned)
        for name in ('dense', 'depth', 'mask')
    }
    assert count == {'dense': 1, 'depth': 5, 'mask': 8}
    assert len({cell.identity for cell in planned}) == len(planned)
    assert np.all([cell.name for cell in planned])


def test_masks_of_rows_that_no_persona_names_are_learned_once_for_all(
    chatty_model, files, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runner.clock_lib.Clock, 'mean', lambda self: 1000.0)
    run = tmp_path / 'run'
    grid = 'method=mask;rows_of=ferryman,clockmaker;persona=ferryman,clockmaker'
    settings = {
        'grid': grid + ';sparsity=0.5',
        'calibration': f'{files}/{{rows_of}}.train.jsonl',
        'instructions': None,
        'prune': '',
        'evaluate': '--tasks=likelihood',
    }
    runner.compare(_settings(chatty_model, files, run, **settings))
    # Of two masks, then of one, then none: what writes models takes no time to speak of.
    said = re.findall(r'about (.*) of making left', capsys.readouterr().err)
    assert said == ['33 min', '17 min', '17 min', '0 s']
    assert sorted(path.name for path in (run / 'models').iterdir()) == [
        f'method-mask--rows_of-{name}--seed-0--sparsity-0.5'
        for name in ('clockmaker', 'ferryman')
    ]
    figures = _figures(run)
    assert len(figures) == 4
    # Each is measured on the rows of both.
    assert len({str(cell['measures']['nll']) for cell in figures.values()}) == 4
    # Their curves on what a persona is measured on are another model's for each.
    cfg = _settings(chatty_model, files, run, curves=True, **settings)
    assert len({stages.way(cfg, values).name for values in cfg.combinations()}) == 4
