"""Files and folders that are whole or absent, never half-written.

What is being written has a temporary name, `.NAME.ppjax-tmp-...`, and is locked by its
process. A temporary that nobody has locked was left by a process that is dead; the
next that writes there removes it. Of several processes the first alone keeps what is
written.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any
import uuid

from ppjax.base import errors, locks, processes

_TEMPORARY, _REPLACED = '.ppjax-tmp-', '.ppjax-old-'


@contextlib.contextmanager
def _as_input_error(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise errors.DiskError(
            f'Cannot write {path}: {reason}; nothing was changed there.'
        ) from error


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: pathlib.Path, kind: str) -> pathlib.Path:
    return path.with_name(f'.{path.name}{kind}{uuid.uuid4().hex[:12]}')


def temporary_of(path: pathlib.Path) -> pathlib.Path:
    """A new name for what is to become `path`, beside it."""
    return _beside(path, _TEMPORARY)


def is_temporary(name: str) -> bool:
    """Whether a file's or folder's name is that of something half-written."""
    return name.startswith('.') and (_TEMPORARY in name or _REPLACED in name)


def remove_dead(folder: pathlib.Path, name: str | None = None) -> None:
    """Removes what dead processes left half-written in a folder.

    A folder that one of them had moved aside, for a new one that never came, is put
    back.

    Args:
        folder: may be absent.
        name: of the one file or folder that was to be written; None for all, in
            folders within as well.

    Raises:
        DiskError: if it cannot.
    """
    if not folder.is_dir():
        return
    with _as_input_error(folder):
        entries = folder.iterdir() if name is not None else folder.rglob('.*')
        for entry in sorted(entries):
            if not is_temporary(entry.name) or not entry.exists():
                continue
            owner = entry.name[1:].rsplit('.ppjax-', 1)[0]
            if (name is not None and owner != name) or _is_alive(entry):
                continue
            if _REPLACED in entry.name and not entry.with_name(owner).exists():
                os.replace(entry, entry.with_name(owner))
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _is_alive(temporary: pathlib.Path) -> bool:
    """Whether some process, this one included, still writes it."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not locks.try_lock(descriptor)
    except locks.Unsupported:
        return True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(locks.Unsupported):
            locks.try_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(
    path: pathlib.Path,
    make: Callable[[pathlib.Path], None],
    put: Callable[[pathlib.Path, pathlib.Path], None],
) -> Iterator[pathlib.Path]:
    """Gives something made under a temporary name, which is then put at `path`."""
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as scratch:
            temporary = pathlib.Path(scratch, path.name)
            make(temporary)
            yield temporary
        return
    temporary = temporary_of(path)
    with _as_input_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path.parent, path.name)
        try:
            make(temporary)
            with _locked(temporary):
                yield temporary
                for entry in (*temporary.rglob('*'), temporary):
                    _sync(entry)
                put(temporary, path)
            _sync(path.parent)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def file(
    path: str | pathlib.Path,
) -> contextlib.AbstractContextManager[pathlib.Path]:
    """Gives a temporary name to write to, which then becomes `path`.

    On any error the temporary file is removed and `path` stays as it was.

    Raises:
        DiskError: if the disk is full or the place cannot be written.
    """
    return _replacing(pathlib.Path(path), pathlib.Path.touch, os.replace)


def directory(
    path: str | pathlib.Path,
) -> contextlib.AbstractContextManager[pathlib.Path]:
    """Gives a temporary folder to fill, which then becomes `path`.

    An older folder of that name is replaced once the new one is complete.

    Raises:
        DiskError: if the disk is full or the place cannot be written.
    """
    return _replacing(pathlib.Path(path), pathlib.Path.mkdir, _put_directory)


def _put_directory(temporary: pathlib.Path, path: pathlib.Path) -> None:
    replaced = _beside(path, _REPLACED)
    if path.exists():
        os.replace(path, replaced)
    try:
        os.replace(temporary, path)
    except OSError:
        if replaced.exists():
            os.replace(replaced, path)
        raise
    _sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with file(path) as temporary:
        # Half a surrogate pair, which UTF-8 cannot hold, becomes its JSON escape.
        temporary.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + '\n')
