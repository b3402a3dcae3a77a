"""Which reader a checkpoint needs: of a directory of safetensors, or of a GGUF file."""

import pathlib

from ppjax.base import errors
from ppjax.models import checkpoint, gguf_reader, safetensors_reader


def open_checkpoint(path: str | pathlib.Path) -> checkpoint.CheckpointReader:
    """Opens a checkpoint directory or GGUF file.

    Raises:
        InputError: if the path is neither, or its headers are damaged.
    """
    path = pathlib.Path(path)
    if path.is_file() and path.suffix == '.gguf':
        return gguf_reader.GgufReader(path)
    if path.is_dir():
        return safetensors_reader.SafetensorsReader(path)
    raise errors.InputError(
        f'Base model {str(path)!r} is neither a directory nor a .gguf file.'
    )
