"""Compiled measurements of packed examples, without an update.

On a mesh of devices, over which a model's weights lie, rows are spread over its axes
data and fsdp; None is one device.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.masking import granularity as granularity_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import weights as weights_lib
from ppjax.parallel import execution


@functools.cache
def make_measure(
    shape: packing.PackedShape, mesh: jax.sharding.Mesh | None = None
) -> Callable[..., jax.Array]:
    """Builds measure(model, masks, batch) -> -log p [B, M], in nats.

    For batches of one micro-batch; where `weights` is 0 the value is meaningless.

    Args:
        shape: of the batches.
        mesh: the devices.
    """

    def measure(
        model: decoder_lib.Decoder,
        masks: masks_lib.Masks,
        batch: packing.PackedBatch,
    ) -> jax.Array:
        model = weights_lib.with_tables_gathered(model)
        return loss_lib.answer_losses(
            model, masks, batch.first(), shape, remat='none', objective='ce'
        )

    return execution.jit_over(mesh, measure, batch=2)


def token_weights(
    rows: packing.PackedBatch, shape: packing.PackedShape, common: int, share: float
) -> jax.Array:
    """How much each token of a batch's rows counts, [B, T].

    The first `common` tokens, which all of the persona's examples start with, count
    once a batch: whole where the shape's prefix holds them, and `share` for each
    example elsewhere. Padding counts nothing.
    """
    # Every row holds the prefix; together they count it once.
    size = rows.tokens.shape[0]
    shared = jnp.full((size, shape.prefix), 1 / size, jnp.float32)
    own = jnp.where(rows.positions[:, shape.prefix :] < common, share, 1.0)
    own = jnp.where(rows.segments > 0, own, 0.0)
    return jnp.concatenate([shared, own], axis=1)


@functools.cache
def make_tap_sums(
    shape: packing.PackedShape,
    make_tap: Callable[[jax.Array], decoder_lib.Tap],
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Builds sums(model, batch, common, share) -> (what the tap sums [L, ...], tokens).

    Sums over the tokens of the examples; see `token_weights`.

    Args:
        shape: of the batches.
        make_tap: how much each token counts [B, T] -> a tap that sums over tokens.
        mesh: the devices.
    """

    def sums(
        model: decoder_lib.Decoder,
        batch: packing.PackedBatch,
        common: int,
        share: float,
    ) -> tuple[jax.Array, jax.Array]:
        model = weights_lib.with_tables_gathered(model)
        rows = batch.first()
        weights = token_weights(rows, shape, common, share)
        _, _, found = model(
            rows.tokens,
            rows.positions,
            masks_lib.DENSE,
            shape.attend(rows.segments),
            tap=make_tap(weights),
        )
        return found, jnp.sum(weights)

    return execution.jit_over(mesh, sums, batch=1)


@functools.cache
def make_gradient_squares(
    shape: packing.PackedShape,
    remat: str,
    granularity: granularity_lib.Granularity,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[decoder_lib.Decoder, packing.PackedBatch], tuple[jax.Array, jax.Array]]:
    """Builds squares(model, batch) -> (squared dL/dm at the dense model [R, U], 1).

    L is the mean -log p of the batch's answer tokens.
    """

    def squares(
        model: decoder_lib.Decoder, batch: packing.PackedBatch
    ) -> tuple[jax.Array, jax.Array]:
        model = weights_lib.with_tables_gathered(model)
        rows = batch.first()

        def loss(mask: jax.Array) -> jax.Array:
            masks = granularity.decoder_masks(mask)
            nll = loss_lib.answer_losses(
                model, masks, rows, shape, remat=remat, objective='ce'
            )
            return jnp.sum(nll * rows.weights) / jnp.sum(rows.weights)

        ones = jnp.ones(granularity.shape(model.cfg.num_layers, model.cfg.d_ff))
        return jnp.square(jax.grad(loss)(ones)), jnp.ones(())

    return execution.jit_over(mesh, squares, batch=1)
