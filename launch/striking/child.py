"""What launch/chaos.py does to a command from inside: it dies, or is stopped, there.

Commands are forked from a process that has imported everything, since imports are most
of a short command's time. What a command does to files of its run directory is counted
through Python's audit hooks, and the blow falls before the operation of a number. ppjax
knows nothing of it.
"""

import atexit
from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import Any

from absl import flags
import jax

from ppjax.base import interrupts
from striking import disks

KINDS = ('none', 'kill', 'moment', 'interrupt', 'stop', 'fill')
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = frozenset(
    {'open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'os.truncate', 'os.link'}
)
# A command that takes longer than this hangs.
_LIMIT_SECONDS = 240.0
_POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Blow:
    """What happens to a command, and when.

    Attributes:
        kind: 'kill' (SIGKILL), 'interrupt' (SIGINT), 'stop' (SIGSTOP) and 'fill' (the
            disk is full from here on) fall before an operation; 'moment' is a SIGKILL
            some seconds after the start.
        at: number of the operation, from 0 on.
        seconds: of a 'moment'.
    """

    kind: str = 'none'
    at: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; that of a signal is negative.
        output: what it said.
        seconds: how long it took.
        stopped: whether it has not ended but stands still.
        pid: of the process.
    """

    code: int
    output: str
    seconds: float
    stopped: bool
    pid: int


class _Operations:
    """Counts what is done to files below a folder, and strikes before one of them."""

    def __init__(self, folder: pathlib.Path, blow: Blow, strike: Callable[[], None]):
        self._folder, self._blow, self._strike = f'{folder}', blow, strike
        self._lock = threading.Lock()
        self.seen: list[str] = []

    def install(self) -> None:
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def counted(fd: Any) -> None:
            number = fd if isinstance(fd, int) else fd.fileno()
            self._count('fsync', os.readlink(f'/proc/self/fd/{number}'))
            fsync(fd)

        os.fsync = counted

    def _audit(self, event: str, values: tuple[Any, ...]) -> None:
        if event not in _EVENTS:
            return
        path = values[0]
        if not isinstance(path, (str, os.PathLike)):
            return
        if event == 'open' and not (values[2] or 0) & _WRITES:
            return
        name = os.fspath(path)
        at = values[-1] if event in ('os.remove', 'os.rmdir', 'os.mkdir') else -1
        if at != -1:
            name = os.path.join(os.readlink(f'/proc/self/fd/{at}'), name)
        self._count(event.removeprefix('os.'), os.path.abspath(name))

    def _count(self, event: str, path: str) -> None:
        if not path.startswith(self._folder):
            return
        with self._lock:
            number = len(self.seen)
            place = re.sub(r'\d+', '#', path.removeprefix(self._folder))
            self.seen.append(f'{event} {place}')
        if number == self._blow.at and self._blow.kind not in ('none', 'moment'):
            self._strike()


def _strike(blow: Blow, filler: pathlib.Path | None) -> None:
    if blow.kind == 'fill':
        assert filler is not None
        disks.fill(filler)
        return
    signals = {
        'kill': signal.SIGKILL,
        'interrupt': signal.SIGINT,
        'stop': signal.SIGSTOP,
    }
    os.kill(os.getpid(), signals[blow.kind])
    if blow.kind != 'interrupt':
        # Another thread may have taken the signal: until it works, nothing goes on.
        time.sleep(1)


def _run_verb(
    words: Sequence[str], operations: _Operations, trace: pathlib.Path | None
) -> int:
    """Runs `python -m WORDS`, as far as that goes in a process that imported it."""
    # Hundreds of processes compile the same tiny programs.
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.end_at_once()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    flags.FLAGS.unparse_flags()
    sys.argv = list(words)
    operations.install()
    code: Any = 0
    try:
        runpy.run_module(words[0], run_name='__main__', alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001 - as Python itself ends a program.
        traceback.print_exc()
        code = 1
    # What goes on in the background may still write.
    atexit._run_exitfuncs()
    if trace is not None:
        trace.write_text('\n'.join(operations.seen))
    return code if isinstance(code, int) else int(code is not None)


def start(
    words: Sequence[str],
    folder: pathlib.Path,
    output: pathlib.Path,
    *,
    blow: Blow,
    trace: pathlib.Path | None = None,
    filler: pathlib.Path | None = None,
) -> int:
    """Starts a command in a process of its own.

    Args:
        words: the verb's module and its arguments.
        folder: the run directory whose operations count.
        output: file for stdout and stderr.
        blow: what happens to it.
        trace: file for the operations, one a line, of a command that ends by itself.
        filler: file on the same disk that takes its room, for a blow that fills it.

    Returns:
        The process's id.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        operations = _Operations(folder, blow, lambda: _strike(blow, filler))
        code = _run_verb(words, operations, trace)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, output: pathlib.Path, *, blow: Blow) -> Ended:
    """Waits until a command ends or, struck by a 'stop', stands still.

    One that takes too long is killed, and has the exit code 124.
    """
    began = time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        spent = time.monotonic() - began
        if found:
            break
        if blow.kind == 'moment' and spent > blow.seconds:
            os.kill(pid, signal.SIGKILL)
        elif spent > _LIMIT_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Ended(124, _text(output), spent, False, pid)
        time.sleep(_POLL_SECONDS)
    stopped = os.WIFSTOPPED(status)
    code = 0 if stopped else os.waitstatus_to_exitcode(status)
    return Ended(code, _text(output), spent, stopped, pid)


def _text(output: pathlib.Path) -> str:
    return output.read_text('utf-8', 'replace') if output.exists() else ''
