"""The rate of a large matrix product: what a device can do at its best."""

import jax
import jax.numpy as jnp

from ppjax.evaluation import timing


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
