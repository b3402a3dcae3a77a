"""Rotary position embedding, in Hugging Face's half-split layout."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.models import config as config_lib


def inverse_frequencies(
    head_dim: int, theta: float, scaling: config_lib.Llama3Scaling | None
) -> np.ndarray:
    """Angular frequencies [H/2], in radians per position, float32.

    With `scaling`, Llama 3's rule: wavelengths longer than
    `original_max_position / low_freq_factor` are stretched by `factor`, those
    shorter than `original_max_position / high_freq_factor` are kept, and between
    the two the frequencies are blended linearly.

    Source: RoPE, arXiv:2104.09864; Llama 3, arXiv:2407.21783, section 3.2.
    """
    freq = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if scaling is None:
        return freq.astype(np.float32)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / freq
    # 0 where fully stretched, 1 where kept.
    kept = (scaling.original_max_position / wavelength - low) / (high - low)
    kept = np.clip(kept, 0.0, 1.0)
    blended = (1 - kept) * freq / scaling.factor + kept * freq
    return blended.astype(np.float32)


def rotation(
    positions: jax.Array, inv_freq: np.ndarray | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every position, float32.

    Args:
        positions: [B, T] integers.
        inv_freq: [H/2], from `inverse_frequencies`.

    Returns:
        (cos, sin), each [B, T, 1, H/2], ready to broadcast over heads.
    """
    frequency = jnp.asarray(inv_freq)[None, None, :]
    angle = positions[:, :, None].astype(jnp.float32) * frequency
    return jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (x_i, x_{i + H/2}) of x [B, T, N, H] by its position."""
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x.dtype)
