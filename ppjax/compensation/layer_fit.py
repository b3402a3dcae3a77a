"""Fitting one layer's rows: sums over the mesh, dampings tried, the best one taken."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import processes
from ppjax.compensation import fit, paths
from ppjax.compensation import texts as texts_lib
from ppjax.data import packing
from ppjax.models import decoder as decoder_lib
from ppjax.parallel import sharding

# Of rows of a Gram matrix that a device makes at a time.
_BLOCK_BYTES = 2**30


def row_blocks(size: int) -> tuple[list[int], int]:
    """(first row of each block, rows of each) of a matrix [size, size].

    All have one size: the last may begin before the one before it ends.
    """
    count = math.ceil(4 * size * size / _BLOCK_BYTES)
    rows = math.ceil(size / count)
    return [min(block * rows, size - rows) for block in range(count)], rows


class LayerFit:
    """What is known of one layer, as its texts go by: those held back come last."""

    def __init__(
        self,
        layer: int,
        block: decoder_lib.DecoderBlock,
        shape: packing.PackedShape,
        dampings: Sequence[float],
        *,
        biased: bool,
        mesh: jax.sharding.Mesh,
    ):
        """Args:
        layer: counted from 1, for people.
        block: of the pruned model, as it is.
        shape: of the batches.
        dampings: to choose from.
        biased: whether a bias is fitted.
        mesh: the devices.
        """
        cfg = block.cfg
        self._layer, self._block, self._biased, self._mesh = layer, block, biased, mesh
        self._sums = fit.Sums(cfg.d_ff + biased, cfg.d_model)
        self._starts, self._rows = row_blocks(cfg.d_ff + biased)
        self._sums_of = paths.make_sums(shape, self._rows, biased, mesh)
        self._left_of = paths.make_left(shape, biased, mesh)
        self._dampings = dampings
        self._changes: list[jax.Array] = []
        # Of the texts that are not held back: error before, after each, tokens.
        self._before = self._weight = 0.0
        self._after: list[float] = []
        self._held = np.zeros(len(dampings))

    def add(self, batch: texts_lib.Batch, halfway: paths.Halfway) -> None:
        """Adds a batch to the sums; if it is held back, after trying it."""
        own = (batch.rows, halfway.pruned, halfway.wanted)
        if batch.is_held:
            if not self._changes:
                self._try()
            for number, change in enumerate(self._changes):
                found = self._left_of(self._block, own, change, batch.shared)
                self._held[number] += float(processes.fetch(found))
        done = 0
        for start in self._starts:
            found = self._sums_of(self._block, own, start, batch.shared)
            gram, cross, energy, weight = map(processes.fetch, found)
            self._sums.add_rows(done, gram[done - start :], cross[done - start :])
            done = start + self._rows
        self._sums.energy += float(energy)
        self._sums.weight += float(weight)

    def _try(self) -> None:
        sums, biased = self._sums, self._biased
        sums.check_finite(self._layer)
        self._before, self._weight = sums.energy, sums.weight
        for damping in self._dampings:
            change = fit.solve(sums, damping, biased=biased)
            self._after.append(fit.left(sums, change, damping, biased=biased))
            self._changes.append(
                sharding.replicate(jnp.asarray(change, jnp.float32), self._mesh)
            )

    def finish(self) -> tuple[np.ndarray, dict[str, float]]:
        """The rows' change [k, D], fitted on all, and how it was chosen.

        No change, where even the best damping makes the texts held back worse.
        """
        sums = self._sums
        sums.check_finite(self._layer)
        best = int(np.argmin(self._held))
        self._changes = []
        held_weight = sums.weight - self._weight
        held_before = sums.energy - self._before
        is_better = bool(self._held[best] < held_before)
        after = (self._after[best], float(self._held[best]))
        fitted, held = after if is_better else (self._before, held_before)
        facts = {
            'damping': self._dampings[best],
            'refitted': float(is_better),
            'fit_error_before': self._before / self._weight,
            'fit_error': fitted / self._weight,
            'heldback_error_before': held_before / held_weight,
            'heldback_error': held / held_weight,
        }
        if not is_better:
            return np.zeros_like(sums.cross), facts
        return fit.solve(sums, self._dampings[best], biased=self._biased), facts
