"""One optimizer step of mask learning, and measuring a mask."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppjax.data import packing
from ppjax.masking import score_init, topk
from ppjax.models import attention
from ppjax.models import decoder as decoder_lib
from ppjax.training import loss as loss_lib


class TrainState(NamedTuple):
    """All that mask learning changes; a few MB even for large models.

    Attributes:
        scores: z [L, F], float32.
        optimizer: optax's state.
    """

    scores: jax.Array
    optimizer: Any


class StepMetrics(NamedTuple):
    """Figures of one step, scalars.

    Attributes:
        loss: mean -log p over the step's answer tokens, before the update, in nats.
        grad_norm: of dL/dz over all layers.
        flip_fraction: share of mask bits that the update changed.
    """

    loss: jax.Array
    grad_norm: jax.Array
    flip_fraction: jax.Array


def make_optimizer(
    *, learning_rate: float, weight_decay: float, warmup: float, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW on a cosine schedule with linear warm-up (paper, A.1).

    Args:
        learning_rate: the peak.
        weight_decay: decoupled.
        warmup: share of the steps, rounded up to whole ones.
        num_steps: after which the rate is 0.

    Returns:
        (optimizer, learning rate by step).
    """
    rising = -int(-warmup * num_steps // 1)
    schedule = optax.join_schedules(
        [
            # Step 0 already learns: the first of n warm-up steps has 1/n of the peak.
            optax.linear_schedule(
                learning_rate / max(rising, 1), learning_rate, max(rising - 1, 1)
            ),
            optax.cosine_decay_schedule(learning_rate, max(num_steps - rising, 1)),
        ],
        [rising],
    )
    return optax.adamw(schedule, weight_decay=weight_decay), schedule


def make_train_step(
    optimizer: optax.GradientTransformation,
    *,
    keep: int,
    layout: packing.Layout,
    remat: str,
) -> Callable[
    [TrainState, decoder_lib.Decoder, packing.PackedBatch],
    tuple[TrainState, StepMetrics],
]:
    """Builds the compiled step (paper, Eq. 4-6).

    The loss is the mean over all answer tokens of the step, whatever the number of
    micro-batches. Only scores are differentiated, so no weight gradient exists.

    Args:
        optimizer: from `make_optimizer`.
        keep: k.
        layout: the shape of every batch.
        remat: see `Decoder.__call__`.

    Returns:
        step(state, model, batch) -> (state, metrics).
    """
    measure = functools.partial(
        loss_lib.answer_nll,
        prefix=len(layout.prefix),
        chunk=layout.chunk,
        remat=remat,
    )

    def micro_loss(
        scores: jax.Array, model: decoder_lib.Decoder, rows: loss_lib.Rows
    ) -> jax.Array:
        mask = topk.topk_mask(scores, keep)
        return jnp.sum(measure(model, mask, rows) * rows.weights)

    def step(
        state: TrainState, model: decoder_lib.Decoder, batch: packing.PackedBatch
    ) -> tuple[TrainState, StepMetrics]:
        total = jnp.sum(batch.weights)

        def accumulate(carry: Any, rows: Any) -> tuple[Any, None]:
            value, grad = jax.value_and_grad(micro_loss)(
                state.scores, model, loss_lib.Rows(*rows)
            )
            return jax.tree.map(jnp.add, carry, (value, grad)), None

        zero = (jnp.zeros(()), jnp.zeros_like(state.scores))
        (value, grad), _ = jax.lax.scan(accumulate, zero, tuple(batch))
        value, grad = value / total, grad / total
        updates, optimizer_state = optimizer.update(grad, state.optimizer, state.scores)
        scores = optax.apply_updates(state.scores, updates)
        flipped = topk.topk_mask(scores, keep) != topk.topk_mask(state.scores, keep)
        metrics = StepMetrics(
            loss=value,
            grad_norm=jnp.sqrt(jnp.sum(jnp.square(grad))),
            flip_fraction=jnp.mean(flipped.astype(jnp.float32)),
        )
        return TrainState(scores, optimizer_state), metrics

    # Not donated: a checkpoint may still be reading the old state, and it is small.
    return jax.jit(step)


def make_measure(
    layout: packing.Layout,
) -> Callable[
    [decoder_lib.Decoder, jax.Array | None, packing.PackedBatch],
    jax.Array,
]:
    """Builds measure(model, mask or None, batch) -> -log p [B, M], in nats.

    For batches of one micro-batch; where `weights` is 0 the value is meaningless.
    """

    def measure(
        model: decoder_lib.Decoder,
        mask: jax.Array | None,
        batch: packing.PackedBatch,
    ) -> jax.Array:
        rows = loss_lib.Rows(*(x[0] for x in batch))
        return loss_lib.answer_nll(
            model,
            mask,
            rows,
            prefix=len(layout.prefix),
            chunk=layout.chunk,
            remat='none',
        )

    return jax.jit(measure)


def make_activation_sums(
    layout: packing.Layout,
) -> Callable[[decoder_lib.Decoder, packing.PackedBatch], tuple[jax.Array, jax.Array]]:
    """Builds sums(model, batch) -> (sum of squared activations [L, F], tokens).

    Over the tokens of the examples, and over the shared prefix once a batch.
    """

    def sums(
        model: decoder_lib.Decoder, batch: packing.PackedBatch
    ) -> tuple[jax.Array, jax.Array]:
        rows = loss_lib.Rows(*(x[0] for x in batch))
        shared = jnp.ones((rows.tokens.shape[0], len(layout.prefix)), jnp.float32)
        counted = (rows.segments > 0).astype(jnp.float32)
        weights = jnp.concatenate([shared, counted], axis=1)
        _, _, square_sums = model(
            rows.tokens,
            rows.positions,
            None,
            attention.Packed(len(layout.prefix), layout.chunk, rows.segments),
            tap=score_init.square_sum_tap(weights),
        )
        return square_sums, jnp.sum(weights)

    return jax.jit(sums)
