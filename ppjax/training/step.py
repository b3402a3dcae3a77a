"""One optimizer step of mask learning."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.masking import budget as budget_lib
from ppjax.masking import estimators, topk
from ppjax.masking import granularity as granularity_lib
from ppjax.masking import ranking as ranking_lib
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

    @property
    def gains(self) -> None:
        """There are none."""
        return None


class GainedState(NamedTuple):
    """The same where gains are learned too: a tree of its own, for its checkpoints.

    Attributes:
        scores: as of `TrainState`.
        optimizer: of the scores.
        gains: [P, L, F], float32.
        gain_optimizer: theirs.
    """

    scores: jax.Array
    optimizer: Any
    gains: jax.Array
    gain_optimizer: Any


AnyState = TrainState | GainedState


class Turn(NamedTuple):
    """Which personas take a step, and where each is in its own run. N slots.

    Attributes:
        persona: int32 [N], all different.
        active: bool [N]; false for a slot that stays empty.
        step: int32 [N], the persona's own steps before this one.
        progress: float32 [N], their share of all steps of its mask, in [0, 1].
        learning_rate: float32 [N], of scores.
        gain_rate: float32 [N], of gains; None where none are learned.
    """

    persona: Any
    active: Any
    step: Any
    progress: Any
    learning_rate: Any
    gain_rate: Any = None


class MaskStepMetrics(NamedTuple):
    """Figures of one step, [N] each.

    Attributes:
        loss: mean over the step's answer tokens, before the update, in nats.
        grad_norm: of dL/dz over all rows.
        flip_fraction: share of mask bits that the update changed.
        score_norm: of z, and of gains, after the update.
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
        gains: whether kept channels are multiplied by gains, learned as well.
        mask_steps: a persona's own steps after which its mask stands still; None if
            it never does.
        keeps: the k of which each step draws one, so that one order of the channels
            serves all; None if all steps keep `keep`.
        budget: where all layers together keep L k, each its own number; None where
            each keeps k.
    """

    keep: int
    estimator: str
    objective: str
    anneal: float
    weight_decay: float
    remat: str
    seed: int
    granularity: str = granularity_lib.CHANNELS.name
    gains: bool = False
    mask_steps: int | None = None
    keeps: ranking_lib.Keeps | None = None
    budget: budget_lib.Budget | None = None

    def widths(self, scores: jax.Array, keep: int) -> int | jax.Array:
        """k of every layer, or [R, 1] where each of the scores z [R, U] has its own."""
        return keep if self.budget is None else self.budget.widths(scores, keep)

    def drawn_keep(self, key: jax.Array) -> int | jax.Array:
        """k of a step: where there are `keeps`, the smaller of two drawn from them.

        What few channels do needs more steps than what many do.
        """
        if self.keeps is None:
            return self.keep
        least, _, align = self.keeps
        drawn = jax.random.randint(key, (2,), 0, self.keeps.number)
        return least + align * jnp.min(drawn)


def _adamw(weight_decay: float) -> optax.GradientTransformation:
    """AdamW but for the learning rate, which differs from persona to persona."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


# Not decayed: a gain says nothing at 1, and not at 0.
_of_gains = optax.scale_by_adam()


def init_state(
    scores: jax.Array, learning: Learning, gains: jax.Array | None = None
) -> AnyState:
    """The state before the first step.

    Args:
        scores: the starts of all personas, [P, R, U].
        learning: as for `make_train_step`.
        gains: their starts, where some are learned; 1 by default.
    """
    moments = jax.vmap(_adamw(learning.weight_decay).init)(scores)
    if not learning.gains:
        return TrainState(scores, moments)
    gains = jnp.ones_like(scores) if gains is None else gains
    return GainedState(scores, moments, gains, jax.vmap(_of_gains.init)(gains))


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
    decayed. Only scores and gains are differentiated, so no weight gradient exists.

    With gains g the mask of the loss is c = m g. Both are differentiated: dL/dz :=
    dL/dc g where the estimator is straight through, and dL/dg = dL/dc m.

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

    def stands(turn: Turn) -> jax.Array:
        return turn.step >= learning.mask_steps

    def mask_of(scores: jax.Array, turn: Turn) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(learning.seed), turn.step)
        keep: Any = learning.drawn_keep(jax.random.fold_in(key, 0))
        if learning.anneal:
            keep = estimators.anneal_keep(
                turn.progress, scores.shape[-1], keep, learning.anneal
            )
        if learning.budget is not None:
            keep = learning.widths(scores, learning.keep)
        mask = estimate(scores, keep, progress=turn.progress, key=key)
        if learning.mask_steps is None:
            return mask
        return jnp.where(stands(turn), topk.hard_mask(scores, keep), mask)

    def micro_loss(
        values: tuple[jax.Array, jax.Array | None],
        model: decoder_lib.Decoder,
        rows: packing.PackedBatch,
        turn: Turn,
    ) -> jax.Array:
        scores, gains = values
        mask = mask_of(scores, turn)
        masks = granularity.decoder_masks(mask if gains is None else mask * gains)
        losses = loss_lib.answer_losses(
            model,
            masks,
            rows,
            shape,
            remat=learning.remat,
            objective=learning.objective,
        )
        return jnp.sum(losses * rows.weights)

    def moved(state: AnyState, grad: jax.Array, turn: Turn) -> tuple[jax.Array, Any]:
        updates, optimizer = transform.update(grad, state.optimizer, state.scores)
        new = state.scores - turn.learning_rate * updates, optimizer
        if learning.mask_steps is None:
            return new
        old = state.scores, state.optimizer
        return jax.tree.map(lambda x, y: jnp.where(stands(turn), x, y), old, new)

    def own_step(
        state: AnyState,
        model: decoder_lib.Decoder,
        batch: packing.PackedBatch,
        turn: Turn,
    ) -> tuple[AnyState, MaskStepMetrics]:
        values = state.scores, state.gains

        def accumulate(carry: Any, rows: Any) -> tuple[Any, None]:
            found = jax.value_and_grad(micro_loss)(values, model, rows, turn)
            return jax.tree.map(jnp.add, carry, found), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, values))
        (value, grads), _ = jax.lax.scan(accumulate, zero, batch)
        total = jnp.sum(batch.weights)
        value, grads = value / total, jax.tree.map(lambda x: x / total, grads)
        grad, of_gains = grads
        scores, optimizer = moved(state, grad, turn)
        new: AnyState = TrainState(scores, optimizer)
        squares = jnp.sum(jnp.square(scores))
        if isinstance(state, GainedState):
            updates, moments = _of_gains.update(of_gains, state.gain_optimizer)
            gains = state.gains - turn.gain_rate * updates
            new = GainedState(scores, optimizer, gains, moments)
            squares += jnp.sum(jnp.square(gains))
        before, after = (
            topk.hard_mask(x, learning.widths(x, learning.keep))
            for x in (state.scores, scores)
        )
        metrics = MaskStepMetrics(
            loss=value,
            grad_norm=jnp.sqrt(jnp.sum(jnp.square(grad))),
            flip_fraction=jnp.mean((after != before).astype(jnp.float32)),
            score_norm=jnp.sqrt(squares),
        )

        def if_active(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(turn.active, new, old)

        return jax.tree.map(if_active, new, state), metrics

    def step(
        state: AnyState,
        model: decoder_lib.Decoder,
        batch: packing.PackedBatch,
        turn: Turn,
    ) -> tuple[AnyState, MaskStepMetrics]:
        chex.assert_rank(state.scores, 3)
        chex.assert_equal_shape(jax.tree.leaves(turn))
        model = weights.with_tables_gathered(model)
        mine = jax.tree.map(lambda x: x[turn.persona], state)
        new, metrics = jax.vmap(own_step, in_axes=(0, None, 0, 0))(
            mine, model, batch, turn
        )
        state = jax.tree.map(lambda x, y: x.at[turn.persona].set(y), state, new)
        return state, metrics

    # Not donated: a checkpoint may still be reading the old state, and it is small.
    return execution.jit_over(mesh, step, batch=2, where=sharding.slot_rows)
