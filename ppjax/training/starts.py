"""Measuring where scores start, on a persona's calibration examples."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import processes
from ppjax.base import progress as progress_lib
from ppjax.data import chat, packing
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import measure as measure_lib
from ppjax.masking import granularity as granularity_lib
from ppjax.masking import score_init
from ppjax.models import decoder as decoder_lib
from ppjax.models import matrix as matrix_lib

# Statistics of channels and blocks settle long before this many examples.
_EXAMPLES = 128

# Run at a time, whatever a step holds: tokens that all examples share count once for
# each so many, and a mask gradient is squared over so many.
_AT_A_TIME = 8


@jax.jit
def _activation_scores(
    square_sums: jax.Array, num_tokens: jax.Array, w_down: matrix_lib.Matrix
) -> jax.Array:
    return score_init.activation_scores(square_sums, num_tokens, w_down.dense())


@dataclasses.dataclass(frozen=True)
class Starts:
    """Scores [R, U] of one persona, before `--score_scale`.

    Attributes:
        examples: that they are measured on.
        common: length of the persona's whole prefix.
        order: the examples of each batch.
        shape: of the batches.
        granularity: what has scores.
        mesh: the devices; None for one.
    """

    examples: Sequence[chat.Example]
    common: int
    order: list[np.ndarray]
    shape: packing.PackedShape
    granularity: granularity_lib.Granularity
    mesh: jax.sharding.Mesh | None

    @classmethod
    def of_personas(
        cls,
        sets: Sequence[Sequence[chat.Example]],
        *,
        seed: int,
        granularity: granularity_lib.Granularity = granularity_lib.CHANNELS,
        mesh: jax.sharding.Mesh | None = None,
    ) -> list['Starts']:
        """For several personas, in one shape.

        Args:
            sets: each persona's calibration examples, of which some are drawn.
            seed: of the draw.
            granularity: what has scores.
            mesh: the devices of the model to come; None for one.
        """
        drawn = []
        for examples in sets:
            chosen = np.random.default_rng(seed).permutation(len(examples))
            drawn.append([examples[i] for i in chosen[:_EXAMPLES]])
        common = [packing.common_prefix(examples) for examples in sets]
        batches, shape = heldout_lib.packed_batches(
            drawn, min(common), _AT_A_TIME, mesh
        )
        return [
            cls(*own, shape, granularity, mesh)
            for own in zip(drawn, common, batches, strict=True)
        ]

    def _sums(
        self,
        label: str,
        sums: Callable[[packing.PackedBatch, int], tuple[jax.Array, jax.Array]],
    ) -> tuple[jax.Array, jax.Array]:
        progress = progress_lib.Progress(label, len(self.examples))
        total: np.ndarray | float = 0.0
        count, done = 0.0, 0
        for batch in self.order:
            packed = packing.pack(self.examples, batch, self.shape)
            part, weight = sums(packed, len(batch))
            total, count = total + np.asarray(part, np.float64), count + float(weight)
            done += len(batch)
            progress.update(done)
        progress.close()
        return jnp.asarray(total, jnp.float32), jnp.float32(count)

    def activation(self, model: decoder_lib.Decoder) -> jax.Array:
        """From how much each channel adds to the residual stream, or a block turns it."""
        of_blocks = self.granularity is granularity_lib.BLOCKS
        sums = measure_lib.make_tap_sums(
            self.shape,
            score_init.cosine_sum_tap if of_blocks else score_init.square_sum_tap,
            self.mesh,
        )
        found, tokens = self._sums(
            'Block influence' if of_blocks else 'Channel activations',
            lambda packed, size: sums(model, packed, self.common, 1 / size),
        )
        if of_blocks:
            return score_init.influence_scores(found, tokens)
        # Compiled: no device need hold more than its part of the weights. From NumPy:
        # what lies on one process's device alone does not go with a mesh of several.
        w_down = model.blocks.w_down
        scores = _activation_scores(np.asarray(found), np.asarray(tokens), w_down)
        return jnp.asarray(processes.fetch(scores))

    def taylor(self, model: decoder_lib.Decoder, remat: str) -> jax.Array:
        """From the loss's gradient with respect to the mask of the dense model."""
        squares = measure_lib.make_gradient_squares(
            self.shape,
            remat,
            self.granularity,
            self.mesh,
        )
        found, _ = self._sums(
            'Mask gradients', lambda packed, size: squares(model, packed)
        )
        return score_init.taylor_scores(found)
