"""Scores of units from what they put out on texts, without a gradient.

Wanda's structured form, FLAP and Minitron rank FFN channels, and groups of heads, by
what the projection after them reads.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import processes
from ppjax.baselines import batches as batches_lib
from ppjax.baselines import selection, walk
from ppjax.models import costs
from ppjax.models import decoder as decoder_lib
from ppjax.models import structure as structure_lib


@dataclasses.dataclass(frozen=True)
class Unit:
    """One kind of unit, in what its outgoing projection reads and writes.

    Attributes:
        moments: of what is read.
        sums: |w|_1 of each row of the projection, over what it writes.
        squares: |w|_2^2 of each row.
    """

    moments: walk.Moments
    sums: np.ndarray
    squares: np.ndarray


def wanda(unit: Unit) -> np.ndarray:
    """mean_out |w_ji| |x_j|_2 of each row.

    The norm is over all tokens; how many sequences they are from scales all alike.

    Source: Wanda, Sun et al., arXiv:2306.11695, its structured form in FLAP's code.
    """
    return unit.sums * np.sqrt(unit.moments.squares)


def flap(unit: Unit) -> np.ndarray:
    """Var(x_j) |w_j|_2^2 of each row: what a constant in its place would not restore.

    Source: FLAP, An et al., arXiv:2312.11983, Eq. 5.
    """
    return unit.moments.variance * unit.squares


def minitron(unit: Unit) -> np.ndarray:
    """sqrt(sum over sequences of (mean over tokens of |x_j|)^2) of each row.

    Source: Minitron, Muralidharan et al., arXiv:2407.14679, section 2.2, with the L2
    norm over sequences of its released code.
    """
    return np.sqrt(unit.moments.sequences)


@dataclasses.dataclass(frozen=True)
class Criterion:
    """How rows are scored, and how those of a head become its score.

    Attributes:
        of_rows: scores of rows.
        of_heads: rows of heads [N, H] -> scores of heads [N].
        sequential: whether a block sees what pruned blocks before it make.
    """

    of_rows: Callable[[Unit], np.ndarray]
    of_heads: Callable[[np.ndarray], np.ndarray]
    sequential: bool = False


CRITERIA = {
    'wanda_sp': Criterion(wanda, lambda x: x.sum(axis=-1), sequential=True),
    # A head's is squared once more, in the released code.
    'flap': Criterion(flap, lambda x: np.square(x).mean(axis=-1)),
    'minitron': Criterion(minitron, lambda x: np.linalg.norm(x, axis=-1)),
}


@jax.jit
def _norms(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = weight.astype(jnp.float32)
    return jnp.sum(jnp.abs(rows), axis=-1), jnp.sum(jnp.square(rows), axis=-1)


def scores(
    criterion: Criterion,
    block: decoder_lib.DecoderBlock,
    found: walk.Statistics,
) -> tuple[np.ndarray, np.ndarray]:
    """Of one block: of its channels [F] and its groups [K]."""

    def unit(moments: walk.Moments, weight: jax.Array) -> Unit:
        norms = (np.asarray(processes.fetch(x), np.float64) for x in _norms(weight))
        return Unit(moments, *norms)

    cfg = block.cfg
    channels = criterion.of_rows(unit(found.channels, block.w_down.dense()))
    rows = criterion.of_rows(unit(found.heads, block.w_o.dense()))
    heads = criterion.of_heads(rows.reshape(cfg.num_heads, cfg.head_dim))
    return channels, heads.reshape(cfg.num_kv_heads, -1).mean(axis=1)


@dataclasses.dataclass(frozen=True)
class Found:
    """Of all blocks.

    Attributes:
        channels: scores [L, F].
        groups: scores [L, K].
        statistics: of each block.
    """

    channels: np.ndarray
    groups: np.ndarray
    statistics: list[walk.Statistics]

    def standardised(self) -> 'Found':
        """With scores of mean 0 and standard deviation 1 in each block and kind."""

        def standard(x: np.ndarray) -> np.ndarray:
            spread = np.maximum(x.std(axis=1, keepdims=True), 1e-30)
            return (x - x.mean(axis=1, keepdims=True)) / spread

        return dataclasses.replace(
            self, channels=standard(self.channels), groups=standard(self.groups)
        )


def measure(
    model: decoder_lib.Decoder,
    batches: batches_lib.Batches,
    criterion: Criterion,
    sizes: list[costs.BlockSize] | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Found:
    """Scores of all units.

    Args:
        model: the dense model.
        batches: the texts.
        criterion: one of `CRITERIA`.
        sizes: of the blocks as they will be, where the criterion is sequential.
        mesh: the devices.
    """
    channels: list[np.ndarray] = []
    groups: list[np.ndarray] = []
    span = model.cfg.num_heads // model.cfg.num_kv_heads * model.cfg.head_dim

    def decide(
        layer: int, block: decoder_lib.DecoderBlock, found: walk.Statistics
    ) -> walk.Narrowing | None:
        own = scores(criterion, block, found)
        channels.append(own[0])
        groups.append(own[1])
        if not criterion.sequential or sizes is None:
            return None
        size = sizes[layer]
        kept = selection.largest(own[1], size.groups)
        return walk.Narrowing(
            selection.largest(own[0], size.channels).astype(np.float32),
            np.repeat(kept, span).astype(np.float32),
        )

    statistics = walk.statistics(model, batches, decide, mesh=mesh)
    return Found(np.stack(channels), np.stack(groups), statistics)


def mean_outputs(
    model: decoder_lib.Decoder,
    kept: structure_lib.Structure,
    statistics: list[walk.Statistics],
) -> dict[str, np.ndarray]:
    """What the removed units add on average: biases that take their place.

    Returns:
        Names of a block's biases -> float32 [L, D].

    Source: FLAP, arXiv:2312.11983, Eq. 6.
    """
    cfg = model.cfg
    biases: dict[str, list[np.ndarray]] = {'b_down': [], 'b_o': []}
    span = cfg.num_heads // cfg.num_kv_heads * cfg.head_dim
    for layer, block in enumerate(walk.blocks(model)):
        own = statistics[layer]
        for name, weight, moments, left in (
            ('b_down', block.w_down, own.channels, kept.channels[layer]),
            ('b_o', block.w_o, own.heads, np.repeat(kept.groups[layer], span)),
        ):
            rows = np.asarray(processes.fetch(weight.dense()), np.float64)
            biases[name].append(np.where(left, 0, moments.mean) @ rows)
    return {name: np.stack(own).astype(np.float32) for name, own in biases.items()}
