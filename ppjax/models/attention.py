"""Who attends to whom: the packed pattern and the cached one.

All are called by the block as `attend(q, k, v, cache) -> (out, cache)` with
q [B, T, N, H] and k, v [B, T, K, H], rotated already; `cache` is the layer's
`LayerCache`, or None.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ppjax.models import fused_attention, products


class Attend(Protocol):
    """One attention pattern."""

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: Any
    ) -> tuple[jax.Array, Any]: ...


class KVCache(NamedTuple):
    """Keys and values of past tokens, [L, B, K, S, H] each.

    Heads come before slots, as a product over one head's slots wants them.
    """

    k: jax.Array
    v: jax.Array


class LayerCache(NamedTuple):
    """One layer's part of a cache.

    The whole of it goes from layer to layer, so that a layer writes its new tokens in
    place: handed out and collected layer by layer, all of it would be copied.

    Attributes:
        whole: of all layers.
        layer: int32 scalar.
    """

    whole: KVCache
    layer: jax.Array

    @property
    def keys(self) -> jax.Array:
        """[B, K, S, H]."""
        return jax.lax.dynamic_index_in_dim(self.whole.k, self.layer, keepdims=False)

    @property
    def values(self) -> jax.Array:
        """[B, K, S, H]."""
        return jax.lax.dynamic_index_in_dim(self.whole.v, self.layer, keepdims=False)

    def write(self, slots: jax.Array, k: jax.Array, v: jax.Array) -> 'LayerCache':
        """Puts k and v [B, T, K, H] into the slots [B, T] of their rows.

        What is written past the last slot is dropped.
        """
        rows = jnp.arange(k.shape[0])[:, None]
        whole = KVCache(
            *(
                held.at[self.layer, rows, :, slots].set(new.astype(held.dtype))
                for held, new in zip(self.whole, (k, v), strict=True)
            )
        )
        return self._replace(whole=whole)


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    heads_first: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v with grouped heads; logits in float32.

    The N/K query heads of a group are stacked along the query axis, which makes
    two plain batched matrix products of it: on a CPU twice as fast, forward and
    backward, as the einsum of `jax.nn.dot_product_attention`, its equal in value.

    Args:
        q: [B, T, N, H].
        k: [B, S, K, H].
        v: [B, S, K, H].
        mask: bool [B or 1, T, S], true where a query may look; no row is empty.
        heads_first: whether k and v are [B, K, S, H], as a cache holds them.

    Returns:
        [B, T, N, H] in q's dtype.
    """
    batch, length, num_heads, head_dim = q.shape
    held = 'bksh' if heads_first else 'bskh'
    kv_heads = k.shape[held.index('k')]
    group = num_heads // kv_heads
    queries = q.reshape(batch, length, kv_heads, group, head_dim)
    queries = queries.transpose(0, 2, 3, 1, 4)
    queries = queries.reshape(batch, kv_heads, group * length, head_dim)
    logits = products.product(f'bkth,{held}->bkts', queries, k, jnp.float32)
    logits = logits.reshape(batch, kv_heads, group, length, -1) * head_dim**-0.5
    logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, kv_heads, group * length, -1)
    out = products.product(f'bkts,{held}->bkth', weights, v)
    out = out.reshape(batch, kv_heads, group, length, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Attention within packed rows `[prefix][chunk 1]...[chunk G]`.

    A row starts with P prefix tokens that attend causally to themselves. The
    rest is cut into chunks of C tokens; every example lies whole within one
    chunk. An example's token attends to the whole prefix and causally to its own
    example. With P = 0 and one chunk this is a plain (padded) causal batch.

    Cost: per chunk C x (P + C) logits instead of T x T a row.

    Attributes:
        prefix: P, 0 or more.
        chunk: C; T - P is a multiple of it.
        segments: [B, T - P] example numbers; 0 marks padding, which attends to
            other padding only, so that no row of logits is empty.
        fused: what computes it where it can, see `fused_attention`; None for the plain
            way.
    """

    prefix: int
    chunk: int
    segments: jax.Array
    fused: fused_attention.Implementation | None = None

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
    ) -> jax.Array:
        fused, head_dim = self.fused, q.shape[-1]
        if fused is None or not fused_attention.applies(fused, head_dim, q.dtype):
            return dot_product_attention(q, k, v, mask)
        return fused_attention.attend(q, k, v, mask, implementation=fused)

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        batch, length = q.shape[:2]
        if (length - self.prefix) % self.chunk:
            raise ValueError(
                f'{length} - {self.prefix} tokens are no multiple of the chunk '
                f'{self.chunk}.'
            )
        chunks = (length - self.prefix) // self.chunk

        def fold(x: jax.Array) -> jax.Array:  # [B, G*C, ...] -> [B*G, C, ...]
            return x.reshape((batch * chunks, self.chunk, *x.shape[2:]))

        def with_prefix(x: jax.Array) -> jax.Array:  # -> [B*G, P + C, K, H]
            own = fold(x[:, self.prefix :])
            if not self.prefix:
                return own
            # The prefix's gradient is a sum over all chunks, in float32.
            shared = x[:, : self.prefix].astype(jnp.float32)
            shared = jnp.repeat(shared, chunks, axis=0).astype(x.dtype)
            return jnp.concatenate([shared, own], axis=1)

        segments = fold(self.segments)  # [B*G, C]
        same = segments[:, :, None] == segments[:, None, :]
        causal = jnp.tril(jnp.ones((self.chunk, self.chunk), bool))
        # Padding may look at the prefix too: nothing reads what it computes.
        sees_prefix = jnp.ones((batch * chunks, self.chunk, self.prefix), bool)
        mask = jnp.concatenate([sees_prefix, same & causal[None]], axis=-1)
        out = self._attend(
            fold(q[:, self.prefix :]), with_prefix(k), with_prefix(v), mask
        ).reshape(batch, chunks * self.chunk, *q.shape[2:])
        if not self.prefix:
            return out, cache
        own = slice(0, self.prefix)
        triangle = jnp.tril(jnp.ones((1, self.prefix, self.prefix), bool))
        head = self._attend(q[:, own], k[:, own], v[:, own], triangle)
        return jnp.concatenate([head, out], axis=1), cache


def causal(batch: int, length: int) -> Packed:
    """Plain causal attention over [B, T] tokens; padding, if any, on the right."""
    return Packed(0, length, jnp.ones((batch, length), jnp.int32))


@dataclasses.dataclass(frozen=True)
class Cached:
    """Attention of new tokens to a cache that they are first written into.

    Attributes:
        positions: [B, T] slot of each new token in its row of the cache; a token
            attends to the slots up to its own.
    """

    positions: jax.Array

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        cache = cache.write(self.positions, k, v)
        keys, values = cache.keys, cache.values
        slots = jnp.arange(keys.shape[2])
        mask = slots[None, None, :] <= self.positions[:, :, None]  # [B, T, S]
        return dot_product_attention(q, keys, values, mask, heads_first=True), cache


@dataclasses.dataclass(frozen=True)
class Window:
    """Attention of new tokens to the first slots of some rows of a larger cache.

    Equal to `Cached` for rows that stand side by side in a cache of more rows, whose
    later slots nobody looks at yet: what is not read costs nothing.

    Attributes:
        row: the first of the B rows, int32 scalar.
        positions: [B, T] slot of each new token in its row; past the last slot for a
            token that is not to be written, whose result is of no use.
        span: slots that are looked at; more than any position that is written.
    """

    row: jax.Array
    positions: jax.Array
    span: int

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        batch = len(q)
        rows = self.row + jnp.arange(batch)[:, None]
        whole = KVCache(
            *(
                held.at[cache.layer, rows, :, self.positions].set(
                    new.astype(held.dtype), mode='drop'
                )
                for held, new in zip(cache.whole, (k, v), strict=True)
            )
        )

        def known(held: jax.Array) -> jax.Array:  # [B, K, span, H]
            start = (cache.layer, self.row, 0, 0, 0)
            sizes = (1, batch, held.shape[2], self.span, held.shape[4])
            return jax.lax.dynamic_slice(held, start, sizes)[0]

        slots = jnp.arange(self.span)
        mask = slots[None, None, :] <= self.positions[:, :, None]
        keys, values = (known(held) for held in whole)
        found = dot_product_attention(q, keys, values, mask, heads_first=True)
        return found, cache._replace(whole=whole)


# Queries of a prompt are cut into at most so many blocks, of at least so many tokens:
# with 8, keys that lie ahead cost an eighth of what those behind cost.
_MOST_BLOCKS = 8
_LEAST_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Attention of whole prompts, which are also written into a cache.

    Equal to `Cached`, at about half its cost: a block of queries meets the keys up to
    its own end, and no unused slots of the cache.

    Attributes:
        positions: [B, T] slot of each token in its row of the cache: T consecutive
            ones behind the prefix.
        held: slots at the start of the cache in which a prefix lies; 0 for none.
        length: scalar, how many of these the prefix has filled.
    """

    positions: jax.Array
    held: int
    length: jax.Array

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        length = q.shape[1]
        known = KVCache(*(x[:, :, : self.held] for x in (cache.keys, cache.values)))
        cache = cache.write(self.positions, k, v)
        k, v = (x.swapaxes(1, 2).astype(known.k.dtype) for x in (k, v))
        block = max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS))
        used = (jnp.arange(self.held) < self.length)[None, None]
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        parts = []
        for start in range(0, length, block):
            own = slice(0, min(start + block, length))
            queries = slice(start, own.stop)
            before = jnp.broadcast_to(used, (1, own.stop - start, self.held))
            mask = jnp.concatenate([before, causal[:, queries, own]], axis=-1)
            keys = jnp.concatenate([known.k, k[:, :, own]], axis=2)
            values = jnp.concatenate([known.v, v[:, :, own]], axis=2)
            parts.append(
                dot_product_attention(
                    q[:, queries], keys, values, mask, heads_first=True
                )
            )
        return jnp.concatenate(parts, axis=1), cache


@dataclasses.dataclass(frozen=True)
class Prefixed:
    """Attention of packed rows to a prefix whose keys and values are known.

    The rows hold whole examples and no prefix; a token attends to the prefix and
    causally to its own example. The cache holds the prefix once, for all rows, and
    is only read.

    Attributes:
        length: scalar, tokens in the prefix; later slots of the cache are unused.
        segments: [B, T] example numbers; 0 marks padding, which attends to the
            prefix and other padding.
    """

    length: jax.Array
    segments: jax.Array

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        held_k, held_v = cache.keys, cache.values
        batch, length, num_heads, head_dim = q.shape
        kv_heads = k.shape[2]
        group = num_heads // kv_heads
        # kv heads first: all rows of a head meet the prefix in one matrix product.
        queries = q.reshape(batch, length, kv_heads, group, head_dim)
        queries = queries.transpose(2, 0, 3, 1, 4)  # [K, B, N/K, T, H]
        scale = head_dim**-0.5

        def logits(equation: str, queries: jax.Array, keys: jax.Array) -> jax.Array:
            found = products.product(equation, queries, keys, jnp.float32)
            return found.reshape(*shape, -1) * scale

        shape = queries.shape[:-1]
        flat = queries.reshape(kv_heads, batch * group * length, head_dim)
        rows = queries.reshape(kv_heads, batch, group * length, head_dim)
        used = jnp.arange(held_k.shape[2]) < self.length
        far = logits('kqh,ksh->kqs', flat, held_k[0].astype(q.dtype))
        far = jnp.where(used[None, None, None, None], far, -jnp.inf)
        same = self.segments[:, :, None] == self.segments[:, None, :]
        causal = jnp.tril(jnp.ones((length, length), bool))
        near = logits('kbqh,bskh->kbqs', rows, k)
        near = jnp.where((same & causal[None])[None, :, None], near, -jnp.inf)

        # One softmax over both, without laying them side by side. A token attends to
        # itself, so the largest of `near` is finite.
        largest = jnp.maximum(
            jnp.max(near, axis=-1, keepdims=True),
            jnp.max(far, axis=-1, keepdims=True, initial=-jnp.inf),
        )
        far, near = jnp.exp(far - largest), jnp.exp(near - largest)
        total = jnp.sum(near, axis=-1) + jnp.sum(far, axis=-1)
        far, near = far.astype(v.dtype), near.astype(v.dtype)
        out = products.product(
            'kqs,ksh->kqh', far.reshape(*flat.shape[:2], -1), held_v[0].astype(v.dtype)
        ).reshape(queries.shape)
        out += products.product(
            'kbqs,bskh->kbqh', near.reshape(*rows.shape[:3], -1), v
        ).reshape(queries.shape)
        out = out / total[..., None].astype(out.dtype)
        return out.transpose(1, 3, 0, 2, 4).reshape(q.shape), cache


@dataclasses.dataclass(frozen=True)
class Branched:
    """Attention of rows to a known prefix, and within a row by a given pattern.

    The pattern may be a tree: continuations of one text side by side, each token
    attending to the text and to what comes before it in its own branch. The cache
    holds the prefix once, for all rows, and is only read.

    Attributes:
        length: scalar, tokens in the prefix; later slots of the cache are unused.
        mask: bool [B, T, T], true where a token of the row may look at another of
            it; every token looks at itself.
    """

    length: jax.Array
    mask: jax.Array

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        held_k, held_v = cache.keys, cache.values
        slots = held_k.shape[2]

        def with_prefix(known: jax.Array, own: jax.Array) -> jax.Array:
            known = known.astype(own.dtype)
            known = jnp.broadcast_to(known, (len(own), *known.shape[1:]))
            own = own.swapaxes(1, 2)
            return jnp.concatenate([known, own], axis=2)  # [B, K, S + T, H]

        used = jnp.arange(slots) < self.length
        used = jnp.broadcast_to(used[None, None], (*self.mask.shape[:2], slots))
        mask = jnp.concatenate([used, self.mask], axis=-1)
        keys, values = with_prefix(held_k, k), with_prefix(held_v, v)
        return dot_product_attention(q, keys, values, mask, heads_first=True), cache
