"""Errors that a user can mend."""

# Of a message: what is quoted in it may be a file.
_HEAD, _TAIL = 340, 120
LONGEST = 500


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    left_out = len(text) - _HEAD - _TAIL
    return f'{text[:_HEAD]} [{left_out} characters] {text[-_TAIL:]}'


def one_line(text: str) -> str:
    """Text as one printable line: control characters escaped, the middle cut out.

    A message begins with what is wrong and ends with what to do; the values that it
    quotes stand between.
    """
    escaped = (
        c if c.isprintable() else c.encode('unicode_escape').decode()
        for c in _shortened(text)
    )
    return _shortened(''.join(escaped))


class InputError(ValueError):
    """Something the user gave is unusable.

    The message is one line: what was wrong, where, and what to do. Verbs print it
    on stderr, write it to `status.json` and exit with 1; no traceback is shown.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class DiskError(InputError):
    """A file could not be written: the disk is full, or the place is not ours."""
