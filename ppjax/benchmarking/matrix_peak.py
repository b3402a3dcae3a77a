"""The rate of a large matrix product: what a device can do at its best."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from ppjax.evaluation import timing

# Sides of the products: on an accelerator smaller ones end sooner than the next starts.
SIZE, ACCELERATOR_SIZE = 4096, 16384


def best_size() -> int:
    """Of matrices that the device here is busy with for some milliseconds."""
    return SIZE if jax.default_backend() == 'cpu' else ACCELERATOR_SIZE


def flops_per_s(dtype: jax.typing.DTypeLike, *, size: int, repeats: int = 5) -> float:
    """FLOP/s of the fastest of some square matrix products.

    Args:
        dtype: of both operands.
        size: of their sides.
        repeats: products that are timed, after one that compiles.
    """
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(key, (size, size)).astype(dtype) for key in keys)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32))
    product(x, y).block_until_ready()
    seconds = (
        timing.timed(lambda: product(x, y).block_until_ready())[0]
        for _ in range(repeats)
    )
    return 2 * size**3 / min(seconds)


def rounded_two_ways(
    dims: tuple[int, int, int], dtype: jax.typing.DTypeLike
) -> dict[str, Callable[[], jax.Array]]:
    """Products that end in `dtype`: rounded from float32 after the product, or in it.

    The first is what `models.products` asks for; on a device where it takes longer,
    the float32 result is written and read again.

    Args:
        dims: of [T, D] and [D, F].
        dtype: of operands and result.
    """
    tokens, width, out = dims
    keys = jax.random.split(jax.random.key(0))
    x, y = (
        jax.random.normal(key, shape).astype(dtype)
        for key, shape in zip(keys, ((tokens, width), (width, out)), strict=True)
    )

    def after(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, preferred_element_type=jnp.float32).astype(dtype)

    def inside(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, preferred_element_type=dtype)

    ways = {'after': jax.jit(after), 'inside': jax.jit(inside)}
    return {name: functools.partial(way, x, y) for name, way in ways.items()}
