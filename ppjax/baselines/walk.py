"""The model, block by block, each on what the blocks before have made of the texts."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import processes
from ppjax.base import progress as progress_lib
from ppjax.baselines import batches as batches_lib
from ppjax.data import packing
from ppjax.models import decoder as decoder_lib
from ppjax.models import products
from ppjax.models import rope as rope_lib
from ppjax.parallel import execution


class Moments(NamedTuple):
    """Of values x [n, U] of some tokens, those of padding left out.

    Attributes:
        total: n.
        mean: [U].
        spread: sum (x - mean)^2, [U].
        squares: sum x^2, [U].
        sequences: sum over sequences of (mean over its tokens of |x|)^2, [U].
    """

    total: Any
    mean: Any
    spread: Any
    squares: Any
    sequences: Any

    def plus(self, other: 'Moments') -> 'Moments':
        """Of the values of both, in float64.

        Source: Chan et al., Algorithms for computing the sample variance, 1983.
        """
        count = self.total + other.total
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * other.total / count,
            self.spread + other.spread + apart**2 * self.total * other.total / count,
            self.squares + other.squares,
            self.sequences + other.sequences,
        )

    @property
    def variance(self) -> np.ndarray:
        """[U]."""
        return self.spread / self.total


class Statistics(NamedTuple):
    """What one block's two outgoing projections read.

    Attributes:
        channels: FFN activations, F of them.
        heads: what the heads found, N H of it.
    """

    channels: Moments
    heads: Moments


class Narrowing(NamedTuple):
    """What of a block is left out from here on; ones are kept.

    Attributes:
        channels: float32 [F].
        heads: float32 [N*H].
    """

    channels: np.ndarray
    heads: np.ndarray


def _moments(x: jax.Array, real: jax.Array) -> Moments:
    """Of x [B, T, U]; `real` [B, T] is 0 for padding."""
    values, weight = x.astype(jnp.float32), real[..., None]
    count = jnp.sum(real)
    mean = jnp.sum(values * weight, axis=(0, 1)) / count
    lengths = jnp.maximum(jnp.sum(weight, axis=1), 1)
    sizes = jnp.sum(jnp.abs(values) * weight, axis=1) / lengths
    return Moments(
        count,
        mean,
        jnp.sum(jnp.square(values - mean[None, None]) * weight, axis=(0, 1)),
        jnp.sum(jnp.square(values) * weight, axis=(0, 1)),
        jnp.sum(jnp.square(sizes), axis=0),
    )


def rope_of(
    block: decoder_lib.DecoderBlock, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The rotation of some positions [B, T]."""
    cfg = block.cfg
    frequencies = rope_lib.inverse_frequencies(
        cfg.head_dim, cfg.rope_theta, cfg.rope_scaling
    )
    return rope_lib.rotation(positions, frequencies)


@functools.cache
def _make_look(
    shape: packing.PackedShape, mesh: jax.sharding.Mesh | None
) -> Callable[..., Statistics]:
    """Builds look(block, rows, x [B, T, D]) -> `Statistics` of one batch."""

    def look(
        block: decoder_lib.DecoderBlock, rows: packing.PackedBatch, x: jax.Array
    ) -> Statistics:
        eps = block.cfg.norm_eps
        attend = shape.attend(rows.segments)
        normed = decoder_lib.rms_norm(x, block.attn_norm[...], eps)
        rope = rope_of(block, rows.positions)
        found, _ = block.heads(normed, rope, attend, None, {})
        attended, _ = block.attention(normed, rope, attend, None, {})
        normed = decoder_lib.rms_norm(x + attended, block.ffn_norm[...], eps)
        _, hidden = block.ffn(normed, None, {})
        real = (rows.segments > 0).astype(jnp.float32)
        return Statistics(_moments(hidden, real), _moments(found, real))

    compiled = jax.jit(look)
    return lambda *args: execution.call(mesh, compiled, *args)


@functools.cache
def _make_run(
    shape: packing.PackedShape, mesh: jax.sharding.Mesh | None
) -> Callable[..., jax.Array]:
    """Builds run(block, rows, x, narrowing) -> the stream after the block."""

    def run(
        block: decoder_lib.DecoderBlock,
        rows: packing.PackedBatch,
        x: jax.Array,
        narrowing: Narrowing,
    ) -> jax.Array:
        eps = block.cfg.norm_eps
        attend = shape.attend(rows.segments)
        normed = decoder_lib.rms_norm(x, block.attn_norm[...], eps)
        attended, _ = block.attention(
            normed, rope_of(block, rows.positions), attend, None, {}, narrowing.heads
        )
        x = x + attended
        normed = decoder_lib.rms_norm(x, block.ffn_norm[...], eps)
        added, _ = block.ffn(normed, narrowing.channels, {})
        return x + added

    compiled = jax.jit(run)
    return lambda *args: execution.call(mesh, compiled, *args)


def embedded(
    model: decoder_lib.Decoder, batches: batches_lib.Batches
) -> list[jax.Array]:
    """The stream that each batch begins with, [B, T, D]."""
    return [
        products.looked_up(model.embedding[...], jnp.asarray(rows.tokens))
        for rows in batches.rows
    ]


def blocks(model: decoder_lib.Decoder) -> Iterator[decoder_lib.DecoderBlock]:
    """A model's blocks, one at a time."""
    for layer in range(model.cfg.num_layers):
        yield jax.tree.map(lambda x, layer=layer: x[layer], model.blocks)


def statistics(
    model: decoder_lib.Decoder,
    batches: batches_lib.Batches,
    decide: Callable[[int, decoder_lib.DecoderBlock, Statistics], Narrowing | None],
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> list[Statistics]:
    """What every block's projections read.

    Args:
        model: the dense model.
        batches: the texts.
        decide: (number, block, its statistics) -> what is left out of it before the
            stream goes on; None for nothing.
        mesh: the devices.
    """
    look, run = _make_look(batches.shape, mesh), _make_run(batches.shape, mesh)
    streams = embedded(model, batches)
    found = []
    cfg = model.cfg
    whole = Narrowing(
        np.ones(cfg.d_ff, np.float32),
        np.ones(cfg.num_heads * cfg.head_dim, np.float32),
    )
    progress = progress_lib.Progress('Activations', cfg.num_layers)
    for layer, block in enumerate(blocks(model)):
        own: Statistics | None = None
        for rows, x in zip(batches.rows, streams, strict=True):
            part = _on_host(look(block, rows, x))
            own = part if own is None else _together(own, part)
        assert own is not None
        found.append(own)
        narrowing = decide(layer, block, own) or whole
        streams = _moved(run, block, batches.rows, streams, narrowing)
        progress.update(layer + 1)
    progress.close()
    return found


def _moved(
    run: Callable[..., jax.Array],
    block: decoder_lib.DecoderBlock,
    rows: Sequence[packing.PackedBatch],
    streams: Sequence[jax.Array],
    narrowing: Narrowing,
) -> list[jax.Array]:
    return [run(block, own, x, narrowing) for own, x in zip(rows, streams, strict=True)]


def _on_host(found: Statistics) -> Statistics:
    def moments(own: Moments) -> Moments:
        return Moments(*(np.asarray(processes.fetch(x), np.float64) for x in own))

    return Statistics(*map(moments, found))


def _together(own: Statistics, part: Statistics) -> Statistics:
    return Statistics(*(x.plus(y) for x, y in zip(own, part, strict=True)))
