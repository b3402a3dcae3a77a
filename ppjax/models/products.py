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
