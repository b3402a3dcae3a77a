"""One optimizer step of mask learning."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.masking import estimators, topk
from ppjax.masking import granularity as granularity_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import weights
from ppjax.parallel import execution, sharding


class TrainState(NamedTuple):
    """All that mask learning changes; a few MB a persona even for large models.

    Attributes:
        scores: z [P, R, U], float32; R and U are those of `masking.granularity`.
        optimizer: optax's state; every leaf with a leading [P].
    """

    scores: jax.Array
    optimizer: Any


class Turn(NamedTuple):
    """Which personas take a step, and where each is in its own run. N slots.

    Attributes:
        persona: int32 [N], all different.
        active: bool [N]; false for a slot that stays empty.
        step: int32 [N], the persona's own steps before this one.
        progress: float32 [N], their share of all its steps, in [0, 1).
        learning_rate: float32 [N].
    """

    persona: Any
    active: Any
    step: Any
    progress: Any
    learning_rate: Any


class MaskStepMetrics(NamedTuple):
    """Figures of one step, [N] each.

    Attributes:
        loss: mean over the step's answer tokens, before the update, in nats.
        grad_norm: of dL/dz over all rows.
        flip_fraction: share of mask bits that the update changed.
        score_norm: of z after the update.
    """

    loss: jax.Array
    grad_norm: jax.Array
    flip_fraction: jax.Array
    score_norm: jax.Array


@dataclasses.dataclass(frozen=True)
class Learning:
    """What a step minimises and how its mask is made.

    Attributes:
        keep: k.
        estimator: one of `estimators.KINDS`.
        objective: one of `loss.OBJECTIVES`.
        anneal: share of the steps over which the number of kept units falls to k.
        weight_decay: decoupled.
        remat: see `Decoder.__call__`.
        seed: of what an estimator draws.
        granularity: what is masked; a key of `granularity.KINDS`.
    """

    keep: int
    estimator: str
    objective: str
    anneal: float
    weight_decay: float
    remat: str
    seed: int
    granularity: str = granularity_lib.CHANNELS.name


def _adamw(weight_decay: float) -> optax.GradientTransformation:
    """AdamW but for the learning rate, which differs from persona to persona."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


def init_state(scores: jax.Array, learning: Learning) -> TrainState:
    """The state before the first step.

    Args:
        scores: the starts of all personas, [P, R, U].
        learning: as for `make_train_step`.
    """
    return TrainState(scores, jax.vmap(_adamw(learning.weight_decay).init)(scores))


def make_train_step(
    learning: Learning,
    shape: packing.PackedShape,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> execution.Compiled:
    """Builds the compiled step (paper, Eq. 4-6).

    Every slot is a step of that persona's own run, side by side in the batch over one
    frozen model: its loss is the mean over all answer tokens of its examples, whatever
    the number of micro-batches, and a persona without a slot is neither moved nor
    decayed. Only scores are differentiated, so no weight gradient exists.

    Args:
        learning: what is minimised and how.
        shape: of every persona's batches.
        mesh: the devices, of which the model's weights lie as `parallel.sharding`
            says; rows are spread over its axes data and fsdp, and scores and moments
            are whole everywhere. None is one device.

    Returns:
        step(state, model, batch, turn) -> (state, metrics); the batch is each slot's
        `PackedBatch` with a leading [N].
    """
    estimate = estimators.make(learning.estimator)
    transform = _adamw(learning.weight_decay)
    granularity = granularity_lib.KINDS[learning.granularity]

    def mask_of(scores: jax.Array, turn: Turn) -> jax.Array:
        keep: Any = learning.keep
        if learning.anneal:
            keep = estimators.anneal_keep(
                turn.progress, scores.shape[-1], keep, learning.anneal
            )
        key = jax.random.fold_in(jax.random.key(learning.seed), turn.step)
        return estimate(scores, keep, progress=turn.progress, key=key)

    def micro_loss(
        scores: jax.Array,
        model: decoder_lib.Decoder,
        rows: packing.PackedBatch,
        turn: Turn,
    ) -> jax.Array:
        masks = granularity.decoder_masks(mask_of(scores, turn))
        losses = loss_lib.answer_losses(
            model,
            masks,
            rows,
            shape,
            remat=learning.remat,
            objective=learning.objective,
        )
        return jnp.sum(losses * rows.weights)

    def own_step(
        state: TrainState,
        model: decoder_lib.Decoder,
        batch: packing.PackedBatch,
        turn: Turn,
    ) -> tuple[TrainState, MaskStepMetrics]:
        def accumulate(carry: Any, rows: Any) -> tuple[Any, None]:
            found = jax.value_and_grad(micro_loss)(state.scores, model, rows, turn)
            return jax.tree.map(jnp.add, carry, found), None

        zero = (jnp.zeros(()), jnp.zeros_like(state.scores))
        (value, grad), _ = jax.lax.scan(accumulate, zero, batch)
        total = jnp.sum(batch.weights)
        value, grad = value / total, grad / total
        updates, optimizer = transform.update(grad, state.optimizer, state.scores)
        scores = state.scores - turn.learning_rate * updates
        keep = learning.keep
        flipped = topk.topk_mask(scores, keep) != topk.topk_mask(state.scores, keep)
        metrics = MaskStepMetrics(
            loss=value,
            grad_norm=jnp.sqrt(jnp.sum(jnp.square(grad))),
            flip_fraction=jnp.mean(flipped.astype(jnp.float32)),
            score_norm=jnp.sqrt(jnp.sum(jnp.square(scores))),
        )

        def if_active(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(turn.active, new, old)

        return jax.tree.map(if_active, TrainState(scores, optimizer), state), metrics

    def step(
        state: TrainState,
        model: decoder_lib.Decoder,
        batch: packing.PackedBatch,
        turn: Turn,
    ) -> tuple[TrainState, MaskStepMetrics]:
        chex.assert_rank(state.scores, 3)
        chex.assert_equal_shape([*turn])
        model = weights.with_tables_gathered(model)
        mine = jax.tree.map(lambda x: x[turn.persona], state)
        new, metrics = jax.vmap(own_step, in_axes=(0, None, 0, 0))(
            mine, model, batch, turn
        )
        state = jax.tree.map(lambda x, y: x.at[turn.persona].set(y), state, new)
        return state, metrics

    # Not donated: a checkpoint may still be reading the old state, and it is small.
    return execution.jit_over(mesh, step, batch=2, where=sharding.slot_rows)
