"""cuDNN's fused attention: the same values as the plain one, and no logits in memory.

On NVIDIA GPUs, in half precision. Off by default, as nothing of its speed has been
measured; the environment's PPJAX_FUSED_ATTENTION=1 turns it on for packed rows.
"""

import functools
import os
from typing import Any, Literal

import jax
from jax import custom_batching
import jax.numpy as jnp

from ppjax.base import errors

VARIABLE = 'PPJAX_FUSED_ATTENTION'
Implementation = Literal['xla', 'cudnn']
CUDNN: Implementation = 'cudnn'
# cuDNN wants even numbers of queries and keys for gradients under a mask; multiples of
# eight are what its kernels like.
_MULTIPLE = 8
_WIDEST_HEAD = 128


def wanted() -> Implementation | None:
    """The implementation that the environment asks for; None for the plain way.

    Raises:
        InputError: if the environment's variable is neither 0 nor 1.
    """
    given = os.environ.get(VARIABLE) or '0'
    if given not in ('0', '1'):
        raise errors.InputError(f'{VARIABLE} must be 0 or 1, got {given!r}.')
    return CUDNN if given == '1' else None


def applies(
    implementation: Implementation, head_dim: int, dtype: jax.typing.DTypeLike
) -> bool:
    """Whether an implementation can compute what is asked, on the devices here.

    Args:
        implementation: as of `jax.nn.dot_product_attention`.
        head_dim: H.
        dtype: of queries, keys and values.
    """
    if implementation != CUDNN:
        return True
    # Over several devices its heads would have to be split by hand.
    mesh = jax.sharding.get_abstract_mesh()
    return (
        jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and head_dim % 8 == 0
        and head_dim <= _WIDEST_HEAD
        and (mesh.empty or mesh.size == 1)
        and 'cuda' in jax.devices()[0].client.platform_version.lower()
    )


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    implementation: Implementation,
) -> jax.Array:
    """`attention.dot_product_attention`, computed by an implementation of JAX's.

    Args:
        q: [B, T, N, H].
        k: [B, S, K, H].
        v: [B, S, K, H].
        mask: bool [B or 1, T, S]; no row is empty.
        implementation: as of `jax.nn.dot_product_attention`.

    Returns:
        [B, T, N, H] in q's dtype.
    """
    length = q.shape[1]
    queries, keys = (-x.shape[1] % _MULTIPLE for x in (q, k))

    def longer(x: jax.Array, more: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))

    mask = jnp.broadcast_to(mask, (len(q), *mask.shape[1:]))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, keys)))
    # What is added to queries looks at something, as every query must.
    mask = jnp.pad(mask, ((0, 0), (0, queries), (0, 0)), constant_values=True)
    out = _attend(
        implementation, longer(q, queries), longer(k, keys), longer(v, keys), mask
    )
    return out[:, :length]


def _over_rows(function: Any) -> Any:
    """A function of arrays [B, ...] that sees an axis of `jax.vmap` as more rows.

    The kernels' own rule for such an axis wants a mask for every head.
    """
    mapped = custom_batching.custom_vmap(function)

    def rule(size: int, batched: Any, *args: jax.Array) -> tuple[Any, Any]:
        whole = [
            x if own else jnp.broadcast_to(x, (size, *x.shape))
            for x, own in zip(args, batched, strict=True)
        ]
        found = mapped(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        apart = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), found)
        return apart, jax.tree.map(lambda _: True, found)

    mapped.def_vmap(rule)
    return mapped


def _plain_call(
    implementation: Implementation,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], implementation=implementation
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    implementation: Implementation,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    return _over_rows(functools.partial(_plain_call, implementation))(q, k, v, mask)


def _forward(implementation: Implementation, *args: jax.Array) -> tuple[jax.Array, Any]:
    return _attend(implementation, *args), args


def _backward(
    implementation: Implementation, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    # By way of the forward pass again: what a kernel keeps of it is its own affair,
    # and cheap beside what reading logits would cost.
    def gradients(
        q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, back: jax.Array
    ) -> Any:
        _, pull = jax.vjp(
            lambda q, k, v: _plain_call(implementation, q, k, v, mask), q, k, v
        )
        return pull(back)

    return (*_over_rows(gradients)(*kept, cotangent), None)


_attend.defvjp(_forward, _backward)
