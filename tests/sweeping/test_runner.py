"""Whole sweeps on a tiny model: results, resuming, extending, failing."""

import csv
import json

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.sweeping import cells, clock, config, runner

_PERSONAS = ('ferryman', 'clockmaker', 'starpilot')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder of few and short rows for each persona."""
    folder = tmp_path_factory.mktemp('rows')
    for name in _PERSONAS:
        (folder / name).mkdir()
        for split, count in (('train', 6), ('test', 3)):
            lines = [
                json.dumps({'messages': [*row.messages], 'query_id': row.query_id})
                for row in demo.rows(name, split)[:count]
            ]
            (folder / name / f'{split}.jsonl').write_text('\n'.join(lines))
    return folder


def _settings(model, files, output, grid, **changes):
    values = {
        'base_model': str(model),
        'calibration': f'{files}/{{persona}}/train.jsonl',
        'heldout': f'{files}/{{persona}}/test.jsonl',
        'output_dir': str(output),
        'grid': grid,
        'align': 1,
        'batch_size': 3,
        'steps': 2,
    }
    return config.SweepConfig(**(values | changes))


def _cell(run, **values):
    (found,) = (
        cell
        for cell in (run / 'cells').iterdir()
        if all(f'{k}-{v}' in cell.name for k, v in values.items())
    )
    return found


@pytest.fixture(scope='module')
def swept(chatty_model, files, tmp_path_factory):
    """A finished sweep: two personas and the global mask; and its tables."""
    run = tmp_path_factory.mktemp('sweeps') / 'run'
    grid = 'persona=ferryman,clockmaker,global;sparsity=0.5'
    return run, runner.sweep(_settings(chatty_model, files, run, grid))


def test_a_sweep_leaves_its_results_in_every_form(swept):
    run, shown = swept
    assert (run / 'sweep.md').read_text() == shown
    assert '### Own against global mask' in shown
    assert '<h2>All settings</h2>' in (run / 'sweep.html').read_text()
    status = json.loads((run / 'status.json').read_text())
    assert (status['state'], status['step'], status['total_steps']) == ('done', 3, 3)
    found = json.loads((run / 'sweep.json').read_text())
    assert found['grid'] == {
        'persona': ['ferryman', 'clockmaker', 'global'],
        'sparsity': [0.5],
    }
    for entry in found['cells']:
        cell = run / 'cells' / entry['cell']
        measured = json.loads((cell / 'results' / 'likelihood.json').read_text())
        for name, value in entry['nll'].items():
            assert value == measured['models'][name]['nll']
        difference = entry['nll']['learned'] - entry['nll']['dense']
        assert entry['learned_minus_dense'] == difference
        assert entry['settings']['sparsity'] == 0.5
        assert entry['versions'] == measured['versions']
        assert entry['seconds'] > 0
        assert pmask.load(cell / 'mask.pmask').keep == 20
    assert len(list(csv.reader((run / 'sweep.csv').open()))) == 1 + 2 + 2


def test_a_global_mask_is_measured_on_each_persona(swept):
    run, _ = swept
    own, other, shared = json.loads((run / 'sweep.json').read_text())['cells']
    by_persona = shared['personas']
    assert set(by_persona) == {'ferryman', 'clockmaker'}
    for entry, name in ((own, 'ferryman'), (other, 'clockmaker')):
        found = by_persona[name]
        assert found['answer_tokens'] == entry['heldout']['answer_tokens']
        # The dense model knows nothing of masks.
        assert found['nll']['dense'] == pytest.approx(entry['nll']['dense'], rel=1e-5)
        assert found['nll']['learned'] != entry['nll']['learned']
    tokens = [found['answer_tokens'] for found in by_persona.values()]
    learned = [found['nll']['learned'] for found in by_persona.values()]
    assert np.average(learned, weights=tokens) == pytest.approx(
        shared['nll']['learned'], rel=1e-6
    )


def test_more_values_extend_a_sweep_and_cells_outside_are_left_out(
    swept, chatty_model, files, capfd
):
    run, _ = swept
    before = {path: path.stat().st_mtime_ns for path in run.glob('cells/*/mask.pmask')}
    assert len(before) == 3
    seconds = json.loads((run / 'sweep.json').read_text())['cells'][0]['seconds']
    grid = 'sparsity=0.5;persona=starpilot,ferryman'
    runner.sweep(_settings(chatty_model, files, run, grid))
    found = json.loads((run / 'sweep.json').read_text())
    assert [x['axes']['persona'] for x in found['cells']] == ['starpilot', 'ferryman']
    assert found['cells'][1]['seconds'] == seconds
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list((run / 'cells').iterdir())) == 4
    said = capfd.readouterr().err
    assert 'Cell 1/2: persona-starpilot--sparsity-0.5, about ' in said
    assert 'Cell 2/2: persona-ferryman--sparsity-0.5\n' in said


def test_references_are_measured_once_for_all_cells_that_share_them(
    chatty_model, files, tmp_path, capfd
):
    grid = 'objective=ce,kl;seed=0,1'
    one = {
        'calibration': f'{files}/ferryman/train.jsonl',
        'heldout': f'{files}/ferryman/test.jsonl',
    }
    run = tmp_path / 'run'
    runner.sweep(_settings(chatty_model, files, run, grid, **one))
    # What is minimised changes no reference; the seed draws the random mask.
    assert capfd.readouterr().err.count('one_shot') == 2
    alone = tmp_path / 'alone'
    grid = 'objective=kl;seed=1'
    runner.sweep(_settings(chatty_model, files, alone, grid, **one))
    shared, own = (
        json.loads((_cell(path, **values) / 'results' / 'likelihood.json').read_text())
        for path, values in (
            (run, {'objective': 'kl', 'seed': 1}),
            (alone, {}),
        )
    )
    assert shared['models'] == own['models']


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'learning_rate': 0.5}, r'--learning_rate \(0.01 there, 0.5 now\)'),
        ({'steps': 3}, '--steps'),
    ],
)
def test_another_sweeps_directory_is_refused(swept, chatty_model, files, changes, said):
    grid = 'persona=ferryman;sparsity=0.5'
    cfg = _settings(chatty_model, files, swept[0], grid, **changes)
    with pytest.raises(errors.InputError, match=said):
        runner.sweep(cfg)


def test_a_failing_cell_ends_the_sweep_and_is_named(chatty_model, files, tmp_path):
    cfg = _settings(
        chatty_model,
        files,
        tmp_path / 'run',
        'align=128,1',
        calibration=f'{files}/ferryman/train.jsonl',
        heldout=f'{files}/ferryman/test.jsonl',
    )
    with pytest.raises(errors.InputError, match=r'Cell align-128: .*outside \[1, 40\]'):
        runner.sweep(cfg)
    # Nothing was learned before: the corrected command finds nothing in its way.
    assert not (tmp_path / 'run').exists()


def test_files_of_all_cells_are_read_before_anything_is_learned(
    chatty_model, files, tmp_path
):
    cfg = _settings(chatty_model, files, tmp_path / 'run', 'persona=ferryman,nobody')
    with pytest.raises(errors.InputError, match=r'nobody/train\.jsonl'):
        runner.sweep(cfg)
    assert not (tmp_path / 'run' / 'cells').exists()


def test_personas_of_one_prompt_have_no_global_mask(chatty_model, files, tmp_path):
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        for split in ('train', 'test'):
            text = (files / 'ferryman' / f'{split}.jsonl').read_text()
            (tmp_path / name / f'{split}.jsonl').write_text(text)
    cfg = _settings(chatty_model, tmp_path, tmp_path / 'run', 'persona=one,two,global')
    with pytest.raises(errors.InputError, match='system prompt of two is that of one'):
        runner.sweep(cfg)


def test_time_left_counts_undone_cells_at_the_mean_of_done_ones(
    monkeypatch, tmp_path, capfd
):
    cfg = config.SweepConfig(
        base_model='m',
        output_dir=str(tmp_path),
        calibration='train',
        heldout='test',
        grid='seed=0,1,2,3',
    )
    planned = cells.plan(cfg)
    watch = clock.Clock(tmp_path / 'sessions.json')
    monkeypatch.setattr(watch, 'mean', lambda: 600.0)
    monkeypatch.setattr(watch, 'stop', lambda cell: None)

    def learn(settings, train, heldout, like):
        del train, heldout, like
        path = tmp_path / 'cells' / f'seed-{settings.seed}' / 'mask.pmask'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr(cells.loop, 'learn_mask', learn)
    directory = runner.run_directory.RunDirectory(tmp_path)
    assert cells.learn(planned, directory, watch, lambda source, split: [])
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith('Cell')]
    assert lines == [
        'Cell 1/4: seed-0, about 40 min left',
        'Cell 2/4: seed-1, about 30 min left',
        'Cell 3/4: seed-2, about 20 min left',
        'Cell 4/4: seed-3, about 10 min left',
    ]
