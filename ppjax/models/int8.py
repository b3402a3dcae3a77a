"""Matrices as int8 with one float32 scale for each output channel.

Frozen weights are read only: they may be rounded once, and then take half of bfloat16's
memory. A column of the matrix is q * s with s = max |w| / 127.
"""

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = 127.0


def quantise(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds a matrix [..., in, out] -> (q int8 [..., in, out], s [..., out])."""
    largest = jnp.max(jnp.abs(w.astype(jnp.float32)), axis=-2)
    scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
    return jnp.round(w / scale[..., None, :]).astype(jnp.int8), scale


def quantise_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of rows [out, in] as files hold them -> (q, in float32, and s [out])."""
    w = w.astype(np.float32)
    largest = np.abs(w).max(axis=1)
    scale = np.where(largest > 0, largest / np.float32(_LARGEST), np.float32(1))
    return np.rint(w / scale[:, None]), scale


def dequantise(q: jax.Array, scale: jax.Array) -> jax.Array:
    """q [..., in, out] * s [..., out], float32."""
    return q.astype(jnp.float32) * scale[..., None, :]
