"""Keys and values of tokens that many prompts start with, computed once."""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.models import attention
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib


class SharedPrefix(NamedTuple):
    """A prefix of P tokens in S slots.

    Attributes:
        cache: [L, 1, K, S, H] each; slots from P on hold nothing of use.
        length: P, int32 scalar, so that prefixes of one S share compiled code.
    """

    cache: attention.KVCache
    length: jax.Array


def shared_length(prompts: Sequence[Sequence[int] | np.ndarray]) -> int:
    """How many first tokens all prompts share, short of the shortest's last."""
    first = np.asarray(prompts[0])
    length = min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts:
        differs = np.nonzero(np.asarray(prompt[:length]) != first[:length])[0]
        if len(differs):
            length = int(differs[0])
    return length


def empty_cache(
    model: decoder_lib.Decoder, batch: int, slots: int
) -> attention.KVCache:
    """Zeros [L, B, K, S, H] in the precision of the model's weights."""
    cfg = model.cfg
    shape = (cfg.num_layers, batch, cfg.num_kv_heads, slots, cfg.head_dim)
    empty = jnp.zeros(shape, model.embedding.get_value().dtype)
    return attention.KVCache(empty, empty)


@functools.partial(jax.jit, static_argnames=('slots',))
def _fill(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    tokens: jax.Array,
    *,
    slots: int,
) -> attention.KVCache:
    positions = jnp.arange(tokens.shape[1])[None]
    attend = attention.Prompt(positions, 0, jnp.int32(0))
    cache = empty_cache(model, 1, slots)
    return model(tokens, positions, masks, attend, cache=cache)[1]


def compute(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    tokens: Sequence[int],
    *,
    slots: int,
) -> SharedPrefix:
    """Runs a prefix through the model.

    Args:
        model: the decoder.
        masks: what of it is masked; no row has its own.
        tokens: P token ids.
        slots: S, at least P; prefixes of equal S share compiled code.

    Raises:
        ValueError: if the prefix is longer than `slots`.
    """
    if len(tokens) > slots:
        raise ValueError(f'{len(tokens)} prefix tokens do not fit {slots} slots.')
    padded = np.zeros((1, slots), np.int32)
    padded[0, : len(tokens)] = tokens
    cache = _fill(model, masks, jnp.asarray(padded), slots=slots)
    return SharedPrefix(cache, jnp.int32(len(tokens)))
