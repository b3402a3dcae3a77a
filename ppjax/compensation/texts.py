"""The texts that layers are fitted on, packed, and which of them are held back.

What counts how much is decided here: every token of an example once, and what examples
share once a batch, as it is run (`learning.measure.token_weights`).
"""

import dataclasses

import jax
import numpy as np

from ppjax.base import errors
from ppjax.data import packing
from ppjax.learning import data as data_lib
from ppjax.learning import heldout


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples that are run together.

    Attributes:
        rows: on the host, [B, ...].
        shared: how many first tokens they share, and what each of these counts in
            each example that does not hold them in the prefix.
        is_held: whether it is held back to choose the damping on.
    """

    rows: packing.PackedBatch
    shared: tuple[int, float]
    is_held: bool


@dataclasses.dataclass(frozen=True)
class Texts:
    """All of them.

    Attributes:
        batches: those that are held back come last.
        shape: of every batch.
        examples: how many they hold, and how many of these are held back.
    """

    batches: list[Batch]
    shape: packing.PackedShape
    examples: tuple[int, int]

    @property
    def tokens(self) -> int:
        """That are run in every layer, padding included."""
        return len(self.batches) * self.shape.rows * self.shape.tokens_per_row


def hold_back(count: int, share: float, seed: int) -> np.ndarray:
    """Which of some examples are held back, bool [count]: one at least, and not all.

    Raises:
        InputError: if there are fewer than two.
    """
    if count < 2:
        raise errors.InputError(
            'One example is too few: some are held back to choose --damping on; give '
            'more with --calibration.'
        )
    size = min(max(1, round(share * count)), count - 1)
    held = np.zeros(count, bool)
    held[np.random.default_rng(seed).permutation(count)[:size]] = True
    return held


def pack(
    data: data_lib.Data,
    *,
    batch_size: int,
    share: float,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> Texts:
    """Packs the calibration examples, those of one prompt together.

    Args:
        data: of the run.
        batch_size: examples at a time.
        share: of them that is held back.
        seed: which these are.
        mesh: the devices.

    Raises:
        InputError: see `hold_back`.
    """
    held = hold_back(len(data.train), share, seed)
    parts = [
        (group.prefix, is_held, [data.train[i] for i in own])
        for is_held in (False, True)
        for group in data.prompt_groups(batch_size)
        if len(own := group.examples[held[group.examples] == is_held])
    ]
    orders, shape = heldout.packed_batches(
        [examples for _, _, examples in parts],
        min(prefix for prefix, _, _ in parts),
        batch_size,
        mesh,
    )
    batches = [
        Batch(
            packing.pack(examples, order, shape).first(),
            (prefix, 1 / len(order)),
            is_held,
        )
        for (prefix, is_held, examples), own in zip(parts, orders, strict=True)
        for order in own
    ]
    return Texts(batches, shape, (len(held), int(held.sum())))
