"""Advisory locks that end with the process that holds them, however it ends."""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys

from ppjax.base import errors, processes
from ppjax.base import progress as progress_lib

NAME = '.ppjax-lock'
# Where a disk knows no locks: some network file systems.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}

# Lock file -> (descriptor, how often it is held) in this process.
_held: dict[pathlib.Path, tuple[int, int]] = {}


class Unsupported(Exception):
    """The disk has no locks."""


def try_lock(descriptor: int) -> bool:
    """Locks an open file or folder; false if another process has it locked.

    Raises:
        Unsupported: if the disk has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise Unsupported(os.strerror(error.errno)) from error
        return False
    return True


@contextlib.contextmanager
def held(folder: pathlib.Path, *, beside: bool = False) -> Iterator[None]:
    """Holds a folder, for this process alone, while inside.

    Of several processes that run a command together the first holds it for all. The
    same process may hold it again within.

    Args:
        folder: that exists.
        beside: whether the lock file lies beside it instead, since the folder as a
            whole is to be replaced; it may then be absent.

    Raises:
        InputError: naming the process that holds it.
    """
    folder = folder.resolve()
    path = folder.with_name(f'.{folder.name}{NAME}') if beside else folder / NAME
    taken = processes.first_decides(lambda: _take(folder, path))
    try:
        yield
    finally:
        if taken and processes.is_first():
            _release(path)


def _take(folder: pathlib.Path, path: pathlib.Path) -> bool:
    if path in _held:
        descriptor, count = _held[path]
        _held[path] = descriptor, count + 1
        return True
    descriptor = _locked(folder, path)
    _held[path] = descriptor, 1
    own = {
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'command': shlex.join(sys.argv)[:500],
        'since': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }
    # On a full disk nobody is named; the lock holds all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(own).encode(), 0)
    return True


def _locked(folder: pathlib.Path, path: pathlib.Path) -> int:
    """The descriptor of the lock file, locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise errors.DiskError(f'Cannot write {path}: {error.strerror}.') from error
        try:
            free = try_lock(descriptor)
        except Unsupported as error:
            progress_lib.say(
                f'Note: {folder} cannot be locked ({error}); run one command at a '
                'time on it.'
            )
            return descriptor
        if not free:
            text = os.pread(descriptor, 4096, 0).decode('utf-8', 'replace')
            os.close(descriptor)
            raise errors.InputError(
                f'{folder} is in use by {_holder(text)}. Wait for it to end, or give '
                'another folder.'
            )
        # Who held it may have taken the whole folder away.
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def _holder(text: str) -> str:
    try:
        own = json.loads(text)
        return (
            f'process {own["pid"]} on {own["host"]} since {own["since"]} '
            f'({own["command"]})'
        )
    except (ValueError, KeyError, TypeError):
        return 'another process'


def _release(path: pathlib.Path) -> None:
    descriptor, count = _held[path]
    if count > 1:
        _held[path] = descriptor, count - 1
        return
    del _held[path]
    # Before it is unlocked: then it is still this process's own.
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)
