"""Errors that a user can mend."""


class InputError(ValueError):
    """Something the user gave is unusable.

    The message is one line: what was wrong, where, and what to do. Verbs print it
    on stderr, write it to `status.json` and exit with 1; no traceback is shown.
    """


class DiskError(InputError):
    """A file could not be written: the disk is full, or the place is not ours."""
