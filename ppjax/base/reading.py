"""Files that users bring: only ordinary ones are opened, and within bounds.

A pipe or a device could keep a reader waiting or never end, so what a path is gets
looked at before it is opened. Text may be UTF-8, with or without a byte order mark,
or UTF-16 with one; files of lines may be packed by gzip.
"""

import codecs
from collections.abc import Callable, Generator, Iterator
import contextlib
import gzip
import io
import os
import pathlib
import stat
from typing import Any
import zlib

from ppjax.base import errors

# What is read whole: more than any list of personas or any config takes.
MAX_FILE_BYTES = 64 * 2**20
# A line of JSON is one row; what is longer has no line breaks where they belong.
MAX_LINE = 64 * 2**20
# Of text, gzip makes a tenth or so; what unpacks to far more is made to do harm.
_MAX_RATIO = 100
_BUFFER = 2**17
_GZIP = b'\x1f\x8b'
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = (
    (stat.S_ISFIFO, 'a pipe'),
    (stat.S_ISSOCK, 'a socket'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
)


def require_file(path: str | pathlib.Path, what: str) -> int:
    """The size in bytes of a file that may be opened.

    Libraries that open files themselves are given only what passed here.

    Args:
        path: of the file.
        what: names it in errors, as in 'Persona file'; may be empty.

    Raises:
        InputError: if it is absent, a folder, pipe, device or socket, or its name is
            none that a file can have.
    """
    where = f'{what} {path}'.strip()
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise errors.InputError(f'{where} does not exist.') from None
    except OSError as error:
        raise errors.InputError(f'Cannot read {where}: {error.strerror}.') from None
    except ValueError:  # NUL bytes, and halves of surrogate pairs.
        raise errors.InputError(f'{where} is no name that a file can have.') from None
    if stat.S_ISDIR(status.st_mode):
        raise errors.InputError(
            f'{where} is a folder and no regular file; give one file in it.'
        )
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), '')
        raise errors.InputError(
            f'{where} is {kind or "something else"} and no regular file; save what it '
            'gives into a file, and give that.'
        )
    return status.st_size


@contextlib.contextmanager
def opened(path: str | pathlib.Path, what: str) -> Iterator[io.BufferedReader]:
    """Opens a file that passes `require_file`, for reading bytes.

    Raises:
        InputError: see `require_file`; also if opening or reading fails.
    """
    require_file(path, what)
    try:
        with open(path, 'rb') as file:
            yield file
    except OSError as error:
        # gzip's own errors have no strerror.
        reason = error.strerror or str(error)
        raise errors.InputError(f'Cannot read {path}: {reason}.') from None


def read_bytes(path: str | pathlib.Path, what: str, head: int | None = None) -> bytes:
    """A whole file, or its start.

    Args:
        path: of the file.
        what: names it in errors, as in 'Persona file'.
        head: the number of bytes wanted; None is all.

    Raises:
        InputError: see `require_file`; also if it is too large.
    """
    with opened(path, what) as file:
        # Reading up to a number sets aside that many bytes at once.
        size = os.fstat(file.fileno()).st_size
        if head is not None:
            return file.read(min(head, size))
        if size <= MAX_FILE_BYTES:
            return file.read(size)
    raise errors.InputError(
        f'{what} {path} is larger than {MAX_FILE_BYTES // 2**20} MiB; give the part that '
        'is wanted.'
    )


def read_text(path: str | pathlib.Path, what: str) -> str:
    """A whole text file; see `read_bytes` and `decode`."""
    return decode(read_bytes(path, what), str(path))


def decode(data: bytes, where: str) -> str:
    """The text of bytes: UTF-8, or UTF-16 with its byte order mark.

    Raises:
        InputError: if it is something else.
    """
    encoding = 'utf-16' if data.startswith(_UTF16) else 'utf-8-sig'
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f'{where}: not UTF-8 text ({error}); save it as UTF-8.'
        ) from None


class _Converted(io.RawIOBase):
    """A stream of bytes that a function makes: at most as many as it is told."""

    def __init__(self, read: Callable[[int], bytes]):
        self._make = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._make(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _buffered(read: Callable[[int], bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Converted(read), _BUFFER)


def _unpacked(file: io.BufferedReader, where: str) -> io.BufferedReader:
    packed = gzip.GzipFile(fileobj=file)
    left = MAX_FILE_BYTES + _MAX_RATIO * os.fstat(file.fileno()).st_size

    def read(size: int) -> bytes:
        nonlocal left
        try:
            data = packed.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise errors.InputError(
                f'{where}: the gzip file is damaged or cut short ({error}).'
            ) from None
        left -= len(data)
        if left < 0:
            raise errors.InputError(
                f'{where} unpacks to more than {_MAX_RATIO} times its size; unpack it '
                'yourself if that is meant.'
            )
        return data

    return _buffered(read)


def _from_utf16(file: io.BufferedReader, where: str) -> io.BufferedReader:
    text = io.TextIOWrapper(file, 'utf-16', newline='')

    def read(size: int) -> bytes:
        try:
            # A character takes up to four bytes.
            return text.read(size // 4).encode()
        except UnicodeError as error:
            raise errors.InputError(f'{where}: not UTF-16 text ({error}).') from None

    return _buffered(read)


@contextlib.contextmanager
def utf8(path: str | pathlib.Path, what: str) -> Iterator[io.BufferedReader]:
    """Opens a text file, packed or not, as the bytes of its UTF-8 text.

    Whether they are UTF-8 is for the reader to see, who can name the line.

    Raises:
        InputError: see `opened`; also, once it is read, if it is damaged.
    """
    with opened(path, what) as file:
        where = str(path)
        if file.peek(2).startswith(_GZIP):
            file = _unpacked(file, where)
        start = file.peek(3)
        if start.startswith(_UTF16):
            file = _from_utf16(file, where)
        elif start.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        yield file


def lines(path: str | pathlib.Path, what: str) -> Generator[bytes]:
    """The lines of a text file; see `utf8`.

    Raises:
        InputError: see `utf8`; also if a line is longer than `MAX_LINE`.
    """
    with utf8(path, what) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise errors.InputError(
                    f'{path}:{number}: the line is longer than '
                    f'{MAX_LINE // 2**20} MiB; wanted one row a line.'
                )
            yield line
