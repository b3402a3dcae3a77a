"""A model without what a mask drops, channels or blocks, read from the dense one."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from ppjax.base import errors
from ppjax.models import base_model, checkpoint, loading
from ppjax.models import config as config_lib

# Which axis of a block's weight, as the file holds it, runs over FFN channels.
_CHANNEL_AXES = {'w_gate': 0, 'w_up': 0, 'b_gate': 0, 'b_up': 0, 'w_down': 1}


def channel_axes(num_layers: int) -> dict[str, tuple[int, int]]:
    """Tensor name -> (its layer, its axis over FFN channels), where it has one."""
    return {
        loading.BLOCK_WEIGHTS[attribute].hf_name.format(layer): (layer, axis)
        for attribute, axis in _CHANNEL_AXES.items()
        for layer in range(num_layers)
    }


def keep_of(mask: np.ndarray, cfg: config_lib.ModelConfig) -> int:
    """k of a mask.

    Raises:
        ValueError: if it is not bool [L, F] with one k, at least 1, in every layer.
    """
    wanted = (cfg.num_layers, cfg.d_ff)
    if mask.dtype != np.bool_ or mask.shape != wanted:
        raise ValueError(f'mask must be bool {wanted}, got {mask.dtype} {mask.shape}.')
    counts = set(mask.sum(axis=1).tolist())
    if len(counts) != 1 or not min(counts):
        raise ValueError(
            'every layer must keep the same number of channels, 1 or more, got '
            f'{sorted(counts)}.'
        )
    return int(counts.pop())


class SlicedReader(checkpoint.CheckpointReader):
    """The kept channels of another reader's tensors; nothing is read ahead."""

    def __init__(self, reader: checkpoint.CheckpointReader, mask: np.ndarray):
        """Args:
        reader: of the dense model.
        mask: bool [L, F] with the same number of ones k in every layer.
        """
        self._reader = reader
        self._kept = [np.flatnonzero(row) for row in mask]
        self._axes = channel_axes(len(mask))
        self.path = reader.path
        keep = len(self._kept[0])
        self.hf_config = reader.hf_config | {'intermediate_size': keep}

    def names(self) -> list[str]:
        return self._reader.names()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._reader.shape(name)
        if name not in self._axes:
            return shape
        layer, axis = self._axes[name]
        return (*shape[:axis], len(self._kept[layer]), *shape[axis + 1 :])

    def dtype(self, name: str) -> np.dtype:
        return self._reader.dtype(name)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        if name not in self._axes:
            return self._reader.read(name, rows)
        layer, axis = self._axes[name]
        kept = self._kept[layer]
        if axis == 1:
            return self._reader.read(name, rows)[:, kept]
        wanted = kept[rows]
        first = int(wanted[0])
        span = slice(first, int(wanted[-1]) + 1)
        return self._reader.read(name, span)[wanted - first]


def sliced_model(base: base_model.BaseModel, mask: np.ndarray) -> base_model.BaseModel:
    """The model of the channels that a mask keeps; its tokenizer is the base's.

    Raises:
        ValueError: if the mask is none; see `keep_of`.
    """
    keep = keep_of(mask, base.config)
    return base_model.BaseModel(
        base.name,
        SlicedReader(base.reader, mask),
        dataclasses.replace(base.config, d_ff=keep),
    )


_OF_A_BLOCK = re.compile(r'(model\.layers\.)(\d+)(\..+)')


class BlocksReader(checkpoint.CheckpointReader):
    """The kept blocks of another reader, numbered from 0 on."""

    def __init__(self, reader: checkpoint.CheckpointReader, kept: Sequence[int]):
        """Args:
        reader: of the dense model.
        kept: numbers of the blocks, ascending.
        """
        self._reader = reader
        self.path = reader.path
        self._sources: dict[str, str] = {}
        number = {old: new for new, old in enumerate(kept)}
        for name in reader.names():
            if (found := _OF_A_BLOCK.fullmatch(name)) is None:
                self._sources[name] = name
            elif (old := int(found[2])) in number:
                self._sources[f'{found[1]}{number[old]}{found[3]}'] = name
        self.hf_config = reader.hf_config | _config_of_blocks(reader.hf_config, kept)

    def _source(self, name: str) -> str:
        if name not in self._sources:
            raise errors.InputError(
                f'{self.path} holds no tensor {name!r} in the blocks that are kept.'
            )
        return self._sources[name]

    def names(self) -> list[str]:
        return sorted(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._reader.shape(self._source(name))

    def dtype(self, name: str) -> np.dtype:
        return self._reader.dtype(self._source(name))

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        return self._reader.read(self._source(name), rows)


def _config_of_blocks(hf_config: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """What of a config.json speaks of single blocks, for the kept ones.

    transformers refuses a `layer_types` of another length than the model.
    """
    found: dict[str, Any] = {'num_hidden_layers': len(kept)}
    if isinstance(kinds := hf_config.get('layer_types'), list):
        found['layer_types'] = [kinds[old] for old in kept]
    if isinstance(first := hf_config.get('max_window_layers'), int):
        found['max_window_layers'] = sum(old < first for old in kept)
    return found


def without_blocks(
    base: base_model.BaseModel, kept: Sequence[int]
) -> base_model.BaseModel:
    """The model of some of its blocks; its tokenizer is the base's.

    Args:
        base: the dense model.
        kept: numbers of the blocks, ascending, one or more.
    """
    return base_model.BaseModel(
        base.name,
        BlocksReader(base.reader, kept),
        dataclasses.replace(base.config, num_layers=len(kept)),
    )
