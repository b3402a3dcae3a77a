"""One optimizer step of recovery."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.models.weights import Weights
from ppjax.parallel import execution, sharding
from ppjax.recovery import methods


class RecoveryState(NamedTuple):
    """All that recovery changes, float32.

    Attributes:
        trained: see `methods.Trained`.
        optimizer: optax's state.
    """

    trained: methods.Trained
    optimizer: Any


class RecoveryMetrics(NamedTuple):
    """Figures of one step, scalars.

    Attributes:
        loss: mean -log p over the step's answer tokens, before the update, in nats.
        grad_norm: of its gradient by all that is trained.
    """

    loss: jax.Array
    grad_norm: jax.Array


class UnlikelihoodMetrics(NamedTuple):
    """Figures of one step that makes tokens unlikely as well, scalars.

    Attributes:
        loss, grad_norm: as of `RecoveryMetrics`; the gradient is that of both losses.
        unlikelihood: mean -log(1 - p) over the tokens to be made unlikely, in nats; 0
            if there are none.
    """

    loss: jax.Array
    grad_norm: jax.Array
    unlikelihood: jax.Array


Metrics = RecoveryMetrics | UnlikelihoodMetrics
Step = Callable[
    [RecoveryState, Weights, packing.PackedBatch], tuple[RecoveryState, Metrics]
]


def _where(batch: packing.PackedBatch, sign: int) -> jax.Array:
    """1 at tokens whose weight has this sign, else 0."""
    return jnp.maximum(sign * batch.weights, 0.0)


def make_recovery_step(
    optimizer: optax.GradientTransformation,
    method: methods.Method,
    state: RecoveryState,
    mesh: jax.sharding.Mesh,
    *,
    shape: packing.PackedShape,
    remat: str,
    unlikelihood: float = 0.0,
) -> Step:
    """Builds the compiled step.

    The loss is the mean over all answer tokens of the step, whatever the number of
    micro-batches, and `unlikelihood` times that over the tokens to be made unlikely;
    gradients are added up in float32. Rows are spread over the mesh
    axes data and fsdp, weights and moments as `parallel.sharding` says.

    Args:
        optimizer: of `state`.
        method: what is trained.
        state: for its structure; arrays or their shapes.
        mesh: the devices.
        shape: of every batch.
        remat: see `Decoder.__call__`.
        unlikelihood: weight of the second loss; 0 for none, and then no token may be
            one to be made unlikely.

    Returns:
        step(state, frozen weights, batch) -> (state, metrics). The state given is
        used up: its memory is the new one's.
    """
    placed = RecoveryState(*(sharding.shardings(part, mesh) for part in state))

    def micro_loss(
        trained: methods.Trained,
        frozen: Weights,
        rows: packing.PackedBatch,
        counts: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """A micro-batch's sum of the loss, and of both its parts [2]."""
        model = method.model(trained, frozen)
        masks = method.masks(trained)
        losses = loss_lib.answer_losses(
            model,
            masks,
            rows,
            shape,
            remat=remat,
            objective='ce',
            avoids=unlikelihood > 0,
        )
        parts = jnp.stack([jnp.sum(losses * _where(rows, sign)) for sign in (1, -1)])
        return parts[0] + unlikelihood * counts[0] / counts[1] * parts[1], parts

    def step(
        state: RecoveryState, frozen: Weights, batch: packing.PackedBatch
    ) -> tuple[RecoveryState, Metrics]:
        # The second is 0 where nothing is to be made unlikely.
        counts = jnp.stack([jnp.sum(_where(batch, sign)) for sign in (1, -1)])
        counts = jnp.maximum(counts, 1)
        # Once a step, not once a micro-batch; the gradient by what was cast is that
        # by the float32 arrays.
        cast = execution.gather_tables(method.cast(state.trained))
        frozen = execution.gather_tables(frozen)

        def accumulate(carry: Any, rows: Any) -> tuple[Any, None]:
            (_, parts), grads = jax.value_and_grad(micro_loss, has_aux=True)(
                cast, frozen, rows, counts
            )
            # Tables as they were looked up in; then each device adds up its own part.
            found = (parts, execution.gather_tables(grads))
            carry = jax.tree.map(lambda x, y: x + y.astype(x.dtype), carry, found)
            grads = jax.lax.with_sharding_constraint(carry[1], placed.trained)
            return (carry[0], grads), None

        zero = (jnp.zeros(2), jax.tree.map(jnp.zeros_like, state.trained))
        (parts, grads), _ = jax.lax.scan(accumulate, zero, batch)
        parts = parts / counts
        grads = jax.tree.map(lambda x: x / counts[0], grads)
        updates, moments = optimizer.update(grads, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(grads)]
        norm = jnp.sqrt(jnp.sum(jnp.stack(squares)))
        metrics: Metrics = RecoveryMetrics(parts[0], norm)
        if unlikelihood:
            metrics = UnlikelihoodMetrics(parts[0], norm, parts[1])
        return RecoveryState(trained, moments), metrics

    compiled = jax.jit(
        step,
        donate_argnums=0,
        # Left open, the state might come back spread otherwise and compile again.
        out_shardings=(placed, sharding.replicated(mesh)),
    )

    def run(
        state: RecoveryState, frozen: Weights, batch: packing.PackedBatch
    ) -> tuple[RecoveryState, Metrics]:
        placed = sharding.spread(batch, sharding.rows(mesh))
        return execution.call(mesh, compiled, state, frozen, placed)

    return run
