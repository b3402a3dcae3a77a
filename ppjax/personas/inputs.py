"""What users hand in: read within bounds, checked to be text, shown in one line."""

from collections.abc import Callable
import pathlib
from typing import Any, TypeGuard

from ppjax.base import errors, json_lines

Notes = Callable[[str], None]


def no_notes(note: str) -> None:
    """Takes a note and does nothing with it."""


def shown(path: str | pathlib.Path) -> str:
    """A path as one line: names of files may hold line breaks."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def excerpt(text: str, length: int = 48) -> str:
    """The start of a text as one printable line."""
    line = ' '.join(text[: 4 * length].split())
    line = ''.join(c if c.isprintable() else '?' for c in line)
    if len(line) <= length and len(text) <= 4 * length:
        return line
    return line[:length].rstrip() + ' ...'


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a string that can be encoded.

    JSON can spell half of a surrogate pair, which no tokenizer takes.
    """
    return isinstance(value, str) and not any('\ud800' <= c <= '\udfff' for c in value)


def decode(data: bytes, where: str) -> str:
    """UTF-8 text with or without a byte order mark; line ends become '\\n'.

    Raises:
        InputError: if it is something else.
    """
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f'{where}: not UTF-8 text ({error}); save it as UTF-8.'
        ) from None
    if '\0' in text:
        raise errors.InputError(f'{where}: holds NUL bytes, so it is no text.')
    return unix_lines(text)


def unix_lines(text: str) -> str:
    """Text whose lines end in '\\n' alone."""
    return text.replace('\r\n', '\n').replace('\r', '\n')


def parse_json(data: bytes, where: str) -> Any:
    """A JSON value, with or without a byte order mark.

    Raises:
        InputError: if it is no UTF-8 text or no JSON.
    """
    return json_lines.parse(data.removeprefix(b'\xef\xbb\xbf'), where)
