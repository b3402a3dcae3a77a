"""Several processes of simulated devices."""

from collections.abc import Callable
import pathlib
import subprocess
import sys

import pytest

_LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'local_multiprocess.py'


@pytest.fixture
def launch() -> Callable[..., 'subprocess.Popen[str]']:
    """(processes, devices of each, verb and its flags) -> the launcher, started."""

    def start(count: int, devices: int, *verb: str) -> 'subprocess.Popen[str]':
        options = (f'--processes={count}', f'--devices={devices}')
        return subprocess.Popen(
            [sys.executable, str(_LAUNCHER), *options, '--', *verb],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
