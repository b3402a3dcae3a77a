"""`python -m ppjax.sweep` from outside: exit codes, and kill -9."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ppjax.masking import pmask

_SEEDS, _STEPS = 2, 8


def _sweep(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'ppjax.sweep', *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(
    ('grid', 'said'),
    [
        ('sparcity=0.5', "--grid: unknown axis 'sparcity'. Did you mean: sparsity ?"),
        ('persona=a,b', '--calibration must hold {persona}'),
    ],
)
def test_a_bad_grid_is_wrong_usage(grid, said, tmp_path):
    result = _sweep(
        '--base_model=x',
        f'--output_dir={tmp_path / "run"}',
        '--calibration=a',
        '--heldout=b',
        f'--grid={grid}',
    )
    assert result.returncode == 2
    assert f'ERROR: {said}' in result.stderr
    assert not (tmp_path / 'run').exists()


def _command(model, files, run):
    return [
        f'--base_model={model}',
        f'--calibration={files[0]}',
        f'--heldout={files[1]}',
        f'--output_dir={run}',
        f'--grid=seed={",".join(map(str, range(_SEEDS)))}',
        '--align=1',
        '--batch_size=4',
        f'--steps={_STEPS}',
        '--checkpoint_every=1',
        '--heldout_every=1000',
    ]


def _steps_done(run):
    return sum(
        path.read_text().count('\n') for path in run.glob('cells/*/metrics.jsonl')
    )


def _trained(run):
    lines = [
        json.loads(line)
        for path in sorted(run.glob('cells/*/metrics.jsonl'))
        for line in path.open()
    ]
    return [(x['step'], x.get('loss'), x.get('heldout_nll')) for x in lines]


def test_kill_9_in_a_later_cell_gives_the_masks_of_an_unbroken_sweep(
    chatty_model, calibration_files, tmp_path
):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    result = _sweep(*_command(chatty_model, calibration_files, whole))
    assert result.returncode == 0, result.stderr
    assert '### Settings' in result.stdout
    command = _command(chatty_model, calibration_files, broken)
    rng = random.Random(time.time_ns())
    # In the second cell: the first has to stand, and this one to go on.
    wanted = rng.randint(_STEPS + 2, 2 * _STEPS - 1)
    process = subprocess.Popen(
        [sys.executable, '-m', 'ppjax.sweep', *command], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    while _steps_done(broken) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = _steps_done(broken)
    assert not (broken / 'sweep.json').exists(), killed_at
    first = broken / 'cells' / 'seed-0' / 'mask.pmask'
    made = first.stat().st_mtime_ns
    result = _sweep(*command)
    assert result.returncode == 0, result.stderr
    assert first.stat().st_mtime_ns == made
    for seed in range(_SEEDS):
        ours, theirs = (
            pmask.load(run / 'cells' / f'seed-{seed}' / 'mask.pmask').mask
            for run in (broken, whole)
        )
        np.testing.assert_array_equal(ours, theirs, err_msg=f'killed at {killed_at}')
    assert _trained(broken) == _trained(whole)
    ours, theirs = (
        [
            {key: cell[key] for key in ('cell', 'axes', 'nll', 'heldout')}
            for cell in json.loads((run / 'sweep.json').read_text())['cells']
        ]
        for run in (broken, whole)
    )
    assert ours == theirs
