"""Whole runs on a tiny model: artefacts, resuming, refusals, kill -9."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.training import config, loop


def _settings(model, files, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(output),
        'align': 1,
        'batch_size': 4,
        'steps': 6,
        'checkpoint_every': 2,
        'heldout_every': 3,
        'score_scale': 0.1,
    }
    return config.TrainConfig(**(values | changes))


def _learn(cfg):
    train = demo.read_rows(cfg.calibration, split='train')
    heldout = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    return loop.learn_mask(cfg, train, heldout)


def _metrics(run):
    return [json.loads(line) for line in (run / 'metrics.jsonl').open()]


@pytest.fixture(scope='module')
def finished(chatty_model, calibration_files, tmp_path_factory):
    """An unbroken run of 6 steps."""
    run = tmp_path_factory.mktemp('runs') / 'unbroken'
    _learn(_settings(chatty_model, calibration_files, run))
    return run


def test_a_run_leaves_what_the_design_promises(finished):
    for name in (
        'config.flags',
        'status.json',
        'metrics.jsonl',
        'mask.pmask',
        'results/likelihood.json',
        'results/start_mask.pmask',
    ):
        assert (finished / name).is_file(), name
    assert list((finished / 'tensorboard').glob('events*'))
    status = json.loads((finished / 'status.json').read_text())
    assert set(status) == {
        'state',
        'stage',
        'step',
        'total_steps',
        'started',
        'updated',
        'error',
    }
    assert (status['state'], status['step']) == ('done', 6)
    mask = pmask.load(finished / 'mask.pmask')
    assert mask.keep == 30
    assert mask.mask.shape == (2, 40)
    assert 'Bram' in mask.system_prompt


def test_metrics_have_every_step_and_figure(finished):
    entries = _metrics(finished)
    train = [entry for entry in entries if entry['stage'] == 'train']
    assert [entry['step'] for entry in train] == [1, 2, 3, 4, 5, 6]
    assert set(train[0]) == {
        'stage',
        'step',
        'loss',
        'grad_norm',
        'flip_fraction',
        'learning_rate',
        'examples_per_s',
        'answer_tokens_per_s',
    }
    held = [entry for entry in entries if entry['stage'] == 'heldout']
    assert [entry['step'] for entry in held] == [3, 6]


def test_likelihood_is_the_mean_of_its_examples(finished):
    found = json.loads((finished / 'results/likelihood.json').read_text())
    tokens = sum(example['answer_tokens'] for example in found['examples'])
    assert set(found['models']) == {'dense', 'random', 'one_shot', 'learned'}
    for name, value in found['models'].items():
        total = sum(example[name] for example in found['examples'])
        assert value['nll'] == pytest.approx(total / tokens, rel=1e-6)
    held = [entry for entry in _metrics(finished) if entry['stage'] == 'heldout']
    assert held[-1]['heldout_nll'] == pytest.approx(
        found['models']['learned']['nll'], rel=1e-6
    )


def test_paused_and_resumed_run_is_bit_identical(
    finished, chatty_model, calibration_files, tmp_path
):
    run = tmp_path / 'paused'
    assert _learn(_settings(chatty_model, calibration_files, run, stop_after=3)) is None
    assert not (run / 'mask.pmask').exists()
    _learn(_settings(chatty_model, calibration_files, run))
    np.testing.assert_array_equal(
        pmask.load(run / 'mask.pmask').mask, pmask.load(finished / 'mask.pmask').mask
    )
    ours, theirs = (
        [(e['step'], e.get('loss'), e.get('heldout_nll')) for e in _metrics(path)]
        for path in (run, finished)
    )
    assert ours == theirs


def test_finished_run_is_not_done_again(finished, chatty_model, calibration_files):
    before = (finished / 'mask.pmask').stat().st_mtime_ns
    assert _learn(_settings(chatty_model, calibration_files, finished)) == (
        finished / 'mask.pmask'
    )
    assert (finished / 'mask.pmask').stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'seed': 1}, r'--seed \(0 there, 1 now\)'),
        ({'sparsity': 0.5}, '--sparsity'),
        ({'steps': 9, 'learning_rate': 0.1}, r'--steps .*; --learning_rate '),
    ],
)
def test_another_runs_directory_is_refused(
    finished, chatty_model, calibration_files, changes, named
):
    with pytest.raises(errors.InputError, match=named):
        _learn(_settings(chatty_model, calibration_files, finished, **changes))


def test_changed_calibration_content_is_refused(
    finished, chatty_model, calibration_files, tmp_path
):
    run = tmp_path / 'run'
    copy = tmp_path / 'train.jsonl'
    copy.write_text(calibration_files[0].read_text())
    files = (copy, calibration_files[1])
    _learn(_settings(chatty_model, files, run, stop_after=1))
    copy.write_text(''.join(copy.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(errors.InputError, match='the content of calibration'):
        _learn(_settings(chatty_model, files, run))


def test_overwrite_starts_afresh(chatty_model, calibration_files, tmp_path):
    run = tmp_path / 'run'
    _learn(_settings(chatty_model, calibration_files, run, stop_after=2))
    cfg = _settings(
        chatty_model, calibration_files, run, seed=3, stop_after=1, overwrite=True
    )
    _learn(cfg)
    assert [e['step'] for e in _metrics(run)] == [1]
    # Else whoever repeats the recorded command would discard the run.
    assert 'overwrite\n' not in (run / 'config.flags').read_text()


def test_overwrite_spares_a_folder_that_is_no_run(
    chatty_model, calibration_files, tmp_path
):
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(errors.InputError, match='no run'):
        _learn(_settings(chatty_model, calibration_files, tmp_path, overwrite=True))
    assert (tmp_path / 'thesis.txt').read_text() == 'precious'


def test_heldout_row_that_is_also_calibration_is_refused(
    chatty_model, calibration_files, tmp_path
):
    files = (calibration_files[0], calibration_files[0])
    with pytest.raises(errors.InputError, match='also asked in the calibration rows'):
        _learn(_settings(chatty_model, files, tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_random_start_and_no_heldout(chatty_model, calibration_files, tmp_path):
    run = tmp_path / 'run'
    cfg = _settings(
        chatty_model,
        calibration_files,
        run,
        heldout=None,
        score_init='random',
        steps=2,
    )
    _learn(cfg)
    assert (run / 'mask.pmask').is_file()
    assert not (run / 'results/likelihood.json').exists()


def _command(model, files, run, *extra):
    return [
        sys.executable,
        '-m',
        'ppjax.train',
        f'--base_model={model}',
        f'--calibration={files[0]}',
        f'--output_dir={run}',
        '--align=1',
        '--batch_size=4',
        '--steps=40',
        '--checkpoint_every=1',
        '--score_scale=0.1',
        *extra,
    ]


@pytest.fixture(scope='module')
def whole(chatty_model, calibration_files, tmp_path_factory):
    """An unbroken run of 40 steps, a process of its own."""
    run = tmp_path_factory.mktemp('runs') / 'whole'
    command = _command(chatty_model, calibration_files, run, '--checkpoint_every=40')
    subprocess.run(command, check=True, timeout=300)
    return run


def test_kill_9_at_random_moments_gives_the_same_bits(
    whole, chatty_model, calibration_files, tmp_path
):
    """Two kills, the checkpoint of every step among what they may cut short."""
    broken = tmp_path / 'broken'
    rng = random.Random(time.time_ns())
    killed_at = []
    for _ in range(2):
        process = subprocess.Popen(
            _command(chatty_model, calibration_files, broken),
            stderr=subprocess.DEVNULL,
        )
        # A random moment within the next few steps.
        _wait_for_progress(process, broken)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed_at.append(_steps_done(broken))
    assert killed_at[-1] < 40, killed_at
    subprocess.run(
        _command(chatty_model, calibration_files, broken), check=True, timeout=300
    )
    _assert_same_run(broken, whole, f'killed at {killed_at}')


def test_sigterm_saves_and_the_same_command_goes_on(
    whole, chatty_model, calibration_files, tmp_path
):
    run = tmp_path / 'run'
    # No checkpoint is due before the end.
    command = _command(chatty_model, calibration_files, run, '--checkpoint_every=40')
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        _wait_for_progress(process, run)
        process.terminate()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert 'SIGTERM: saving after this step' in said
    status = json.loads((run / 'status.json').read_text())
    assert status['state'] == 'paused'
    assert 0 < status['step'] < 40
    assert f'Paused after step {status["step"]}; the same command goes on.' in said
    resumed = subprocess.run(
        command, check=True, timeout=300, stderr=subprocess.PIPE, text=True
    )
    assert f'at step {status["step"]} of 40' in resumed.stderr
    _assert_same_run(run, whole)


def _assert_same_run(run: pathlib.Path, other: pathlib.Path, note: str = '') -> None:
    np.testing.assert_array_equal(
        pmask.load(run / 'mask.pmask').mask,
        pmask.load(other / 'mask.pmask').mask,
        err_msg=note,
    )
    ours, theirs = (
        [(e['step'], e['loss']) for e in _metrics(path)] for path in (run, other)
    )
    assert ours == theirs


def _wait_for_progress(process: subprocess.Popen, run: pathlib.Path) -> None:
    """Until the run has done steps that it had not done, or ended."""
    done, deadline = _steps_done(run), time.monotonic() + 240
    while _steps_done(run) <= done and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _steps_done(run: pathlib.Path) -> int:
    path = run / 'metrics.jsonl'
    return path.read_text().count('\n') if path.exists() else 0
