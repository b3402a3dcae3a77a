"""A model without what a mask drops, channels or blocks, read from the dense one."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from ppjax.base import errors
from ppjax.models import base_model, checkpoint, loading
from ppjax.models import config as config_lib

# Which axis of a block's weight, as the file holds it, runs over FFN channels.
_CHANNEL_AXES = {'w_gate': 0, 'w_up': 0, 'b_gate': 0, 'b_up': 0, 'w_down': 1}


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


class Part(NamedTuple):
    """What of the dense model a tensor is.

    Attributes:
        source: its name there.
        kept: which entries of it along an axis, -1 for zeros in the place of one; None
            is all of it.
        axis: along which they lie.
    """

    source: str
    kept: np.ndarray | None = None
    axis: int = 0


class PartsReader(checkpoint.CheckpointReader):
    """Parts of another reader's tensors; nothing is read ahead."""

    def __init__(
        self,
        reader: checkpoint.CheckpointReader,
        parts: dict[str, Part],
        changes: dict[str, Any],
    ):
        """Args:
        reader: of the dense model.
        parts: tensor name -> what it is.
        changes: what its config says otherwise.
        """
        self._reader, self._parts = reader, parts
        self.path = reader.path
        self.hf_config = reader.hf_config | changes

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            raise errors.InputError(
                f'{self.path} holds no tensor {name!r} in what is kept of it.'
            )
        return self._parts[name]

    @property
    def is_parallel(self) -> bool:
        return self._reader.is_parallel

    def names(self) -> list[str]:
        return sorted(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        source, kept, axis = self._part(name)
        shape = self._reader.shape(source)
        if kept is None:
            return shape
        return (*shape[:axis], len(kept), *shape[axis + 1 :])

    def dtype(self, name: str) -> np.dtype:
        return self._reader.dtype(self._part(name).source)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        source, kept, axis = self._part(name)
        if kept is None:
            return self._reader.read(source, rows)
        if axis == 1:
            found = self._reader.read(source, rows)[:, kept]
            found[:, kept < 0] = 0  # A copy, by its index.
            return found
        wanted = kept[rows]
        real = wanted >= 0
        if not real.any():
            shape = (len(wanted), *self._reader.shape(source)[1:])
            return np.zeros(shape, self._reader.dtype(source))
        first, last = int(wanted[real].min()), int(wanted[real].max())
        read = self._reader.read(source, slice(first, last + 1))
        # Of a zero any row is read, and then cleared.
        found = read[np.where(real, wanted - first, 0)]
        found[~real] = 0
        return found


def sliced_model(base: base_model.BaseModel, mask: np.ndarray) -> base_model.BaseModel:
    """The model of the channels that a mask keeps; its tokenizer is the base's.

    Args:
        base: the dense model.
        mask: bool [L, F].

    Raises:
        ValueError: if the mask is none; see `keep_of`.
    """
    keep = keep_of(mask, base.config)
    parts = {name: Part(name) for name in base.reader.names()}
    for layer, row in enumerate(mask):
        for attribute, axis in _CHANNEL_AXES.items():
            name = loading.BLOCK_WEIGHTS[attribute].hf_name.format(layer)
            if name in parts:
                parts[name] = Part(name, np.flatnonzero(row), axis)
    return base_model.BaseModel(
        base.name,
        PartsReader(base.reader, parts, {'intermediate_size': keep}),
        dataclasses.replace(base.config, d_ff=keep),
    )


OF_A_BLOCK = re.compile(r'(model\.layers\.)(\d+)(\..+)')


def config_of_blocks(hf_config: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
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
    number = {old: new for new, old in enumerate(kept)}
    parts = {}
    for name in base.reader.names():
        if (found := OF_A_BLOCK.fullmatch(name)) is None:
            parts[name] = Part(name)
        elif (old := int(found[2])) in number:
            parts[f'{found[1]}{number[old]}{found[3]}'] = Part(name)
    changes = config_of_blocks(base.reader.hf_config, kept)
    return base_model.BaseModel(
        base.name,
        PartsReader(base.reader, parts, changes),
        dataclasses.replace(base.config, num_layers=len(kept)),
    )
