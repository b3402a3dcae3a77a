"""Several processes of several simulated devices, on this machine."""

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors import numpy as safetensors_numpy

from ppjax import demo
from ppjax.base import errors, processes
from ppjax.compensation import config as compensation_config
from ppjax.compensation import loop as compensation_loop
from ppjax.masking import pmask
from ppjax.models import base_model
from ppjax.recovery import config as recovery_config
from ppjax.recovery import loop as recovery_loop
from ppjax.training import config, loop

_ROOT = pathlib.Path(__file__).parents[2]
_LAUNCHER = str(_ROOT / 'launch' / 'local_multiprocess.py')
_MESH = 'data:2,fsdp:2,tensor:2'
_STEPS = 24


def _values(model: pathlib.Path, files: Any, run: pathlib.Path) -> dict[str, Any]:
    return {
        'base_model': str(model),
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(run),
        'align': 1,
        'batch_size': 4,
        'steps': _STEPS,
        'score_scale': 0.1,
        'mesh': _MESH,
        # Not due before the end: what is saved before, a notice made.
        'checkpoint_every': 15,
    }


def _flags(values: dict[str, Any]) -> list[str]:
    return [f'--{name}={value}' for name, value in values.items()]


def _losses(run: pathlib.Path) -> list[tuple[int, float]]:
    lines = (run / 'metrics.jsonl').read_text('utf-8').splitlines()
    entries = [json.loads(line) for line in lines]
    return [(e['step'], e['loss']) for e in entries if e['stage'] == 'train']


def _steps_done(run: pathlib.Path) -> int:
    file = run / 'metrics.jsonl'
    return len(_losses(run)) if file.exists() else 0


def _second(run: pathlib.Path, launcher: subprocess.Popen) -> psutil.Process:
    """The second process, once the run has done steps that it had not done."""
    done, deadline = _steps_done(run), time.monotonic() + 240
    while _steps_done(run) <= done and launcher.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    [second] = (
        child
        for child in psutil.Process(launcher.pid).children()
        if '--process_id=1' in child.cmdline()
    )
    return second


def test_processes_learn_what_one_does_whatever_befalls_them(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    launch: Any,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    values = _values(chatty_model, calibration_files, whole)

    def learn(run: pathlib.Path) -> None:
        loop.learn_mask(
            config.TrainConfig(**values | {'output_dir': str(run)}),
            demo.read_rows(values['calibration'], split='train'),
            demo.read_rows(values['heldout'], split='test'),
        )

    learn(whole)
    verb = ['ppjax.train', *_flags(values | {'output_dir': str(broken)})]

    # A notice to one process stops all of them after the same step.
    launcher = launch(2, 4, *verb)
    _second(broken, launcher).terminate()
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, said
    assert 'SIGTERM: saving after this step, then stopping.' in said
    status = json.loads((broken / 'status.json').read_text())
    assert (status['state'], status['step']) == ('paused', _steps_done(broken))
    assert 0 < status['step'] < _STEPS

    resuming = f'Resuming {broken} at step {status["step"]} of {_STEPS}'

    # More go on with it, and where one is killed the others end too.
    launcher = launch(4, 2, *verb)
    _second(broken, launcher).kill()
    said = ''.join(launcher.communicate(timeout=120))
    assert launcher.returncode == 1
    assert 'ERROR: process 1 ended with -9 (signal 9)' in said
    assert resuming in said
    assert not (broken / 'mask.pmask').exists()

    # One ends it.
    learn(broken)
    assert resuming in capfd.readouterr().err
    ours, theirs = _losses(broken), _losses(whole)
    assert [step for step, _ in ours] == list(range(1, _STEPS + 1))
    np.testing.assert_allclose(
        [loss for _, loss in ours], [loss for _, loss in theirs], rtol=1e-5
    )
    masks = [pmask.load(run / 'mask.pmask').mask for run in (broken, whole)]
    # A tie, broken by rounding, moves two bits.
    assert (masks[0] != masks[1]).sum() <= 2


@pytest.mark.parametrize(
    ('how', 'beside'),
    [
        ({'lora_rank': 4}, 'adapter/adapter_model.safetensors'),
        ({'gains': True}, 'gains.safetensors'),
    ],
)
def test_two_processes_recover_what_one_does(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    launch: Any,
    tmp_path: pathlib.Path,
    how: dict[str, Any],
    beside: str,
) -> None:
    values = how | {
        'model': str(chatty_model),
        'calibration': str(calibration_files[0]),
        'heldout': str(calibration_files[1]),
        'batch_size': 8,
        'steps': 4,
        'learning_rate': 1e-3,
        'mesh': _MESH,
    }
    one, two = tmp_path / 'one', tmp_path / 'two'
    cfg = recovery_config.RecoverConfig(**values, output_dir=str(one))
    recovery_loop.recover(
        cfg.resolved(),
        demo.read_rows(values['calibration'], split='train'),
        demo.read_rows(values['heldout'], split='test'),
    )
    launcher = launch(2, 4, 'ppjax.recover', *_flags(values | {'output_dir': str(two)}))
    _, said = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, said
    theirs, ours = (
        safetensors_numpy.load_file(run / 'hf' / 'model.safetensors')
        for run in (one, two)
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-6)
    assert (two / beside).exists()
    found = [
        json.loads((run / 'results' / 'recovery.json').read_text())['models']
        for run in (one, two)
    ]
    for name in ('start', 'recovered'):
        assert found[1][name]['nll'] == pytest.approx(found[0][name]['nll'], rel=1e-5)


def test_two_processes_refit_what_one_does(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    launch: Any,
    tmp_path: pathlib.Path,
) -> None:
    base = base_model.open_base_model(str(chatty_model))
    mask = np.arange(2 * 40).reshape(2, 40) % 5 < 3
    kept = pmask.PersonaMask(mask, 'x', base.fingerprint(), persona_sha256='')
    pmask.save(tmp_path / 'mask.pmask', kept)
    values = {
        'base_model': str(chatty_model),
        'mask': str(tmp_path / 'mask.pmask'),
        'calibration': str(calibration_files[0]),
        'heldout': str(calibration_files[1]),
        'batch_size': 8,
        'mesh': _MESH,
    }
    one, two = tmp_path / 'one', tmp_path / 'two'
    cfg = compensation_config.CompensateConfig(
        **values, output_dir=str(one), verify=False
    )
    compensation_loop.compensate(
        cfg,
        demo.read_rows(values['calibration'], split='train'),
        demo.read_rows(values['heldout'], split='test'),
    )
    flags = [*_flags(values | {'output_dir': str(two)}), '--noverify']
    launcher = launch(2, 4, 'ppjax.compensate', *flags)
    _, said = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, said
    theirs, ours = (
        safetensors_numpy.load_file(run / 'hf' / 'model.safetensors')
        for run in (one, two)
    )
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5)
    assert not (two / 'refit').exists()


def test_processes_that_differ_do_not_start(
    chatty_model: pathlib.Path, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / 'run'
    listed = subprocess.run(
        [
            *(sys.executable, _LAUNCHER, '--processes=2', '--devices=1', '--dry_run'),
            *('--', 'ppjax.train'),
            *_flags(_values(chatty_model, calibration_files, run) | {'mesh': 'data:2'}),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = listed.stdout.splitlines()
    assert len(commands) == 2
    both = [
        subprocess.Popen(
            f'{command} --seed={seed}',
            shell=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, command in enumerate(commands)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1
        assert (
            'ERROR: Process 1 has another settings than process 0; all need the same '
            'command, files and versions.'
        ) in said
    assert not run.exists()


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ((None, 2, 0), 'want --coordinator'),
        ((None, None, 0), 'want --coordinator'),
        (('auto', 2, 0), 'goes without --num_processes'),
        (('10.0.0.1:80', None, None), 'goes with --num_processes'),
        (('10.0.0.1:80', 2, None), 'goes with --num_processes'),
        (('10.0.0.1', 2, 0), 'neither HOST:PORT nor auto'),
        (('host:port', 2, 0), 'neither HOST:PORT nor auto'),
    ],
)
def test_flags_that_name_no_process(given: Any, message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        processes.start(*given)
    assert (processes.count(), processes.index()) == (1, 0)


def test_one_process_decides_for_itself() -> None:
    processes.start(None, None, None)
    assert processes.first_decides(lambda: {'x': [1, None]}) == {'x': [1, None]}
    processes.agree({'settings': 'any'})
    assert processes.everywhere(True)
    assert not processes.everywhere(False)


def test_a_launcher_without_a_verb(launch: Any) -> None:
    launcher = launch(2, 1)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert 'ERROR: which verb?' in said
