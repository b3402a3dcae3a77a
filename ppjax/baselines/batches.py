"""Texts in plain padded batches: statistics of rivals are taken sequence by sequence."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from ppjax.data import chat, packing

# Lengths are multiples of it, as chunks of packed rows are.
_STEP = 32


@dataclasses.dataclass(frozen=True)
class Batches:
    """All sequences, each a row of its own.

    Attributes:
        rows: the batches, each without an axis of micro-batches; the last is filled up
            with rows of padding.
        shape: of each.
        targets: tokens that the loss is over, in all batches together.
    """

    rows: list[packing.PackedBatch]
    shape: packing.PackedShape
    targets: int

    @property
    def sequences(self) -> int:
        """How many there are."""
        return sum(int((batch.segments[:, 0] > 0).sum()) for batch in self.rows)


def padded(examples: Sequence[chat.Example], batch_size: int) -> Batches:
    """Examples in their order, `batch_size` a batch, each from its row's start.

    Args:
        examples: one or more.
        batch_size: rows of a batch.
    """
    longest = max(len(example.tokens) for example in examples)
    length = -(-longest // _STEP) * _STEP
    answers = max(example.num_answer_tokens for example in examples)
    size = min(batch_size, len(examples))
    shape = packing.PackedShape(0, length, 1, answers, size, 1)
    batches = [
        _batch(examples[start : start + size], shape)
        for start in range(0, len(examples), size)
    ]
    return Batches(batches, shape, sum(x.num_answer_tokens for x in examples))


def _batch(
    examples: Sequence[chat.Example], shape: packing.PackedShape
) -> packing.PackedBatch:
    tokens = np.zeros((shape.rows, shape.chunk), np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    sources = np.zeros((shape.rows, shape.answers), np.int32)
    targets, owners = np.zeros_like(sources), np.zeros_like(sources)
    weights = np.zeros(sources.shape, np.float32)
    for row, example in enumerate(examples):
        length, count = len(example.tokens), example.num_answer_tokens
        tokens[row, :length] = example.tokens
        segments[row, :length] = 1
        positions[row, :length] = np.arange(length)
        sources[row, :count] = example.answer_start - 1 + np.arange(count)
        targets[row, :count] = example.tokens[example.answer_start :]
        weights[row, :count] = 1
        owners[row] = row
    return packing.PackedBatch(
        tokens, positions, segments, sources, targets, weights, owners
    )
