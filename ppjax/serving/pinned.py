"""A persona's own smaller weights, in memory beside those of everybody.

The channels that it does without are left out of the FFN's matrices, which are copied;
all other weights are shared. What is computed is the same, with fewer products.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppjax.models import decoder as decoder_lib
from ppjax.models import weights as weights_lib

# Parameter -> its axis of channels behind that of layers.
_CHANNEL_AXES = {'w_gate': 2, 'w_up': 2, 'w_down': 1, 'b_gate': 1, 'b_up': 1}


def kept_channels(scale: np.ndarray) -> np.ndarray:
    """The channels of a mask, int32 [L, k], ascending.

    Layers that keep fewer than others get channels whose scale is 0.

    Args:
        scale: [L, F], 0 for what is left out.
    """
    kept = scale != 0
    most = int(kept.sum(axis=1).max())
    # Kept ones first, each kind in its own order.
    order = np.argsort(~kept, axis=1, kind='stable')[:, :most]
    return np.sort(order, axis=1).astype(np.int32)


def compact(
    model: decoder_lib.Decoder, scale: np.ndarray
) -> tuple[decoder_lib.Decoder, Callable[[np.ndarray | None], np.ndarray]]:
    """The decoder of what a mask keeps.

    Args:
        model: the dense decoder, on one device.
        scale: of the persona, [L, F].

    Returns:
        (a decoder of k channels, what its channels are multiplied by, float16 [L, k],
        from a scale [L, F] of the same channels).
    """
    channels = kept_channels(scale)
    weights = weights_lib.weights_of(model)
    index = jnp.asarray(channels)

    def few(value: Any, axis: int) -> Any:
        shape = [len(channels)] + [1] * (value.ndim - 1)
        shape[axis] = channels.shape[1]
        return jnp.take_along_axis(value, index.reshape(shape), axis=axis)

    blocks = {
        name: few(value, _CHANNEL_AXES[name]) if name in _CHANNEL_AXES else value
        for name, value in weights['blocks'].items()
    }
    small = weights | {'blocks': blocks}
    if 'scales' in weights:
        # Of what a matrix puts out; those of w_down are the model's width.
        small['scales'] = {
            name: few(value, 1) if name in ('w_gate', 'w_up') else value
            for name, value in weights['scales'].items()
        }
    cfg = dataclasses.replace(model.cfg, d_ff=channels.shape[1])

    def scale_of(own: np.ndarray | None) -> np.ndarray:
        assert own is not None  # The dense model is nobody's persona.
        return np.take_along_axis(own, channels, axis=1).astype(np.float16)

    return weights_lib.decoder_of(cfg, small), scale_of
