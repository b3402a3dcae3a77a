"""Runs a verb as several processes of several simulated devices on this machine.

    python launch/local_multiprocess.py --processes=2 --devices=4 -- \\
        ppjax.train --flagfile=configs/quickstart.flags --mesh=data:2,fsdp:4

What a pod does, without one: the processes find each other on 127.0.0.1, and their
collectives go through it. The output is the first process's; that of the others goes
to files, whose ends are shown if something fails. If one process ends, the others are
ended; SIGTERM is passed on, and saves. Exit code: that of the first that failed.
"""

from collections.abc import Sequence
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from typing import IO

from absl import app, flags

_PROCESSES = flags.DEFINE_integer('processes', 2, 'How many.', lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    'devices', 4, 'Simulated CPU devices of each.', lower_bound=1
)
_GRACE = flags.DEFINE_float(
    'grace', 60, 'Seconds that the others get to end by themselves after one failed.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands, and run nothing.')
_SHOWN_LINES = 5


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return int(listener.getsockname()[1])


def _commands(verb: Sequence[str], port: int) -> list[list[str]]:
    return [
        [
            sys.executable,
            '-m',
            *verb,
            f'--coordinator=127.0.0.1:{port}',
            f'--num_processes={_PROCESSES.value}',
            f'--process_id={index}',
        ]
        for index in range(_PROCESSES.value)
    ]


def _show(output: IO[bytes]) -> None:
    """Passes the first process's output on, line by line."""
    for line in output:
        # The collectives' own lines are for nobody.
        if not line.startswith(b'[Gloo]'):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Waits for all.

    Returns:
        (which failed first, its exit code); (0, 0) if none did.
    """
    failed: tuple[int, int] | None = None
    deadline = float('inf')
    while any(process.poll() is None for process in running):
        for index, process in enumerate(running):
            if failed is None and process.poll():
                failed = index, process.returncode
                deadline = time.monotonic() + _GRACE.value
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(0.1)
    codes = [process.returncode for process in running]
    return failed or next(((i, code) for i, code in enumerate(codes) if code), (0, 0))


def main(argv: Sequence[str]) -> int:
    verb = argv[1:]
    if not verb:
        print(
            'ERROR: which verb? As in: -- ppjax.train --flagfile=...', file=sys.stderr
        )
        return 2
    environment = {
        # Each waits for the others on a thread of its own.
        'PJRT_NPROC': str(4 * _DEVICES.value),
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(_DEVICES.value),
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    }
    commands = _commands(verb, _free_port())
    if _DRY_RUN.value:
        shown = ' '.join(f'{name}={value}' for name, value in environment.items())
        for command in commands:
            print(f'{shown} {shlex.join(command)}')
        return 0
    logs = pathlib.Path(tempfile.mkdtemp(prefix='ppjax-processes-'))
    running: list[subprocess.Popen[bytes]] = []
    for index, command in enumerate(commands):
        with (logs / f'{index}.log').open('wb') as log:
            running.append(
                subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    stdout=log if index else subprocess.PIPE,
                    stderr=log if index else None,
                )
            )
    output = running[0].stdout
    assert output is not None
    showing = threading.Thread(target=_show, args=(output,))
    showing.start()

    def pass_on(number: int, _: types.FrameType | None) -> None:
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    index, code = _wait(running)
    showing.join()
    if code:
        print(
            f'ERROR: process {index} ended with {code}'
            + (f' (signal {-code})' if code < 0 else '')
            + ', and so the others did.',
            file=sys.stderr,
        )
        for other in range(1, len(running)):
            lines = (logs / f'{other}.log').read_text('utf-8', 'replace').splitlines()
            told = [line for line in lines if not line.startswith('[Gloo]')]
            for line in told[-_SHOWN_LINES:]:
                print(f'[process {other}] {line}', file=sys.stderr)
        print(f'All of it: {logs}', file=sys.stderr)
    else:
        shutil.rmtree(logs)
    # A signal's number is no exit code.
    return 1 if code < 0 else code


if __name__ == '__main__':
    app.run(main)
