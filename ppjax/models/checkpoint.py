"""Reading a base model's tensors by their Hugging Face names.

A reader hides the file format. `open_checkpoint` picks it: a directory with
`config.json` and safetensors, or one GGUF file.
"""

import abc
import pathlib
from typing import Any

import numpy as np

from ppjax.base import errors


class CheckpointReader(abc.ABC):
    """Random access to the tensors of one checkpoint, under Hugging Face names.

    Weights keep Hugging Face's layout, `[out, in]` for linear layers. Nothing is
    read before it is asked for, so peak memory is the caller's choice.
    """

    path: pathlib.Path
    hf_config: dict[str, Any]

    @abc.abstractmethod
    def names(self) -> list[str]:
        """All tensor names, sorted."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor.

        Raises:
            InputError: if the checkpoint holds no tensor of that name.
        """

    @abc.abstractmethod
    def dtype(self, name: str) -> np.dtype:
        """Element type that `read` gives; float32 where the file is quantised."""

    @abc.abstractmethod
    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """One tensor, or a range of its leading axis.

        Args:
            name: Hugging Face name, such as `model.layers.0.mlp.up_proj.weight`.
            rows: a slice of the leading axis with step 1.

        Raises:
            InputError: if the tensor is absent or its bytes are not.
        """


def open_checkpoint(path: str | pathlib.Path) -> CheckpointReader:
    """Opens a checkpoint directory or GGUF file.

    Raises:
        InputError: if the path is neither, or its headers are damaged.
    """
    # The readers import this module for the base class.
    from ppjax.models import gguf_reader, safetensors_reader

    path = pathlib.Path(path)
    if path.is_file() and path.suffix == '.gguf':
        return gguf_reader.GgufReader(path)
    if path.is_dir():
        return safetensors_reader.SafetensorsReader(path)
    raise errors.InputError(
        f'Base model {str(path)!r} is neither a directory nor a .gguf file.'
    )
