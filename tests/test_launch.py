"""The scripts in launch/ that run verbs elsewhere, as far as one machine can tell."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_TPU = {'NAME': 'mine', 'ZONE': 'us-west4-a'}
_XPK = {'CLUSTER': 'c', 'ZONE': 'z', 'TPU_TYPE': 'v5litepod-64', 'WORKLOAD': 'w'}
_VERB = ('ppjax.train', '--calibration=my rows.jsonl')

# Starts what Slurm would on two hosts, and passes signals on.
_SRUN = """#!{python}
import os, random, signal, subprocess, sys
own = {{'SLURM_JOB_ID': os.environ['SLURM_JOB_ID'], 'SLURM_NTASKS': '2',
       'SLURM_STEP_NODELIST': '127.0.0.1', 'SLURM_STEP_NUM_NODES': '2'}}
steps = [
    subprocess.Popen(
        sys.argv[2:],
        env=os.environ | own | {{'SLURM_PROCID': str(i), 'SLURM_LOCALID': '0'}},
    )
    for i in range(2)
]
signal.signal(signal.SIGTERM, lambda n, _: [step.send_signal(n) for step in steps])
sys.exit(max(step.wait() for step in steps))
"""


def _launch(script: str, *arguments: str, **environment: str) -> Any:
    kept = {name: value for name, value in os.environ.items() if name not in _XPK}
    return subprocess.run(
        ['bash', str(_ROOT / 'launch' / script), *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _commands(script: str, *arguments: str, **environment: str) -> list[list[str]]:
    done = _launch(script, '--dry_run', *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_a_queued_resource():
    chips = {'ACCELERATOR': 'v5litepod-64', 'RUNTIME': 'v2-alpha-tpuv5-lite'}
    [create] = _commands('tpu_vm.sh', 'create', **_TPU, **chips, SPOT='1')
    assert create[:6] == [
        *['gcloud', 'compute', 'tpus', 'queued-resources', 'create'],
        'mine',
    ]
    assert {'--node-id=mine', '--zone=us-west4-a', '--spot'} <= set(create)
    assert '--accelerator-type=v5litepod-64' in create
    [create] = _commands('tpu_vm.sh', 'create', **_TPU, **chips)
    assert '--spot' not in create
    [delete] = _commands('tpu_vm.sh', 'delete', **_TPU)
    assert 'delete' in delete


def test_all_hosts_of_a_slice():
    archive, copy, unpack = _commands('tpu_vm.sh', 'setup', **_TPU)
    assert archive[:2] == ['git', 'archive']
    assert '--worker=all' in copy
    assert 'bash ppjax/launch/setup.sh tpu' in unpack[-1]
    [run] = _commands('tpu_vm.sh', 'run', *_VERB, **_TPU, MOUNT='gcsfuse b /mnt')
    assert '--worker=all' in run
    inner = run[-1].removeprefix('--command=')
    assert inner.startswith('gcsfuse b /mnt && cd ppjax && nohup ')
    words = shlex.split(inner)
    assert words[words.index('-m') + 1 :][:3] == [*_VERB, '--coordinator=auto']


def test_a_workload_on_gke():
    [create] = _commands('xpk.sh', *_VERB, **_XPK, SLICES='2')
    assert create[:3] == ['xpk', 'workload', 'create']
    assert {'--cluster=c', '--tpu-type=v5litepod-64', '--num-slices=2'} <= set(create)
    inner = shlex.split(create[-1].removeprefix('--command='))
    assert inner[-4:] == ['-m', *_VERB, '--coordinator=auto']


@pytest.mark.parametrize(
    ('script', 'arguments', 'environment', 'message'),
    [
        ('tpu_vm.sh', [], {}, 'which of create, setup, run, log and delete'),
        ('tpu_vm.sh', ['create'], _TPU, 'create wants ACCELERATOR'),
        ('tpu_vm.sh', ['run'], _TPU, 'run which verb'),
        ('xpk.sh', [*_VERB], _TPU, 'CLUSTER must be in the environment'),
        ('xpk.sh', [], _XPK, 'which verb'),
        ('slurm.sh', [], {}, 'which verb'),
    ],
)
def test_what_is_missing(script, arguments, environment, message):
    done = _launch(script, '--dry_run', *arguments, **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ''


def test_a_slurm_job_saves_goes_back_into_the_queue_and_goes_on(
    chatty_model, calibration_files, tmp_path
):
    run = tmp_path / 'run'
    job = _launch(
        'slurm.sh',
        '--dry_run',
        'ppjax.train',
        f'--base_model={chatty_model}',
        f'--calibration={calibration_files[0]}',
        f'--output_dir={run}',
        *('--align=1', '--batch_size=4', '--steps=30', '--mesh=data:2,fsdp:2'),
        VENV=sys.prefix,
        NODES='2',
    ).stdout
    assert '#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n' in job
    bin_dir, queue = tmp_path / 'bin', tmp_path / 'queue'
    bin_dir.mkdir()
    (bin_dir / 'srun').write_text(_SRUN.format(python=sys.executable))
    (bin_dir / 'scontrol').write_text(f'#!/bin/sh\necho "$@" > {queue}\n')
    for file in bin_dir.iterdir():
        file.chmod(0o755)
    environment = os.environ | {
        'PATH': f'{bin_dir}{os.pathsep}{os.environ["PATH"]}',
        # Decides the port that JAX takes.
        'SLURM_JOB_ID': str(os.getpid()),
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': '2',
    }
    first = subprocess.Popen(['bash', '-c', job], env=environment)
    deadline = time.monotonic() + 240
    while not (run / 'metrics.jsonl').exists() and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 0
    assert queue.read_text() == f'requeue {os.getpid()}\n'
    status = json.loads((run / 'status.json').read_text())
    assert status['state'] == 'paused'
    queue.unlink()
    subprocess.run(['bash', '-c', job], env=environment, check=True, timeout=240)
    status = json.loads((run / 'status.json').read_text())
    assert (status['state'], status['step']) == ('done', 30)
    assert not queue.exists()
