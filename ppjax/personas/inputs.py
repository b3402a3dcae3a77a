"""What users hand in, checked to be text and shown in one line."""

from collections.abc import Callable
from typing import Any, TypeGuard

from ppjax.base import errors, input_files, json_lines

Notes = Callable[[str], None]


def no_notes(note: str) -> None:
    """Takes a note and does nothing with it."""


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
    """The text of bytes, see `input_files.decode`; line ends become '\\n'.

    Raises:
        InputError: if it is something else.
    """
    text = input_files.decode(data, where)
    if '\0' in text:
        raise errors.InputError(f'{where}: holds NUL bytes, so it is no text.')
    return unix_lines(text)


def unix_lines(text: str) -> str:
    """Text whose lines end in '\\n' alone."""
    return text.replace('\r\n', '\n').replace('\r', '\n')


def parse_json(data: bytes, where: str) -> Any:
    """A JSON value; see `input_files.decode`.

    Raises:
        InputError: if it is no text or no JSON.
    """
    return json_lines.parse(input_files.decode(data, where).encode(), where)
