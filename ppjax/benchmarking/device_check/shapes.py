"""Models whose shapes are measured, and their random weights.

The shapes are those of the published configs; nothing of the weights matters but their
number and dtype.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import weights as weights_lib

SMOLLM2, LLAMA_3B, LLAMA_8B, QWEN_32B = (
    'SmolLM2-135M',
    'Llama-3.2-3B',
    'Llama-3.1-8B',
    'Qwen2.5-32B',
)


def _llama(
    width: int,
    d_ff: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int = 128_256,
    tied: bool = False,
    rope: Mapping[str, Any] | None = None,
    positions: int = 131_072,
) -> dict[str, Any]:
    return {
        'model_type': 'llama',
        'vocab_size': vocab,
        'hidden_size': width,
        'intermediate_size': d_ff,
        'num_hidden_layers': layers,
        'num_attention_heads': heads,
        'num_key_value_heads': kv_heads,
        'head_dim': width // heads,
        'rms_norm_eps': 1e-5,
        'rope_parameters': rope or {'rope_type': 'default', 'rope_theta': 100_000.0},
        'max_position_embeddings': positions,
        'tie_word_embeddings': tied,
    }


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        'rope_type': 'llama3',
        'rope_theta': 500_000.0,
        'factor': factor,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
    }


# What their config.json files hold of the architecture.
PUBLISHED: dict[str, dict[str, Any]] = {
    SMOLLM2: _llama(576, 1536, 30, 9, 3, vocab=49_152, tied=True, positions=8192),
    LLAMA_3B: _llama(3072, 8192, 28, 24, 8, tied=True, rope=_llama3_rope(32.0)),
    LLAMA_8B: _llama(4096, 14_336, 32, 32, 8, rope=_llama3_rope(8.0)),
    QWEN_32B: {
        'model_type': 'qwen2',
        'vocab_size': 152_064,
        'hidden_size': 5120,
        'intermediate_size': 27_648,
        'num_hidden_layers': 64,
        'num_attention_heads': 40,
        'num_key_value_heads': 8,
        'rms_norm_eps': 1e-6,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 1_000_000.0},
        'max_position_embeddings': 32_768,
        'tie_word_embeddings': False,
    },
}
# Odd where it can be, so that no kernel's favourite sizes hide a mistake.
TINY = {
    'vocab_size': 211,
    'hidden_size': 48,
    'intermediate_size': 136,
    'num_hidden_layers': 3,
    'num_attention_heads': 6,
    'num_key_value_heads': 2,
    'head_dim': 8,
}


@dataclasses.dataclass(frozen=True)
class Shaped:
    """A model's shape, whole or cut.

    Attributes:
        name: of the published model.
        hf: what its config.json would hold.
        is_cut: whether it is a tiny stand-in.
    """

    name: str
    hf: Mapping[str, Any]
    is_cut: bool

    @functools.cached_property
    def config(self) -> config_lib.ModelConfig:
        return config_lib.from_hf_config(dict(self.hf))

    def figures(self) -> dict[str, Any]:
        """What of it stands beside what was measured."""
        cfg = self.config
        return {
            'shape_of': self.name,
            'is_cut_down': self.is_cut,
            'parameters': weights_lib.num_parameters(cfg),
            'layers': cfg.num_layers,
            'd_model': cfg.d_model,
            'd_ff': cfg.d_ff,
        }


def shaped(name: str, *, tiny: bool) -> Shaped:
    """A published shape, or a tiny model in its place.

    Args:
        name: a key of `PUBLISHED`.
        tiny: whether only the family and the RoPE stay.
    """
    published = PUBLISHED[name]
    return Shaped(name, published | (TINY if tiny else {}), tiny)


@functools.partial(jax.jit, static_argnames=('shape', 'scale', 'dtype'))
def _noise(
    key: jax.Array, *, shape: tuple[int, ...], scale: float, dtype: jnp.dtype
) -> jax.Array:
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return (jax.random.normal(key, shape) * scale).astype(dtype)

    if len(shape) < 3:
        return draw(key, shape)
    # Layer by layer: float32 noise for all of them would be twice what they are.
    keys = jax.random.split(key, shape[0])
    return jax.lax.map(lambda own: draw(own, shape[1:]), keys)


def random_model(
    cfg: config_lib.ModelConfig, dtype: jax.typing.DTypeLike, *, seed: int = 0
) -> decoder_lib.Decoder:
    """A decoder whose weights are drawn where it will be used.

    Args:
        cfg: its constants.
        dtype: of the weights.
        seed: of the draw.
    """
    key = jax.random.key(seed)

    def drawn(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        nonlocal key
        name = path[-1].key
        if 'norm' in name:
            return jnp.ones(like.shape, like.dtype)
        if name.startswith('b_'):
            return jnp.zeros(like.shape, like.dtype)
        key, own = jax.random.split(key)
        # Of a table [V, D] and of stacked matrices [L, in, out]: what is summed over.
        width = like.shape[-1] if len(like.shape) == 2 else like.shape[-2]
        return _noise(own, shape=like.shape, scale=width**-0.5, dtype=like.dtype)

    like = weights_lib.abstract(cfg, jnp.dtype(dtype))
    weights = jax.tree_util.tree_map_with_path(drawn, like)
    return jax.block_until_ready(weights_lib.decoder_of(cfg, weights))
