"""A checkpoint whose tensors are arrays in memory."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from ppjax.base import errors
from ppjax.models import checkpoint


class InMemoryReader(checkpoint.CheckpointReader):
    """Arrays under the names that a file would have them."""

    def __init__(
        self,
        path: pathlib.Path,
        hf_config: dict[str, Any],
        tensors: Mapping[str, np.ndarray],
    ):
        """Args:
        path: where the files beside the weights are: licence, tokenizer.
        hf_config: the content of `config.json`.
        tensors: by name, as files hold them.
        """
        self.path, self.hf_config = path, hf_config
        self._tensors = tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def dtype(self, name: str) -> np.dtype:
        return self._tensor(name).dtype

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        return self._tensor(name)[rows]

    def _tensor(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise errors.InputError(f'There is no tensor {name!r}.')
        return self._tensors[name]
