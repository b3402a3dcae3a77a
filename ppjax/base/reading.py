"""Files that a user names: read if they are files, and within bounds."""

import os
import pathlib

from ppjax.base import errors

# More than any list of personas, and little enough to hold in memory.
MAX_FILE_BYTES = 64 * 2**20


def require_file(path: str | pathlib.Path, what: str) -> None:
    """Refuses what is absent or could keep a reader waiting, or never end.

    Args:
        path: of the file.
        what: names it in errors, as in 'Persona file'.

    Raises:
        InputError: if it is absent, or a folder, a pipe or a device.
    """
    if not os.path.isfile(path):
        if not os.path.lexists(path):
            raise errors.InputError(f'{what} {path} does not exist.')
        raise errors.InputError(f'{what} {path} is no regular file.')


def read_bytes(path: str | pathlib.Path, what: str, head: int | None = None) -> bytes:
    """A whole file, or its start.

    Args:
        path: of the file.
        what: names it in errors, as in 'Persona file'.
        head: the number of bytes wanted; None is all.

    Raises:
        InputError: if it is absent, no regular file, or too large.
    """
    require_file(path, what)
    try:
        with open(path, 'rb') as file:
            # Reading up to a number sets aside that many bytes at once.
            size = os.fstat(file.fileno()).st_size
            if head is not None:
                return file.read(min(head, size))
            if size <= MAX_FILE_BYTES:
                return file.read(size)
    except OSError as error:
        raise errors.InputError(f'Cannot read {path}: {error.strerror}.') from None
    raise errors.InputError(
        f'{what} {path} is larger than {MAX_FILE_BYTES // 2**20} MiB; give the part '
        'that is wanted.'
    )
