"""launch/chaos.py on a few telling moments; the command itself strikes hundreds."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

_SCRIPT = pathlib.Path(__file__).parents[1] / 'launch' / 'chaos.py'


def _chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    cache = str(jax.config.jax_compilation_cache_dir)
    return subprocess.run(
        [sys.executable, str(_SCRIPT), *arguments],
        env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_kills_full_disks_and_two_at_once_leave_the_files_of_an_unbroken_run(tmp_path):
    if not hasattr(os, 'fork') or os.geteuid():
        pytest.skip('Disks can be made full by root alone.')
    result = _chaos(
        f'--output_dir={tmp_path}',
        '--cases=export,train',
        # Folder and record of an export, the first and last files of a run.
        r'--places=(rename|fsync) .*(/\.hf\.|ppjax-run|export\.json|/\.mask|metrics)',
        '--kills=2',
        '--full_disks=1',
        '--twice=1',
        '--interrupts=1',
    )
    assert result.returncode == 0, result.stdout + result.stderr
    trials = json.loads((tmp_path / 'chaos.json').read_text('utf-8'))['trials']
    assert {row['outcome'] for row in trials} == {'as unbroken'}
    assert sum(row['killed'] for row in trials) >= 2


def test_an_unknown_case_is_wrong_usage(tmp_path):
    result = _chaos(f'--output_dir={tmp_path / "new"}', '--cases=train,juggle')
    assert result.returncode == 2
    assert "ERROR: --cases: unknown 'juggle'" in result.stderr
    assert not (tmp_path / 'new').exists()
