"""Files and folders that are whole or absent, never half-written.

Of several processes the first alone keeps what is written.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from ppjax.base import errors, processes


@contextlib.contextmanager
def _as_input_error(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise errors.InputError(
            f'Cannot write {path}: {reason}; nothing was changed there.'
        ) from error


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary name to write to, which then becomes `path`.

    On any error the temporary file is removed and `path` stays as it was.

    Raises:
        InputError: if the disk is full or the place cannot be written.
    """
    path = pathlib.Path(path)
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as scratch:
            yield pathlib.Path(scratch, path.name)
        return
    temporary = path.with_name(f'.{path.name}.tmp{os.getpid()}')
    with _as_input_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def directory(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary folder to fill, which then becomes `path`.

    An older folder of that name is replaced once the new one is complete.

    Raises:
        InputError: if the disk is full or the place cannot be written.
    """
    path = pathlib.Path(path)
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as scratch:
            yield pathlib.Path(scratch)
        return
    temporary = path.with_name(f'.{path.name}.tmp{os.getpid()}')
    replaced = path.with_name(f'.{path.name}.old{os.getpid()}')
    with _as_input_error(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for entry in temporary.rglob('*'):
                _sync(entry)
            if path.exists():
                os.replace(path, replaced)
            try:
                os.replace(temporary, path)
            except OSError:
                if replaced.exists():
                    os.replace(replaced, path)
                raise
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with file(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + '\n')
