"""JSON lines: read with errors that name file and line, and appended durably."""

from collections.abc import Callable, Iterable, Iterator
import hashlib
import io
import json
import os
import pathlib
from typing import Any, TypeVar

from ppjax.base import atomic, errors, processes, reading

Row = TypeVar('Row')


def parse(line: bytes, where: str) -> Any:
    """One line's value.

    Raises:
        InputError: if it is no UTF-8 text or no JSON.
    """
    try:
        return json.loads(line.decode('utf-8'))
    except UnicodeDecodeError as error:
        raise errors.InputError(f'{where}: not UTF-8 text ({error}).') from None
    except ValueError as error:  # Numbers can also be too long.
        raise errors.InputError(f'{where}: invalid JSON ({error}).') from None
    except RecursionError:
        raise errors.InputError(f'{where}: JSON nested too deep.') from None


def read(path: str | pathlib.Path, what: str) -> Iterator[tuple[str, Any]]:
    """The values of a file; blank lines are passed over.

    Args:
        path: of the file.
        what: names it in errors, as in 'Calibration file'.

    Yields:
        ('path:line', value).

    Raises:
        InputError: naming file and line of the first bad one, or an unreadable file.
    """
    for number, line in enumerate(reading.lines(path, what), start=1):
        if line.strip():
            where = f'{path}:{number}'
            yield where, parse(line, where)


def read_value(path: str | pathlib.Path, what: str) -> Any:
    """The one JSON value that a file holds.

    Raises:
        InputError: if the file cannot be read, or is none.
    """
    return parse(reading.read_text(path, what).encode(), str(path))


def read_object(path: str | pathlib.Path, what: str = 'File') -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        InputError: if the file cannot be read, or holds something else.
    """
    found = read_value(path, what)
    if isinstance(found, dict):
        return found
    raise errors.InputError(f'{path} holds a {type(found).__name__}, wanted an object.')


def stored_object(path: pathlib.Path) -> dict[str, Any] | None:
    """The object of a file that may be absent or damaged; None if it is."""
    try:
        return read_object(path)
    except errors.InputError:
        return None


def write(path: str | pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes a whole file of rows, atomically."""
    lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    atomic.write_text(path, ''.join(lines))


def digest(value: Any) -> str:
    """sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def encodable(text: str) -> str:
    """Text without halves of surrogate pairs, which servers send and no file takes."""
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def typed(row: Any, **kinds: type) -> list[Any]:
    """The fields of a row, each of the very type that is wanted.

    Raises:
        KeyError, TypeError: if it has none such.
    """
    values = [row[name] for name in kinds]
    if not isinstance(row, dict) or list(map(type, values)) != [*kinds.values()]:
        raise TypeError(f'wanted {kinds}, got {row}.')
    return values


class AppendLog:
    """A file that grows by whole lines and survives being cut short; to be closed.

    Opening it drops a torn last line; what `append` returned from is on disk. Of
    several processes the first alone reads and writes it, and tells the others what
    it had.
    """

    def __init__(self, path: str | pathlib.Path):
        """Opens or creates the file; `entries` holds what it had.

        Raises:
            InputError: if the file cannot be written, or a line that is not the
                last is no JSON.
        """
        self._path = pathlib.Path(path)
        self._file: io.FileIO | None = None
        self.entries: list[Any] = processes.first_decides(self._open)

    def _open(self) -> list[Any]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            data = b''
            if os.path.lexists(self._path):
                reading.require_file(self._path, 'Log')
                data = self._path.read_bytes()
            whole = data[: data.rfind(b'\n') + 1]
            entries = [
                parse(line, f'{self._path}:{number}')
                for number, line in enumerate(whole.splitlines(), start=1)
            ]
            # Without a buffer: what failed to be written is not tried again at the end.
            self._file = self._path.open('ab', buffering=0)
            if len(whole) != len(data):
                self._file.truncate(len(whole))
        except OSError as error:
            raise self._failed(error) from error
        return entries

    def rows(self, read: Callable[[Any], Row], what: str) -> list[Row]:
        """What is read of each entry.

        Args:
            read: raises one of Python's errors for an entry that is no row.
            what: names the file, as in 'an answer log'.

        Raises:
            InputError: naming the line that is no row.
        """
        found = []
        for number, entry in enumerate(self.entries, start=1):
            try:
                found.append(read(entry))
            except (TypeError, KeyError, IndexError, ValueError):
                raise errors.InputError(
                    f'{self._path}:{number}: no row of {what}; move the file away to '
                    'start anew.'
                ) from None
        return found

    def append(self, *values: Any) -> None:
        """Adds lines and returns once they are on disk.

        Raises:
            InputError: if the disk is full or the file cannot be written.
        """
        if self._file is None:
            return
        lines = [
            json.dumps(value, ensure_ascii=False, allow_nan=False) + '\n'
            for value in values
        ]
        try:
            # Half a surrogate pair, which UTF-8 cannot hold, becomes its escape.
            data = ''.join(lines).encode('utf-8', 'backslashreplace')
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _failed(self, error: OSError) -> errors.DiskError:
        return errors.DiskError(
            f'Cannot write {self._path}: {error.strerror or error}; the same command '
            'goes on from the last whole line.'
        )
