"""Small files of tensors with text beside them: safetensors with a format of their own."""

from collections.abc import Sequence
import pathlib

import numpy as np
import safetensors

from ppjax.base import errors, reading


def read(
    path: str | pathlib.Path, *, what: str, wanted: str, keys: Sequence[str]
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Reads all of a file.

    Args:
        path: of the file.
        what: it is, for people, as in 'gain file'.
        wanted: its `format` in the metadata.
        keys: that the metadata must have.

    Returns:
        (metadata, name -> tensor).

    Raises:
        InputError: if the file is absent, unreadable or of another format, or lacks a
            key.
    """
    reading.require_file(path, what.capitalize())
    try:
        with safetensors.safe_open(path, framework='np') as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    # safetensors raises AttributeError for a dtype that NumPy lacks.
    except (safetensors.SafetensorError, OSError, AttributeError) as error:
        raise errors.InputError(f'{path} is no readable {what} ({error}).') from None
    if metadata.get('format') != wanted:
        raise errors.InputError(
            f'{path} has format {metadata.get("format")!r}, wanted {wanted!r}.'
        )
    if missing := [key for key in keys if key not in metadata]:
        raise errors.InputError(f'{path} lacks metadata {", ".join(missing)}.')
    return metadata, tensors
