"""One layer of the dense and of the pruned model, side by side.

Each is run on its own stream, the pruned one on what the refitted layers before have
made of it. What the layer's FFN is to add is known before its rows are fitted.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppjax.data import packing
from ppjax.learning import measure
from ppjax.models import decoder as decoder_lib
from ppjax.models import products
from ppjax.models import rope as rope_lib
from ppjax.parallel import execution, sharding

Compiled = Callable[..., Any]


class Halfway(NamedTuple):
    """A batch, as far as it can be run before the rows are fitted.

    Attributes:
        dense: the dense stream after the layer, [B, T, D].
        pruned: the pruned stream before its FFN, [B, T, D].
        wanted: what that FFN is to add, float32 [B, T, D].
    """

    dense: jax.Array
    pruned: jax.Array
    wanted: jax.Array


def _fed(block: decoder_lib.DecoderBlock, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a block's FFN makes of a stream, and its activations."""
    normed = decoder_lib.rms_norm(x, block.ffn_norm[...], block.cfg.norm_eps)
    return block.ffn(normed, None, {})


@functools.cache
def make_start(mesh: jax.sharding.Mesh) -> Compiled:
    """Builds start(embedding [V, D], tokens [B, T]) -> the stream [B, T, D]."""

    def start(embedding: jax.Array, tokens: jax.Array) -> jax.Array:
        return execution.spread_looked_up(products.looked_up(embedding, tokens))

    return execution.jit_over(mesh, start, batch=1, where=sharding.first_axis)


@functools.cache
def make_halfway(
    shape: packing.PackedShape, target: str, mesh: jax.sharding.Mesh
) -> Compiled:
    """Builds halfway(dense block, pruned block, (rows, streams)) -> `Halfway`.

    Args:
        shape: of the batches.
        target: one of `config.TARGETS`.
        mesh: the devices.
    """

    def halfway(
        dense: decoder_lib.DecoderBlock,
        pruned: decoder_lib.DecoderBlock,
        batch: tuple[packing.PackedBatch, tuple[jax.Array, jax.Array]],
    ) -> Halfway:
        rows, streams = batch
        cfg = dense.cfg
        frequencies = rope_lib.inverse_frequencies(
            cfg.head_dim, cfg.rope_theta, cfg.rope_scaling
        )
        rope = rope_lib.rotation(rows.positions, frequencies)
        attend = shape.attend(rows.segments)

        def attended(block: decoder_lib.DecoderBlock, x: jax.Array) -> jax.Array:
            normed = decoder_lib.rms_norm(x, block.attn_norm[...], cfg.norm_eps)
            y, _ = block.attention(normed, rope, attend, None, {})
            return execution.spread_rows(x + y)

        x, own = attended(dense, streams[0]), attended(pruned, streams[1])
        added, _ = _fed(dense, x)
        wanted = (_fed(dense, own)[0] if target == 'own_ffn' else added).astype(
            jnp.float32
        )
        if target == 'residual':
            # Not the sum less the other stream: what is alike must cancel exactly.
            wanted += x.astype(jnp.float32) - own.astype(jnp.float32)
        return Halfway(execution.spread_rows(x + added), own, wanted)

    return execution.jit_over(mesh, halfway, batch=2, where=sharding.first_axis)


@functools.cache
def make_feed(mesh: jax.sharding.Mesh) -> Compiled:
    """Builds feed(pruned block, its stream before the FFN) -> after it, [B, T, D]."""

    def feed(block: decoder_lib.DecoderBlock, x: jax.Array) -> jax.Array:
        return execution.spread_rows(x + _fed(block, x)[0])

    return execution.jit_over(mesh, feed, batch=1, where=sharding.first_axis)


# Of one batch: its rows, the pruned stream before the FFN and what that is to add.
_Fitted = tuple[packing.PackedBatch, jax.Array, jax.Array]


def _activations(
    block: decoder_lib.DecoderBlock,
    batch: _Fitted,
    shape: packing.PackedShape,
    shared: tuple[int, float],
    biased: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of every token, each times the root of what it counts.

    Args:
        block: as it is before the fit.
        batch: see `_Fitted`.
        shape: of the batch.
        shared: see `learning.measure.token_weights`.
        biased: whether a column of ones follows.

    Returns:
        (its activations [B, T, k], what is left of the target, float32 [B, T, D], how
        much it counts [B, T]).
    """
    rows, x, wanted = batch
    weights = measure.token_weights(rows, shape, *shared)
    root = jnp.sqrt(weights)[..., None]
    added, hidden = _fed(block, x)
    if biased:
        ones = jnp.ones((*hidden.shape[:2], 1), hidden.dtype)
        hidden = jnp.concatenate([hidden, ones], axis=2)
    missing = (wanted - added.astype(jnp.float32)) * root
    return products.scaled(hidden, root), missing, weights


@functools.cache
def make_sums(
    shape: packing.PackedShape, size: int, biased: bool, mesh: jax.sharding.Mesh
) -> Compiled:
    """Builds sums(block, batch, first row, shared) -> some rows of G and C, and more.

    The batch is (rows, the pruned stream before the FFN, what that is to add).

    Args:
        shape: of the batches.
        size: how many rows.
        biased: whether the last column is of ones.
        mesh: the devices.

    Returns:
        A function that gives (rows of G [size, k], of C [size, D], sum |e|^2, the
        tokens' weight), all float32.
    """

    def sums(
        block: decoder_lib.DecoderBlock,
        batch: _Fitted,
        first: int,
        shared: tuple[int, float],
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        a, missing, weights = _activations(block, batch, shape, shared, biased)
        own = jax.lax.dynamic_slice_in_dim(a, first, size, axis=2)
        gram = products.product('btr,btk->rk', own, a, jnp.float32)
        cross = products.product('btr,btd->rd', own.astype(jnp.float32), missing)
        return gram, cross, jnp.sum(jnp.square(missing)), jnp.sum(weights)

    return execution.jit_over(mesh, sums, batch=1, where=sharding.first_axis)


@functools.cache
def make_left(
    shape: packing.PackedShape, biased: bool, mesh: jax.sharding.Mesh
) -> Compiled:
    """Builds left(block, batch, change [k, D], shared) -> sum |e - a D|^2, float32."""

    def left(
        block: decoder_lib.DecoderBlock,
        batch: _Fitted,
        change: jax.Array,
        shared: tuple[int, float],
    ) -> jax.Array:
        a, missing, _ = _activations(block, batch, shape, shared, biased)
        change = change.astype(jnp.float32)
        made = products.product('btk,kd->btd', a.astype(jnp.float32), change)
        return jnp.sum(jnp.square(missing - made))

    return execution.jit_over(mesh, left, batch=1, where=sharding.first_axis)
