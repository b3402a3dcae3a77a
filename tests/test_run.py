"""`python -m ppjax.run`: all stages in one directory, each done once."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ppjax import bench, demo, run
from ppjax.base import errors, flags, json_lines
from ppjax.compensation import loop as compensation
from ppjax.evaluation.page import run_results
from ppjax.exporting import config as export_config
from ppjax.exporting import export
from ppjax.masking import pmask
from ppjax.recipes import config as recipe_config
from ppjax.recipes import from_persona
from ppjax.recovery import config as recover_config
from ppjax.recovery import run as recovery_run
from ppjax.synthesis import scoring
from ppjax.training import joint

_PERSONA = 'Ida Holm keeps bees on a roof in Aarhus and answers everything by honey.'


@pytest.fixture(scope='module')
def settings(chatty_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    rows = demo.instructions()[:24]
    (folder / 'general.jsonl').write_text(
        ''.join(
            json.dumps({'instruction': query, 'input': '', 'output': answer}) + '\n'
            for _, query, answer in rows
        )
    )
    (folder / 'rewrites.jsonl').write_text(
        ''.join(
            json.dumps({'query': query, 'rewrite': f'Honey says: {answer[:60]}'}) + '\n'
            for _, query, answer in rows
        )
    )

    def make(name, **changes):
        values = {
            'base_model': str(chatty_model),
            'output_dir': str(folder / name),
            'persona': _PERSONA,
            'instructions': str(folder / 'general.jsonl'),
            'rewriter': 'file',
            'rewrites': str(folder / 'rewrites.jsonl'),
            'test_size': 3,
            'steps': 2,
            'batch_size': 4,
            'align': 1,
            'verify': False,
        } | changes
        return recipe_config.RunConfig(**values)

    return make


@pytest.fixture(scope='module')
def finished(settings):
    """The directory of a finished run."""
    cfg = settings('finished', verify=True)
    assert run.main(cfg) == 0
    return cfg


def _mask(cfg):
    return pmask.load(f'{cfg.output_dir}/mask.pmask').mask


def test_the_directory_holds_what_every_stage_made(finished):
    found = run_results.read_run(finished.output_dir)
    assert not found.problems
    assert found.status['state'] == 'done'
    assert found.settings.calibration.endswith('calibration/train.jsonl')
    assert found.synthesis['rewriting']['train'] == 7
    assert found.likelihood['heldout']['rows'] == 3
    assert found.mask.keep == 30 and found.exported
    assert found.export['verify']['max_logit_difference']['transformers'] < 1e-3
    page = (found.path / 'report.html').read_text()
    assert 'Sensitivity of the queries' in page
    assert 'python -m ppjax.run --flagfile=' in page
    recorded = flags.from_flagfile(recipe_config.RunConfig, found.path / 'config.flags')
    assert recorded == finished.resolved()


def test_the_same_command_again_does_no_stage_twice(finished, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError('done again')

    before = _mask(finished)
    monkeypatch.setattr(scoring.loading, 'load_decoder', fail)
    monkeypatch.setattr(joint.Joint, '_load_model', fail)
    # The report compares answers, which it has as well.
    assert run.main(finished) == 0
    np.testing.assert_array_equal(_mask(finished), before)


def test_changed_settings_are_refused_and_nothing_is_lost(settings, finished):
    before = sorted(
        (path.name, path.stat().st_size)
        for path in run_results.read_run(finished.output_dir).path.rglob('*')
        if path.is_file()
    )
    with pytest.raises(errors.InputError, match=r'--sparsity \(0.25 there, 0.5 now\)'):
        run.main(settings('finished', sparsity=0.5))
    after = sorted(
        (path.name, path.stat().st_size)
        for path in run_results.read_run(finished.output_dir).path.rglob('*')
        if path.is_file()
    )
    assert after == before


def test_overwrite_does_again_only_what_changed(settings):
    first = settings('changing')
    run.main(first)
    scores = (run_results.read_run(first.output_dir).path / 'scores.jsonl').stat()
    changed = settings('changing', sparsity=0.5, overwrite=True)
    run.main(changed)
    path = run_results.read_run(first.output_dir).path
    assert _mask(changed).sum(axis=1).tolist() == [20, 20]
    assert (path / 'scores.jsonl').stat().st_mtime_ns == scores.st_mtime_ns
    assert (
        json.loads((path / 'hf' / 'config.json').read_text())['intermediate_size'] == 20
    )
    # What is recorded never discards anything when repeated.
    recorded = flags.from_flagfile(recipe_config.RunConfig, path / 'config.flags')
    assert recorded.sparsity == 0.5 and not recorded.overwrite


def test_a_paused_run_goes_on(settings):
    assert run.main(settings('paused', stop_after=1)) == 0
    path = run_results.read_run(settings('paused').output_dir).path
    assert json.loads((path / 'status.json').read_text())['state'] == 'paused'
    assert not (path / 'hf').exists()
    run.main(settings('paused'))
    whole = settings('unbroken')
    run.main(whole)
    np.testing.assert_array_equal(_mask(settings('paused')), _mask(whole))


def test_without_rewrites_there_is_nothing_to_learn(settings):
    with pytest.raises(errors.InputError, match='--rewriter=none leaves nothing'):
        settings('x', rewriter='none')


def test_what_cannot_be_refitted_is_said_before_the_work(settings):
    with pytest.raises(errors.InputError, match='--granularity=blocks removes whole'):
        settings('x', compensate='ridge', granularity='blocks')
    with pytest.raises(errors.InputError, match='go with --budget=global'):
        settings('x', compensate='ridge', budget='global')
    with pytest.raises(errors.InputError, match='--own_answers needs --compensate'):
        settings('x', own_answers=3)


def _call(*arguments):
    return subprocess.run(
        [sys.executable, '-m', *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_persona_is_shown_with_no_other_flag():
    result = _call('ppjax.synthesize', '--print_persona', f'--persona={_PERSONA}')
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(_PERSONA) == 2
    assert 'Answer the question, roleplay as the given persona.' in result.stdout


def test_a_missing_persona_file_is_one_clear_line(tmp_path):
    result = _call(
        'ppjax.run',
        '--base_model=smollm2-135m',
        f'--persona={tmp_path / "card.png"}',
        '--instructions=demo',
        f'--output_dir={tmp_path / "run"}',
    )
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    lines = [x for x in result.stderr.splitlines() if x.startswith('ERROR: ')]
    assert len(lines) == 1 and 'card.png' in lines[0]
    assert not (tmp_path / 'run').exists()


def test_bench_wants_to_know_what():
    result = _call('ppjax.bench', 'everything')
    assert result.returncode == 2
    *others, last = bench.COMPARISONS
    assert f'Say which: {", ".join(others)} or {last}; got everything.' in result.stderr


def test_a_run_that_refits_exports_the_refitted_model(settings, monkeypatch):
    cfg = settings('refitted', compensate='ridge')
    assert run.main(cfg) == 0
    found = run_results.read_run(cfg.output_dir)
    assert not found.problems and found.status['state'] == 'done'
    rows = {row.name: row for row in run_results.likelihood_rows(found)}
    assert rows['refitted'].interval is not None
    assert rows['refitted'].parameters == rows['learned'].parameters
    card = (found.path / 'hf' / 'README.md').read_text()
    assert '## Reconstruction' in card
    page = (found.path / 'report.html').read_text()
    assert 'Held-out NLL, refitted model' in page
    assert [x['stage'] for x in found.metrics] == [
        *('train', 'heldout', 'train', 'heldout'),
        *('compensate', 'compensate'),
    ]
    recovered = recover_config.RecoverConfig(run=cfg.output_dir, output_dir='o')
    assert recovered.resolved().model == str(found.path / 'hf')
    samples = found.samples
    # Again: nothing is done twice, and what each stage logged stays.
    before = (found.path / 'metrics.jsonl').read_text()
    with monkeypatch.context() as patch:
        patch.setattr(compensation.layers_lib.Layers, 'run', None)
        patch.setattr(joint.Joint, '_load_model', None)
        assert run.main(cfg) == 0
    assert (found.path / 'metrics.jsonl').read_text() == before
    with pytest.raises(errors.InputError, match='refitted or recovered model, not'):
        export.export(export_config.ExportConfig(output_dir=cfg.output_dir))
    assert '## Reconstruction' in (found.path / 'hf' / 'README.md').read_text()
    # Without it only the export is made anew.
    assert run.main(settings('refitted', overwrite=True)) == 0
    again = run_results.read_run(cfg.output_dir)
    assert 'refitted' not in {row.name for row in run_results.likelihood_rows(again)}
    assert '## Reconstruction' not in (again.path / 'hf' / 'README.md').read_text()
    assert again.samples and samples
    assert not list(again.path.glob('stages/compensate*'))


def test_a_run_that_recovers_ends_in_the_recovered_model(settings, monkeypatch, capsys):
    cfg = settings('recovered', recover_steps=2, steps=None)
    assert run.main(cfg) == 0
    # A stage's models are measured once, not again by the next that starts from them.
    said = [
        line for line in capsys.readouterr().err.splitlines() if 'Held-out, ' in line
    ]
    assert [line.split(', ')[1].split(':')[0] for line in said] == [
        *('dense', 'random', 'one_shot', 'refitted')
    ]
    found = run_results.read_run(cfg.output_dir)
    assert not found.problems and found.status['state'] == 'done'
    rows = {row.name: row for row in run_results.likelihood_rows(found)}
    # Nothing was learned of the mask: it is the one-shot one, named once.
    assert 'learned' not in rows
    assert rows['recovered'].interval is not None
    assert len({rows[name].nll for name in ('one_shot', 'refitted', 'recovered')}) == 3
    start = json_lines.read_object(found.path / 'recovered' / 'results/references.json')
    refitted = json_lines.read_object(
        found.path / 'refitted' / 'results/compensation.json'
    )
    assert start['start'] == [row['refitted'] for row in refitted['examples']]
    learned = json_lines.read_object(found.path / 'results/likelihood.json')
    for name, there in (('dense', 'dense'), ('start', 'learned')):
        assert [row[name] for row in refitted['examples']] == [
            row[there] for row in learned['examples']
        ]
    card = (found.path / 'hf' / 'README.md').read_text()
    assert '## Reconstruction' in card and '## Recovery' in card
    page = (found.path / 'report.html').read_text()
    assert 'Held-out NLL, recovered model' in page and 'Mask learning' not in page
    assert 'the model before it was refitted' in page
    assert 'gives the same answers' not in page
    after = page.partition('<h2>After pruning</h2>')[2].partition('</section>')[0]
    assert 'Error that reconstruction leaves' in after
    assert f'Refitted model {rows["refitted"].nll:.4f}' in after
    assert len(found.recovery_metrics) >= 2 and len(found.refit_metrics) == 2
    again = recover_config.RecoverConfig(run=cfg.output_dir, output_dir='o')
    assert again.resolved().model == str(found.path / 'hf')
    weights = (found.path / 'hf' / 'model.safetensors').read_bytes()
    # Again: nothing is done twice. Without recovery, the refitted model is exported.
    with monkeypatch.context() as patch:
        patch.setattr(compensation.layers_lib.Layers, 'run', None)
        patch.setattr(joint.Joint, '_load_model', None)
        patch.setattr(recovery_run.RecoveryRun, 'load', None)
        assert run.main(cfg) == 0
    assert (found.path / 'hf' / 'model.safetensors').read_bytes() == weights
    plain = settings('recovered', recover='none', steps=None, overwrite=True)
    assert run.main(plain) == 0
    names = {
        row.name
        for row in run_results.likelihood_rows(run_results.read_run(cfg.output_dir))
    }
    assert 'refitted' in names and 'recovered' not in names


@pytest.mark.parametrize(
    'given, made',
    [
        ({}, (0, 3.0, 'ridge', 'lora')),
        ({'steps': 0}, (0, 3.0, 'ridge', 'lora')),
        ({'compensate': 'none'}, (0, 3.0, 'none', 'none')),
        ({'compensate': 'ridge', 'recover': 'none'}, (0, 3.0, 'ridge', 'none')),
        ({'steps': 5}, (5, 3.0, 'none', 'none')),
        ({'epochs': 2.0}, (None, 2.0, 'none', 'none')),
        ({'epochs': 2.0, 'compensate': 'ridge'}, (None, 2.0, 'ridge', 'none')),
        ({'steps': 0, 'epochs': 3.0}, (0, 3.0, 'ridge', 'lora')),
    ],
)
def test_a_mask_is_learned_where_steps_or_epochs_ask_for_it(settings, given, made):
    cfg = settings('x', **({'steps': None} | given)).resolved()
    assert (cfg.steps, cfg.epochs, cfg.compensate, cfg.recover) == made
    assert cfg.resolved() == cfg


@pytest.mark.parametrize('how', ['lora', 'full', 'gains'])
def test_what_recovers_is_chosen(settings, how, tmp_path):
    files = {'calibration': 'rows.jsonl', 'heldout': None}
    cfg = settings('x', steps=None, recover=how, recover_steps=7).resolved()
    found = from_persona._recovery(cfg, tmp_path / 'hf', tmp_path, files)
    assert (found.method, found.steps, found.learning_rate) == (how, 7, None)
    # Small models repeat themselves.
    assert found.unlikelihood == 0.25
    silent = settings('x', steps=None, recover_unlikelihood=0.0).resolved()
    found = from_persona._recovery(silent, tmp_path / 'hf', tmp_path, files)
    assert (found.method, found.unlikelihood) == ('lora', 0)
    for name in ('recover_steps', 'recover_unlikelihood'):
        with pytest.raises(errors.InputError, match=f'--{name} needs --recover'):
            settings('x', steps=2, **{name: 1})


def test_the_papers_flags_learn_a_mask(settings):
    path = pathlib.Path(__file__).parents[1] / 'configs' / 'paper.flags'
    cfg = settings('x', steps=None)
    given = [
        f'--{name}={getattr(cfg, name)}'
        for name in ('base_model', 'output_dir', 'persona', 'instructions', 'rewrites')
    ]
    found = flags.parse(
        recipe_config.RunConfig, [f'--flagfile={path}', '--rewriter=file', *given]
    )
    assert found.resolved().epochs == 3 and found.resolved().steps is None
    assert found.resolved().compensate == 'none'


@pytest.mark.parametrize(
    'flag, value', [('objective', 'kl'), ('gains', True), ('learning_rate', 0.1)]
)
def test_how_a_mask_is_learned_says_nothing_where_none_is(settings, flag, value):
    with pytest.raises(errors.InputError, match=f'--{flag}={value} is for a mask that'):
        settings('x', steps=None, **{flag: value})
    settings('x', steps=2, **{flag: value})


def test_recovery_wants_a_refitted_model(settings):
    with pytest.raises(errors.InputError, match='--recover=gains needs --compensate'):
        settings('x', recover='gains')
    with pytest.raises(errors.InputError, match='--recover_steps needs --recover'):
        settings('x', recover_steps=3)
