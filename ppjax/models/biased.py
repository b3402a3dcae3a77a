"""A model with biases that its files do not have, or larger ones."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from ppjax.models import base_model, checkpoint
from ppjax.models import config as config_lib

# What a config.json says of a constant of ours; see `config.from_hf_config`.
_SWITCHES = {'mlp_bias': 'mlp_bias', 'qkv_bias': 'attention_bias'}


class _BiasedReader(checkpoint.CheckpointReader):
    """Another reader's tensors, and biases that are added to those it has."""

    def __init__(
        self,
        reader: checkpoint.CheckpointReader,
        added: Mapping[str, np.ndarray],
        switches: Mapping[str, bool],
    ):
        """Args:
        reader: of the model.
        added: tensor name -> float32, all of it.
        switches: what its config says otherwise.
        """
        self.path, self.hf_config = reader.path, reader.hf_config | dict(switches)
        self._reader, self._added = reader, added
        self._stored = frozenset(reader.names())

    def names(self) -> list[str]:
        return sorted({*self._stored, *self._added})

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._added:
            return self._added[name].shape
        return self._reader.shape(name)

    def dtype(self, name: str) -> np.dtype:
        own = name in self._added
        return np.dtype(np.float32) if own else self._reader.dtype(name)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        if name not in self._added:
            return self._reader.read(name, rows)
        found = self._added[name][rows]
        if name in self._stored:
            found = found + self._reader.read(name, rows).astype(np.float32)
        return found


def has_room(model: base_model.BaseModel) -> bool:
    """Whether stock models of its architecture have biases behind FFN and attention."""
    return model.config.family == 'llama'


def with_added(
    model: base_model.BaseModel,
    added: Mapping[str, np.ndarray],
    cfg: config_lib.ModelConfig,
) -> base_model.BaseModel:
    """A Llama with biases added to those it has, of which there may be none.

    Args:
        model: the model.
        added: tensor name -> float32; all that `cfg` asks for and `model` lacks.
        cfg: constants of the result.
    """
    switches = {
        switch: True
        for name, switch in _SWITCHES.items()
        if getattr(cfg, name) and not getattr(model.config, name)
    }
    reader = _BiasedReader(model.reader, added, switches)
    return dataclasses.replace(model, reader=reader, config=cfg)
