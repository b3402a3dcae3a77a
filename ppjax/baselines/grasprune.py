"""GRASPrune: gates of all layers' units compete under one budget, and then gains.

Every step keeps what `selection.over_layers` makes of the scores, exactly within the
budget; the gradient passes to all scores, by p = sigmoid(s / tau) in place of the
mask. Then what is kept is scaled, 1 + alpha tanh(t) a unit, with the mask fixed.

A group's gate multiplies what its heads found. That of the released code multiplies
keys and values: the same for a gate that is 0 or 1, but gradients and gains of keys
are left out here, which in Qwen3 a norm would undo.

Source: GRASPrune, Wang et al., arXiv:2604.19398, and its released code.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppjax.base import processes
from ppjax.base import progress as progress_lib
from ppjax.baselines import batches as batches_lib
from ppjax.baselines import budget, selection
from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import structure as structure_lib
from ppjax.parallel import execution, sharding

# Passes over the texts where no steps are given.
EPOCHS, GAIN_EPOCHS = 4, 1
LEARNING_RATE = 1e-2
_TAU = 1.5
_ALPHA = 0.5
_BETAS = (0.9, 0.99)
# All scores start at 0 in the paper, so that any order of layers is as good. Ours
# starts with the first channels of every layer, by less than any step moves a score.
_TIES = 1e-6
# Losses at the start and at the end are means over so many steps.
_SHOWN = 8


class Units(NamedTuple):
    """One number a unit.

    Attributes:
        channels: float32 [L, F].
        groups: of key/value heads with their query heads, float32 [L, K].
    """

    channels: Any
    groups: Any

    def masks(self, cfg: config_lib.ModelConfig) -> masks_lib.Masks:
        """What the decoder multiplies by them."""
        span = cfg.num_heads // cfg.num_kv_heads * cfg.head_dim
        shape = (*self.groups.shape, span)
        wide = jnp.broadcast_to(self.groups[:, :, None], shape)
        return masks_lib.Masks(
            channels=self.channels, attention=wide.reshape(len(self.groups), -1)
        )


class Learned(NamedTuple):
    """What learning gives.

    Attributes:
        structure: what is kept.
        gains: of the units that are kept; 1 of others.
        facts: losses, for the results.
    """

    structure: structure_lib.Structure
    gains: Units
    facts: dict[str, Any]


def start_scores(cfg: config_lib.ModelConfig) -> Units:
    """Equal but for ties, which every layer breaks in the same way."""

    def falling(count: int) -> np.ndarray:
        row = -_TIES * np.arange(count, dtype=np.float32) / count
        return np.tile(row, (cfg.num_layers, 1))

    return Units(falling(cfg.d_ff), falling(cfg.num_kv_heads))


def _straight_through(scores: Units, mask: Units) -> Units:
    """The mask, whose gradient is that of p = sigmoid(s / tau)."""

    def gate(score: jax.Array, kept: jax.Array) -> jax.Array:
        share = jax.nn.sigmoid(score / _TAU)
        return kept + (share - jax.lax.stop_gradient(share))

    return jax.tree.map(gate, scores, mask)


def _scaled(params: Units, mask: Units) -> Units:
    """Gains 1 + alpha tanh(t) of what is kept."""
    return jax.tree.map(lambda t, kept: kept * gain(t), params, mask)


def gain(t: Any) -> Any:
    """In (1 - alpha, 1 + alpha), 1 at 0."""
    return 1 + _ALPHA * jnp.tanh(t)


_GATES: dict[str, Callable[[Units, Units], Units]] = {
    'scores': _straight_through,
    'gains': _scaled,
}


@functools.cache
def _make_step(
    kind: str,
    rate: float,
    shape: packing.PackedShape,
    mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[Units, Any, jax.Array]]:
    """Builds step(model, params, moments, mask, rows) -> (params, moments, loss)."""
    optimizer = _optimizer(rate)

    def step(
        model: decoder_lib.Decoder,
        params: Units,
        moments: Any,
        mask: Units,
        rows: packing.PackedBatch,
    ) -> tuple[Units, Any, jax.Array]:
        def loss(params: Units) -> jax.Array:
            masks = _GATES[kind](params, mask).masks(model.cfg)
            nll = loss_lib.answer_losses(
                model, masks, rows, shape, remat='dots', objective='ce'
            )
            return jnp.sum(nll * rows.weights) / jnp.sum(rows.weights)

        found, slopes = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(slopes, moments, params)
        return optax.apply_updates(params, updates), moments, found

    compiled = jax.jit(step, out_shardings=sharding.replicated(mesh))
    return lambda *args: execution.call(mesh, compiled, *args)


def _optimizer(rate: float) -> optax.GradientTransformation:
    return optax.adam(rate, *_BETAS)


def _order(batches: batches_lib.Batches, seed: int, steps: int) -> Iterator[Any]:
    """The batches of so many steps, every epoch in an order of its own."""
    epoch: list[int] = []
    for step in range(steps):
        if not epoch:
            number = step // len(batches.rows)
            rng = np.random.default_rng([seed, number])
            epoch = rng.permutation(len(batches.rows)).tolist()
        yield batches.rows[epoch.pop()]


def learn(
    model: decoder_lib.Decoder,
    batches: batches_lib.Batches,
    blocks_left: int,
    *,
    heads: bool,
    steps: int | None,
    gain_steps: int | None,
    rate: float,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> Learned:
    """Learns what to keep, and its gains.

    Args:
        model: the dense model, frozen.
        batches: the texts.
        blocks_left: parameters of blocks that must be left.
        heads: whether groups of heads may go too.
        steps: of learning what to keep; None for `EPOCHS` passes.
        gain_steps: of learning gains; None for `GAIN_EPOCHS`, 0 for none.
        rate: of both.
        seed: of the order of batches.
        mesh: the devices.

    Raises:
        FloatingPointError: if a loss or a score is not finite.
    """
    cfg, count = model.cfg, len(batches.rows)
    among = budget.Range(0, cfg.num_layers)

    def kept(scores: Units) -> structure_lib.Structure:
        found = Units(*map(processes.fetch, scores))
        if not all(np.isfinite(x).all() for x in found):
            raise FloatingPointError('scores are not finite')
        groups = found.groups if heads else np.full_like(found.groups, np.inf)
        return selection.over_layers(cfg, found.channels, groups, blocks_left, among)

    def run(
        kind: str,
        params: Units,
        steps: int,
        seed: int,
        mask_of: Callable[[Units], Units],
    ) -> tuple[Units, list[float]]:
        step = _make_step(kind, rate, batches.shape, mesh)
        params = sharding.replicate(params, mesh)
        moments = sharding.replicate(_optimizer(rate).init(params), mesh)
        losses: list[float] = []
        progress = progress_lib.Progress(f'GRASPrune, {kind}', steps)
        for done, rows in enumerate(_order(batches, seed, steps), 1):
            params, moments, found = step(model, params, moments, mask_of(params), rows)
            losses.append(float(processes.fetch(found)))
            if not np.isfinite(losses[-1]):
                raise FloatingPointError(f'the loss of step {done} is {losses[-1]}')
            progress.update(done, f'loss {losses[-1]:.3f}')
        progress.close()
        return params, losses

    scores, chosen = run(
        'scores',
        start_scores(cfg),
        EPOCHS * count if steps is None else steps,
        seed,
        lambda params: _mask(kept(params)),
    )
    structure = kept(scores)
    mask = _mask(structure)
    wanted = GAIN_EPOCHS * count if gain_steps is None else gain_steps
    zeros = jax.tree.map(np.zeros_like, start_scores(cfg))
    params, scaled = run('gains', zeros, wanted, seed + 1, lambda _: mask)
    gains = Units(
        *(
            np.where(own, processes.fetch(gain(t)), np.float32(1))
            for own, t in zip(
                (structure.channels, structure.groups), params, strict=True
            )
        )
    )
    return Learned(
        structure, gains, {'loss': _shown(chosen), 'gain_loss': _shown(scaled)}
    )


def _mask(structure: structure_lib.Structure) -> Units:
    return Units(
        structure.channels.astype(np.float32), structure.groups.astype(np.float32)
    )


def _shown(losses: list[float]) -> dict[str, Any]:
    """How many steps there were, and mean losses of the first and last few."""
    found: dict[str, Any] = {'steps': len(losses)}
    if losses:
        found |= {
            'first': float(np.mean(losses[:_SHOWN])),
            'last': float(np.mean(losses[-_SHOWN:])),
        }
    return found
