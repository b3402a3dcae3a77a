"""Shared-prefix packing: rows `[prefix][chunk 1]...[chunk G]`.

All examples of one persona start with the same tokens. A row holds them once;
each of its chunks of C tokens holds the rest of one or more whole examples
(`models.attention.Packed` says who attends to whom). The loss and its gradient
equal those of the padded batch, at a fraction of its tokens.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import chex
import numpy as np

from ppjax.data import chat
from ppjax.models import attention, fused_attention, shared_prefix

# Chunk lengths are multiples of this: fewer shapes, and sizes that kernels like.
_CHUNK_STEP = 32

# Attending to one more key costs a token about 1/1000 of the rest of its work
# (widths of 576 to 5120 give 1/600 to 1/3000); it only ranks chunk lengths.
_KEY_COST = 1e-3


# Batches that chunk lengths are compared on; the shape then fits all of them.
_PLANNED_BATCHES = 200


class PackedBatch(NamedTuple):
    """Examples of one optimizer step, or of one measurement, as arrays.

    Axes: A micro-batches run one after another, B rows, T = P + G*C tokens, M
    answer tokens a row. A micro-batch alone is the same without [A].

    Attributes:
        tokens: int32 [A, B, T].
        positions: int32 [A, B, T]; every example continues from the prefix.
        segments: int32 [A, B, T - P]; 1, 2, ... for examples, 0 for padding.
        sources: int32 [A, B, M], where in the row an answer token is predicted.
        targets: int32 [A, B, M], the answer tokens.
        weights: float32 [A, B, M], 1 for an answer token, -1 for one that is to be
            made unlikely, 0 for padding.
        owners: int32 [A, B, M], which of the step's examples it belongs to.
    """

    tokens: Any
    positions: Any
    segments: Any
    sources: Any
    targets: Any
    weights: Any
    owners: Any

    def first(self) -> 'PackedBatch':
        """Its first micro-batch."""
        return PackedBatch(*(x[0] for x in self))


@dataclasses.dataclass(frozen=True)
class PackedShape:
    """The one shape that all batches of a run have; static where they are compiled for.

    Attributes:
        prefix: P, first tokens of every example that a row holds once.
        chunk: C.
        chunks: G, chunks a row.
        answers: M, answer tokens a row.
        rows: B.
        micro_batches: A.
    """

    prefix: int
    chunk: int
    chunks: int
    answers: int
    rows: int
    micro_batches: int

    @property
    def tokens_per_row(self) -> int:
        """T."""
        return self.prefix + self.chunk * self.chunks

    def attend(self, segments: Any) -> attention.Packed:
        """The attention pattern of rows with these segments [B, T - P]."""
        return attention.Packed(
            self.prefix, self.chunk, segments, fused=fused_attention.wanted()
        )

    def check(self, rows: PackedBatch) -> None:
        """Refuses a micro-batch of another shape.

        Raises:
            AssertionError: naming the shape got and the one wanted.
        """
        length = self.tokens_per_row
        chex.assert_shape(rows[:2], (self.rows, length))
        chex.assert_shape(rows.segments, (self.rows, length - self.prefix))
        chex.assert_shape(rows[3:], (self.rows, self.answers))


def common_prefix(examples: Sequence[chat.Example]) -> int:
    """How many first tokens all examples share.

    Short of the token that predicts any example's first answer token, so that all
    predictions are made outside the prefix.
    """
    return shared_prefix.shared_length(
        [example.tokens[: example.answer_start] for example in examples]
    )


def assign_chunks(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing.

    Args:
        lengths: of the items, each at most `capacity`.
        capacity: of a chunk.

    Returns:
        The items of each chunk.
    """
    chunks: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [c for c in range(len(chunks)) if room[c] >= lengths[item]]
        if fitting:
            best = min(fitting, key=lambda c: room[c])
        else:
            best = len(chunks)
            chunks.append([])
            room.append(capacity)
        chunks[best].append(item)
        room[best] -= lengths[item]
    return chunks


def _share_out(
    groups: list[list[int]], answers: Sequence[int], bins: int, slots: int
) -> list[list[list[int]]]:
    """Spreads chunks over rows so that rows have about equally many answers."""
    rows: list[list[list[int]]] = [[] for _ in range(bins)]
    load = [0] * bins
    size = [sum(answers[item] for item in group) for group in groups]
    for group in sorted(range(len(groups)), key=lambda g: (-size[g], g)):
        open_rows = [r for r in range(bins) if len(rows[r]) < slots]
        row = min(open_rows, key=lambda r: load[r])
        rows[row].append(groups[group])
        load[row] += size[group]
    return rows


def plan_shape(
    examples: Sequence[chat.Example],
    batches: Sequence[np.ndarray],
    *,
    prefix: int,
    rows: int = 1,
    micro_batches: int = 1,
) -> PackedShape:
    """Chooses the shape that all batches fit in at the least cost.

    Args:
        examples: all examples.
        batches: the indices of each batch that will be packed.
        prefix: at most `common_prefix`; 0 packs without sharing.
        rows: B, rows a micro-batch (data parallel shards).
        micro_batches: A, over which gradients are accumulated.
    """
    lengths = [len(example.tokens) - prefix for example in examples]
    answers = [example.num_answer_tokens for example in examples]
    longest = max(lengths[item] for batch in batches for item in batch)
    shortest_chunk = -(-longest // _CHUNK_STEP) * _CHUNK_STEP
    bins = rows * micro_batches

    def shape(chunk: int, batches: Sequence[np.ndarray]) -> PackedShape:
        packed = [
            assign_chunks([lengths[item] for item in batch], chunk) for batch in batches
        ]
        chunks = -(-max(len(groups) for groups in packed) // bins)
        most = 0
        for batch, groups in zip(batches, packed, strict=True):
            sizes = [answers[item] for item in batch]
            for row in _share_out(groups, sizes, bins, chunks):
                most = max(most, sum(sizes[item] for group in row for item in group))
        return PackedShape(prefix, chunk, chunks, most, rows, micro_batches)

    def cost(candidate: PackedShape) -> float:
        keys = prefix + candidate.chunk
        own = candidate.chunk * candidate.chunks * (1 + _KEY_COST * keys)
        return own + prefix * (1 + _KEY_COST * prefix)

    # Longer chunks fill better but attend to more; beyond a few times the longest
    # example nothing is left to gain.
    sizes = range(shortest_chunk, 4 * shortest_chunk + 1, _CHUNK_STEP)
    sample = batches[:: -(-len(batches) // _PLANNED_BATCHES)]
    best = min((shape(size, sample) for size in sizes), key=cost)
    return shape(best.chunk, batches)


def plan_common_shape(
    sets: Sequence[tuple[Sequence[chat.Example], Sequence[np.ndarray]]],
    **options: int,
) -> PackedShape:
    """One shape for several personas' batches.

    Its prefix is at most the shortest of theirs: what is cut off another persona's
    belongs to each of its examples, which changes no value.

    Args:
        sets: (examples, batches) of each persona, as for `plan_shape`.
        **options: of `plan_shape`.
    """
    together: list[chat.Example] = []
    batches: list[np.ndarray] = []
    for examples, own in sets:
        batches.extend(np.asarray(batch) + len(together) for batch in own)
        together.extend(examples)
    return plan_shape(together, batches, **options)


def pack(
    examples: Sequence[chat.Example],
    batch: Sequence[int] | np.ndarray,
    shape: PackedShape,
) -> PackedBatch:
    """Packs the examples of one batch into the run's shape.

    Args:
        examples: all examples.
        batch: indices of this batch's examples; `owners` counts along it.
        shape: from `plan_shape`.

    Raises:
        ValueError: if the batch does not fit the shape.
    """
    shared = shape.prefix
    lengths = [len(examples[item].tokens) - shared for item in batch]
    answers = [examples[item].num_answer_tokens for item in batch]
    if max(lengths) > shape.chunk:
        raise ValueError(f'{max(lengths)} tokens exceed the chunk {shape.chunk}.')
    groups = assign_chunks(lengths, shape.chunk)
    bins = shape.rows * shape.micro_batches
    if len(groups) > bins * shape.chunks:
        raise ValueError(
            f'{len(groups)} chunks are needed, the shape has {bins * shape.chunks}.'
        )

    tokens = np.zeros((bins, shape.tokens_per_row), np.int32)
    tokens[:, :shared] = examples[batch[0]].tokens[:shared]
    positions = np.zeros_like(tokens)
    positions[:, :shared] = np.arange(shared)
    segments = np.zeros((bins, shape.chunk * shape.chunks), np.int32)
    sources = np.zeros((bins, shape.answers), np.int32)
    targets = np.zeros_like(sources)
    owners = np.zeros_like(sources)
    weights = np.zeros(sources.shape, np.float32)

    for row, row_groups in enumerate(_share_out(groups, answers, bins, shape.chunks)):
        answered = 0
        segment = 0
        for slot, group in enumerate(row_groups):
            start = shared + slot * shape.chunk
            for item in group:
                segment += 1
                example = examples[batch[item]]
                own = slice(start, start + lengths[item])
                tokens[row, own] = example.tokens[shared:]
                positions[row, own] = np.arange(shared, len(example.tokens))
                segments[row, own.start - shared : own.stop - shared] = segment
                taken = slice(answered, answered + answers[item])
                targets[row, taken] = example.tokens[example.answer_start :]
                first_source = start + example.answer_start - shared - 1
                sources[row, taken] = first_source + np.arange(answers[item])
                unlikely = example.unlikely
                weights[row, taken] = 1 if unlikely is None else -1.0 * unlikely
                owners[row, taken] = item
                start = own.stop
                answered = taken.stop

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape((shape.micro_batches, shape.rows, *x.shape[1:]))

    return PackedBatch(
        *map(split, (tokens, positions, segments, sources, targets, weights, owners))
    )
