"""Reading a base model's tensors by their Hugging Face names.

A reader hides the file format; `open_checkpoint` picks it.
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

    @property
    def is_parallel(self) -> bool:
        """Whether several threads may read at once, and are faster together."""
        return False

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
            InputError: if the tensor is absent, its bytes are, or a value of it is
                not finite.
        """


def refuse_not_finite(path: pathlib.Path, name: str, values: np.ndarray) -> np.ndarray:
    """The values that a file holds of a tensor, if all are numbers in float32 too.

    Raises:
        InputError: naming the tensor, if one of them is NaN or infinite.
    """
    if values.dtype.itemsize == 2:
        # Ten times as fast as isfinite, which knows no 16-bit arithmetic: not finite
        # is what has all bits of the exponent.
        exponent = values.dtype.type(np.inf).view(np.uint16)
        finite = not values.size or (values.view(np.uint16) & exponent).max() < exponent
    else:
        with np.errstate(over='ignore', invalid='ignore'):
            own = values.astype(np.float32, copy=False)
            # A finite sum has finite terms, and needs no array of truth values.
            finite = np.isfinite(own.sum()) or np.isfinite(own).all()
    if not finite:
        raise errors.InputError(
            f'{path}: tensor {name!r} holds values that are not finite (NaN or '
            'infinite): the file is damaged, or its training diverged; get the weights '
            'again or use others.'
        )
    return values
