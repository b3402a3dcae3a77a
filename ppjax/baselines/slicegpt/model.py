"""A sliced model as one that is loaded and exported like any other."""

from typing import Any

import numpy as np

from ppjax.baselines.slicegpt import fit
from ppjax.models import base_model, in_memory, loading
from ppjax.models import config as config_lib

# What of the last block is wider than the stream, and where the rest of it lies.
_LAST = {'turn_ffn': 'last_turn', 'w_down': 'last_down', 'b_down': 'last_bias'}


def sliced_base(base: base_model.BaseModel, sliced: fit.Sliced) -> base_model.BaseModel:
    """The model of a fit.

    Of one rotation it is a stock model of a smaller `hidden_size`, else of a
    `model_type` that this package alone loads.

    Args:
        base: the dense model.
        sliced: from `fit.fit` or `fit.fit_single`.
    """
    whole = base.config.d_model
    cfg = config_lib.narrowed(
        base.config, sliced.width, out_width=None if sliced.is_single else whole
    )
    changes: dict[str, Any] = {
        'hidden_size': sliced.width,
        'rms_norm_eps': cfg.norm_eps,
        'head_dim': cfg.head_dim,
        'tie_word_embeddings': False,
    }
    if not sliced.is_single:
        changes |= {
            'model_type': config_lib.ROTATED,
            config_lib.ROTATED_OF: cfg.family,
            config_lib.WHOLE_WIDTH: whole,
        }
    reader = in_memory.InMemoryReader(
        base.reader.path, base.reader.hf_config | changes, _tensors(base, sliced)
    )
    return base_model.BaseModel(base.name, reader, cfg)


def _tensors(base: base_model.BaseModel, sliced: fit.Sliced) -> dict[str, np.ndarray]:
    width = sliced.width
    norm = fit.norm_weights(base.config, width).astype(np.float32)
    top = {
        'embedding': sliced.embedding,
        'head': sliced.head,
        'final_norm': norm
        if sliced.is_single
        else np.ones(base.config.d_model, np.float32),
    }
    found = {loading.TOP_WEIGHTS[name].hf_name: x for name, x in top.items()}
    for number, layer in enumerate(sliced.layers):
        own = layer | {'attn_norm': norm, 'ffn_norm': norm}
        is_last = number + 1 == len(sliced.layers)
        if is_last and not sliced.is_single and width < base.config.d_model:
            for name, rest in _LAST.items():
                if name in own:
                    weight = loading.TOP_WEIGHTS[rest]
                    found[weight.hf_name] = _as_filed(own[name][..., width:], weight)
                    own[name] = own[name][..., :width]
        for name, x in own.items():
            weight = loading.BLOCK_WEIGHTS[name]
            found[weight.hf_name.format(number)] = _as_filed(x, weight)
    return found


def _as_filed(x: np.ndarray, weight: loading.Weight) -> np.ndarray:
    return np.ascontiguousarray(x.T) if weight.transpose else x
