"""Biases in the place of what was removed, where a stock architecture holds them."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from ppjax.base import errors
from ppjax.models import base_model, checkpoint, loading

# What a config says of them, and which ones there are then.
_SWITCHES = {
    'b_down': ('mlp_bias', ('b_gate', 'b_up', 'b_down')),
    'b_o': ('attention_bias', ('b_q', 'b_k', 'b_v', 'b_o')),
}


class _BiasedReader(checkpoint.CheckpointReader):
    """A model's tensors, and biases that are added to those it has."""

    def __init__(
        self, reader: checkpoint.CheckpointReader, added: Mapping[str, np.ndarray]
    ):
        """Args:
        reader: of the model.
        added: tensor name -> float32, all of it.
        """
        switches = {switch: True for switch, _ in _SWITCHES.values()}
        self.path, self.hf_config = reader.path, reader.hf_config | switches
        self._reader, self._added = reader, added

    def names(self) -> list[str]:
        return sorted({*self._reader.names(), *self._added})

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
        if name in self._reader.names():
            found = found + self._reader.read(name, rows).astype(np.float32)
        return found


def wanted(asked: bool | None, base: base_model.BaseModel) -> bool:
    """Whether there are to be biases; without a word, where a stock model has room.

    Raises:
        InputError: if they are asked for and there is none.
    """
    possible = base.config.family == 'llama'
    if asked and not possible:
        raise errors.InputError(
            f'--bias: no stock {base.config.family} model has a bias after the FFN, so '
            'nothing would load the export; leave it out.'
        )
    return possible if asked is None else asked


def with_biases(
    model: base_model.BaseModel,
    means: Mapping[str, np.ndarray],
    layers: Sequence[int],
) -> base_model.BaseModel:
    """A Llama with biases added behind its FFNs and its attention.

    Args:
        model: after pruning.
        means: 'b_down' and 'b_o' -> float32 [L, D], of the dense model's blocks.
        layers: which of these the model has.
    """
    cfg = dataclasses.replace(model.config, mlp_bias=True, qkv_bias=True, out_bias=True)
    shapes = loading.tensor_shapes(cfg)
    added: dict[str, np.ndarray] = {}
    for name, (_, all_of_them) in _SWITCHES.items():
        for new, old in enumerate(layers):
            for other in all_of_them:
                hf_name = loading.BLOCK_WEIGHTS[other].hf_name.format(new)
                # Where there is one already it stays, but for what is added below.
                added[hf_name] = np.zeros(shapes[hf_name], np.float32)
            added[loading.BLOCK_WEIGHTS[name].hf_name.format(new)] = means[name][old]
    reader = _BiasedReader(model.reader, added)
    return dataclasses.replace(model, reader=reader, config=cfg)
