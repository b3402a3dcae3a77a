"""Layers of different widths, without the zeros that stock checkpoints fill in.

Architecture `deci` has a width and numbers of heads for each layer. It computes Llamas
and Qwen2s (with their biases); Qwen3's norms of queries and keys it does not have.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from ppjax.models import base_model, costs, loading
from ppjax.models import config as config_lib
from ppjax.models import structure as structure_lib

FAMILIES = ('llama', 'qwen2')
# Rows of a matrix that tell, for most layers, that no column is all zeros.
_FIRST_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Trimmed:
    """A model without channels and heads that are zeros.

    Attributes:
        model: with zeros at the end of narrower layers.
        sizes: of its layers, without those zeros; None where all are as wide.
    """

    model: base_model.BaseModel
    sizes: Sequence[costs.BlockSize] | None = None


def trimmed(model: base_model.BaseModel) -> Trimmed:
    """Finds what adds nothing: columns of zeros in what comes after it.

    What is left computes the same. The weights of two matrices a layer are read, of
    most only a few rows.
    """
    cfg = model.config
    if cfg.out_width is not None:
        return Trimmed(model)
    kept = structure_lib.Structure.dense(cfg)
    for layer in range(cfg.num_layers):
        kept.channels[layer] = _at_least_one(_used(model, 'w_down', layer))
        heads = _used(model, 'w_o', layer).reshape(cfg.num_kv_heads, -1)
        kept.groups[layer] = _at_least_one(np.logical_or.reduce(heads, axis=1))
    if kept.channels.all() and kept.groups.all():
        return Trimmed(model)
    left = kept.pruned(model)
    return Trimmed(left, None if kept.is_uniform else kept.sizes)


def of_few_heads(cfg: config_lib.ModelConfig) -> list[costs.BlockSize] | None:
    """The layers' sizes of a Qwen2 whose heads have fewer entries than the stream.

    Architecture qwen2 demands as many; None of all other models.
    """
    if cfg.family != 'qwen2' or cfg.num_heads * cfg.head_dim == cfg.d_model:
        return None
    return costs.uniform(cfg)


def _at_least_one(kept: np.ndarray) -> np.ndarray:
    """A layer of none is no layer that could be written."""
    if not kept.any():
        kept[0] = True
    return kept


def _used(model: base_model.BaseModel, attribute: str, layer: int) -> np.ndarray:
    """bool [columns]: which columns of a matrix have an entry that is not 0."""
    name = loading.BLOCK_WEIGHTS[attribute].hf_name.format(layer)
    rows = model.reader.shape(name)[0]
    found = np.zeros(model.reader.shape(name)[1], bool)
    for part in (slice(0, _FIRST_ROWS), slice(_FIRST_ROWS, rows)):
        if part.start < rows and not found.all():
            found |= (model.reader.read(name, part) != 0).any(axis=0)
    return found
