"""Matrix products and what is summed over tokens, in float32, forward and backward.

All of the package's products are made here, so that what float32 means is said once:
float32 operands are multiplied as they are, where accelerators left alone would round
them to TensorFloat-32 or bfloat16.

Products of bfloat16 are accumulated in float32. Accelerators do so by themselves. XLA's
CPU backend uses a processor's bfloat16 matrix units only where the operands are bfloat16
and the result is float32: any other mixture, such as the backward product of a float32
cotangent with a bfloat16 weight, it widens and computes at float32's speed.
"""

import functools
from typing import Any

import jax
from jax import custom_derivatives
import jax.numpy as jnp


def product(
    equation: str,
    x: jax.Array,
    y: jax.Array,
    out_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """einsum of two arrays of one dtype, accumulated in float32.

    Args:
        equation: every index of an operand is in the other operand or the result,
            once each; no ellipsis.
        x: one operand.
        y: the other.
        out_dtype: of the result; the operands' by default.

    Returns:
        The result. Its derivatives are products of the same kind, for which the
        cotangent is rounded to the operands' dtype.

    Raises:
        TypeError: if the operands' dtypes differ.
    """
    if x.dtype != y.dtype:
        raise TypeError(f'{equation}: the operands are {x.dtype} and {y.dtype}.')
    out = jnp.dtype(x.dtype if out_dtype is None else out_dtype)
    if x.dtype == jnp.float32:
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum(equation, x, y, precision=highest).astype(out)
    return _narrow(equation, out, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _narrow(equation: str, out: jnp.dtype, x: jax.Array, y: jax.Array) -> jax.Array:
    found = jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
    return found.astype(out)


def _forward(equation: str, out: jnp.dtype, x: Any, y: Any) -> tuple[jax.Array, Any]:
    # Of a frozen weight no gradient is formed, and for it no activation kept.
    kept = (x.value if y.perturbed else None, y.value if x.perturbed else None)
    return _narrow(equation, out, x.value, y.value), kept


def _backward(
    equation: str,
    out: jnp.dtype,
    kept: tuple[jax.Array | None, jax.Array | None],
    cotangent: Any,
) -> tuple[jax.Array | None, jax.Array | None]:
    del out
    if isinstance(cotangent, custom_derivatives.SymbolicZero):
        return None, None
    operands, result = equation.split('->')
    left, right = operands.split(',')

    def transposed(
        other: jax.Array | None, subscripts: str, wanted: str
    ) -> jax.Array | None:
        if other is None:
            return None
        return _narrow(
            f'{result},{subscripts}->{wanted}',
            other.dtype,
            cotangent.astype(other.dtype),
            other,
        )

    x, y = kept
    return transposed(y, right, left), transposed(x, left, right)


_narrow.defvjp(_forward, _backward, symbolic_zeros=True)

# Pieces of a product of one token, of which a CPU's cores take several at a time.
_PIECES = 4


def with_one(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [in] times w [in, out] -> [out], of their dtype.

    A CPU runs the product of a vector and a matrix on one core, however large it is,
    but one of several such on all: so a float32 matrix is taken as pieces of its rows.

    Raises:
        TypeError: if the dtypes differ.
    """
    if x.dtype != jnp.float32 or len(x) % _PIECES:
        return product('i,io->o', x, w)
    return jax.lax.platform_dependent(
        x, w, cpu=_in_pieces, default=functools.partial(product, 'i,io->o')
    )


def _in_pieces(x: jax.Array, w: jax.Array) -> jax.Array:
    pieces = x.reshape(_PIECES, 1, -1)
    rows = w.reshape(*pieces.shape[::2], -1)
    return jnp.sum(product('pti,pio->pto', pieces, rows), axis=(0, 1))


# Up to so many rows a CPU multiplies faster in integers than it widens a matrix.
FEW_ROWS = 128
# Steps of the finer part of a number to one of the coarser.
_FINER = 254.0


def with_int8(x: jax.Array, w: jax.Array, *, transposed: bool = False) -> jax.Array:
    """x [T, in] times an int8 matrix w [in, out] -> float32 [T, out].

    Widened, a matrix is written to memory and read again for a product of a few tokens
    that reads it once. So a CPU multiplies integers: a row of x is rounded to the sum of
    two int8 parts, s (a + b / 254) with s = max |x| / 127, which is off by max |x| / 64516
    at most, and what is made of them is exact. Where a gradient is taken, it and the
    result are those of the plain product.

    Args:
        x: of any float dtype, which the plain product widens w to.
        w: frozen; no gradient.
        transposed: whether w is [out, in].
    """
    equation = 'ti,oi->to' if transposed else 'ti,io->to'
    if len(x) > FEW_ROWS:
        return _widened(equation, x, w)
    return _of_few(equation, x, w)


def _widened(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return product(equation, x, w.astype(x.dtype), jnp.float32)


def _in_integers(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = jnp.where(largest == 0, 1.0, largest / 127.0)
    steps = x / scale
    coarse = jnp.round(steps)
    fine = jnp.round((steps - coarse) * _FINER)
    # One product of both parts: it reads the matrix once, and with one row XLA would not
    # take the processor's instructions for integers.
    parts = jnp.concatenate([coarse, fine]).astype(jnp.int8)
    found = jnp.einsum(equation, parts, w, preferred_element_type=jnp.int32)
    of_coarse, of_fine = jnp.split(found.astype(jnp.float32), 2)
    return scale * (of_coarse + of_fine / _FINER)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_few(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        w,
        cpu=functools.partial(_in_integers, equation),
        default=functools.partial(_widened, equation),
    )


def _few_forward(
    equation: str, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _widened(equation, x, w), (w, x[:0])


def _few_backward(
    equation: str, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None]:
    w, dtype = kept[0], kept[1].dtype
    operands, result = equation.split('->')
    of_x, of_w = operands.split(',')
    backwards = f'{result},{of_w}->{of_x}'
    return product(backwards, cotangent.astype(dtype), w.astype(dtype)), None


_of_few.defvjp(_few_forward, _few_backward)


def scaled(x: jax.Array, by: jax.Array) -> jax.Array:
    """x * by, multiplied in float32 and rounded once to x's dtype.

    For what is broadcast along tokens: its gradient is a sum over all of them, which
    in bfloat16 would lose what more than some hundreds of tokens add.

    Args:
        x: activations.
        by: of x's rank, float32 or x's dtype.
    """
    return (x.astype(jnp.float32) * by.astype(jnp.float32)).astype(x.dtype)


def shifted(x: jax.Array, by: jax.Array) -> jax.Array:
    """x + by, as `scaled`."""
    return (x.astype(jnp.float32) + by.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def looked_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a table [V, D] by their numbers, whose gradient is summed in float32."""
    return jnp.take(table, tokens, axis=0)


def _look_up(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, Any]:
    return looked_up(table, tokens), (table, tokens)


def _spread_back(kept: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = kept
    sums = jnp.zeros(table.shape, jnp.float32)
    sums = sums.at[tokens].add(cotangent.astype(jnp.float32))
    return sums.astype(table.dtype), None


looked_up.defvjp(_look_up, _spread_back)
