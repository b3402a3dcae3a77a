"""A weight that is multiplied with: floats, or int8 with a scale for each column.

Frozen weights are read only: they may be rounded once, and then take half of bfloat16's
memory. A column of the matrix is q * s with s = max |w| / 127.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from ppjax.models import products

_LARGEST = 127.0


class Matrix(nnx.Module):
    """values [..., in, out], and float32 scale [..., out] where they are int8."""

    def __init__(
        self, w: jax.Array, *, dtype: jax.typing.DTypeLike, int8: bool = False
    ):
        """Args:
        w: float32 [..., in, out].
        dtype: that it is kept in.
        int8: whether it is rounded to int8 instead.
        """
        values, scale = quantise(w) if int8 else (w.astype(dtype), None)
        self.values = nnx.Param(values)
        self.scale = None if scale is None else nnx.Param(scale)

    def dense(self) -> jax.Array:
        """[..., in, out] as it is computed with; float32 if it is int8."""
        values = self.values[...]
        if self.scale is None:
            return values
        return values.astype(jnp.float32) * self.scale[...][..., None, :]

    def product(self, x: jax.Array) -> jax.Array:
        """x [B, T, in] -> [B, T, out], of x's dtype."""
        w = self.values[...]
        tokens = x.shape[0] * x.shape[1]
        if self.scale is None:
            if tokens == 1:
                return products.with_one(x.reshape(-1), w)[None, None]
            return products.product('btd,df->btf', x, w)
        # Scaled after the product, so that int8 is what devices send each other.
        if tokens > products.FEW_ROWS:
            y = products.product('btd,df->btf', x, w.astype(x.dtype), jnp.float32)
        else:
            flat = x.reshape(tokens, -1)
            y = products.with_int8(flat, w).reshape(*x.shape[:2], -1)
        return (y * self.scale[...][None, None, :]).astype(x.dtype)


class Table(nnx.Module):
    """An unembedding of int8: values [V, D], and float32 scale [V]."""

    def __init__(self, rows: jax.Array):
        """Rounds rows [V, D]."""
        values, scale = quantise(rows.T)
        self.values = nnx.Param(values.T)
        self.scale = nnx.Param(scale)

    def product(self, x: jax.Array) -> jax.Array:
        """x [T, D] -> float32 [T, V]."""
        y = products.with_int8(x, self.values[...], transposed=True)
        return y * self.scale[...][None, :]


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
