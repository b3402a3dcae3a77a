"""Trained arrays under a checkpoint's names, so that they are written like one."""

import jax
import numpy as np

from ppjax.base import processes
from ppjax.models import checkpoint, loading
from ppjax.models.weights import Weights


class ArrayReader(checkpoint.CheckpointReader):
    """Reads from the arrays of a `Decoder`, fetched one tensor at a time.

    Of several processes all must read the same tensors in the same order.
    """

    def __init__(self, weights: Weights, like: checkpoint.CheckpointReader):
        """Args:
        weights: see `models.weights`, float32; placed anyhow.
        like: of the checkpoint that they were trained from; lends path and config.
        """
        self.path, self.hf_config = like.path, like.hf_config
        self._where: dict[str, tuple[jax.Array, int | None, bool]] = {}
        for owner, attribute, weight, tensors in loading.parameters(weights):
            for name, layer in tensors:
                self._where[name] = (owner[attribute], layer, weight.transpose)
        self._last: tuple[str, np.ndarray] | None = None

    def names(self) -> list[str]:
        return sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        value, layer, transpose = self._where[name]
        shape = value.shape if layer is None else value.shape[1:]
        return shape[::-1] if transpose else shape

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self._where[name][0].dtype)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        # A large tensor is asked for in many pieces.
        if self._last is None or self._last[0] != name:
            value, layer, transpose = self._where[name]
            if layer is not None:
                value = jax.lax.dynamic_index_in_dim(value, layer, keepdims=False)
            fetched = processes.fetch(value)
            self._last = (name, fetched.T if transpose else fetched)
        return self._last[1][rows]
