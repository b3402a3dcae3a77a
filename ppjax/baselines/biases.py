"""Biases in the place of what was removed, where a stock architecture holds them."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from ppjax.base import errors
from ppjax.models import base_model, biased, loading
from ppjax.models import config as config_lib

# Each of the two that are filled, and all that a model with it has.
_TOGETHER = {
    'b_down': ('b_gate', 'b_up', 'b_down'),
    'b_o': ('b_q', 'b_k', 'b_v', 'b_o'),
}


def wanted(asked: bool | None, base: base_model.BaseModel) -> bool:
    """Whether there are to be biases; without a word, where a stock model has room.

    Raises:
        InputError: if they are asked for and there is none.
    """
    possible = biased.has_room(base)
    if asked and not possible:
        raise errors.InputError(
            f'--bias: no stock {base.config.family} model has a bias after the FFN, so '
            'nothing would load the export; leave it out.'
        )
    return possible if asked is None else asked


def config_with(cfg: config_lib.ModelConfig) -> config_lib.ModelConfig:
    """Constants of a model that has all of its biases."""
    return dataclasses.replace(cfg, mlp_bias=True, qkv_bias=True, out_bias=True)


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
    cfg = config_with(model.config)
    shapes = loading.tensor_shapes(cfg)
    added: dict[str, np.ndarray] = {}
    for name, together in _TOGETHER.items():
        for new, old in enumerate(layers):
            for other in together:
                hf_name = loading.BLOCK_WEIGHTS[other].hf_name.format(new)
                # Where there is one already it stays, but for what is added below.
                added[hf_name] = np.zeros(shapes[hf_name], np.float32)
            added[loading.BLOCK_WEIGHTS[name].hf_name.format(new)] = means[name][old]
    return biased.with_added(model, added, cfg)
