"""A model with gains multiplied into its weights, as they are read."""

import dataclasses

import numpy as np

from ppjax.models import base_model, checkpoint, loading
from ppjax.models import masks as masks_lib

# Of a block's masks, the weight that each is folded into: its columns in the file,
# where it has any.
_WEIGHTS = {
    'channels': 'w_down',
    'attention': 'w_o',
    'attn_norm': 'attn_norm',
    'ffn_norm': 'ffn_norm',
}


class _FoldedReader(checkpoint.CheckpointReader):
    """Another reader's tensors, some multiplied along their last axis in float32."""

    def __init__(
        self, reader: checkpoint.CheckpointReader, scales: dict[str, np.ndarray]
    ):
        """Args:
        reader: of the model.
        scales: tensor name -> float32, as long as its last axis.
        """
        self.path, self.hf_config = reader.path, reader.hf_config
        self._reader, self._scales = reader, scales

    def names(self) -> list[str]:
        return self._reader.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._reader.shape(name)

    def dtype(self, name: str) -> np.dtype:
        scaled = name in self._scales
        return np.dtype(np.float32) if scaled else self._reader.dtype(name)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        value = self._reader.read(name, rows)
        scale = self._scales.get(name)
        if scale is None:
            return value
        return value.astype(np.float32) * (scale[rows] if value.ndim == 1 else scale)


def folded_reader(
    reader: checkpoint.CheckpointReader, masks: masks_lib.Masks
) -> checkpoint.CheckpointReader:
    """A model's tensors with masks multiplied in; biases are after them, and stay.

    Args:
        reader: of the model.
        masks: on the host, for all rows together; without `blocks`, which no weight
            can stand for.
    """
    if masks.blocks is not None:
        raise ValueError('masks of whole blocks cannot be folded into weights.')
    scales = {}
    for name, values in masks.of_layers().given().items():
        hf_name = loading.BLOCK_WEIGHTS[_WEIGHTS[name]].hf_name
        for layer, own in enumerate(np.asarray(values, np.float32)):
            scales[hf_name.format(layer)] = own
    if masks.final_norm is not None:
        hf_name = loading.TOP_WEIGHTS['final_norm'].hf_name
        scales[hf_name] = np.asarray(masks.final_norm, np.float32)
    return _FoldedReader(reader, scales)


def folded_model(
    base: base_model.BaseModel, masks: masks_lib.Masks
) -> base_model.BaseModel:
    """The model with masks folded in; nothing is read yet. See `folded_reader`.

    Raises:
        AssertionError: for masks of another shape.
    """
    masks.check(base.config)
    return dataclasses.replace(base, reader=folded_reader(base.reader, masks))
