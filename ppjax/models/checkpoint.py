"""Reading a base model's tensors by their Hugging Face names.

A reader hides the file format; `open_checkpoint` picks it.
"""

import abc
import pathlib
from typing import Any

import numpy as np


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
