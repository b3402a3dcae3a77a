"""Shared-prefix packing: rows `[prefix][chunk 1]...[chunk G]`.

All examples of one persona start with the same tokens. A row holds them once;
each of its chunks of C tokens holds the rest of one or more whole examples
(`models.attention.Packed` says who attends to whom). The loss and its gradient
equal those of the padded batch, at a fraction of its tokens.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from ppjax.data import chat

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
    answer tokens a row.

    Attributes:
        tokens: int32 [A, B, T].
        positions: int32 [A, B, T]; every example continues from the prefix.
        segments: int32 [A, B, T - P]; 1, 2, ... for examples, 0 for padding.
        sources: int32 [A, B, M], where in the row an answer token is predicted.
        targets: int32 [A, B, M], the answer tokens.
        weights: float32 [A, B, M], 1 for an answer token, 0 for padding.
        owners: int32 [A, B, M], which of the step's examples it belongs to.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    owners: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """The one shape that all batches of a run have.

    Attributes:
        prefix: token ids that every example starts with, [P].
        chunk: C.
        chunks: G, chunks a row.
        answers: M, answer tokens a row.
        rows: B.
        micro_batches: A.
    """

    prefix: tuple[int, ...]
    chunk: int
    chunks: int
    answers: int
    rows: int
    micro_batches: int

    @property
    def tokens_per_row(self) -> int:
        """T."""
        return len(self.prefix) + self.chunk * self.chunks


def common_prefix(examples: Sequence[chat.Example]) -> tuple[int, ...]:
    """The longest token prefix that all examples share.

    It stops short of the token that predicts any example's first answer token, so
    that all predictions are made outside the prefix.
    """
    first = examples[0].tokens
    length = min(example.answer_start - 1 for example in examples)
    for example in examples:
        length = min(length, len(example.tokens))
        differs = np.nonzero(example.tokens[:length] != first[:length])[0]
        if len(differs):
            length = int(differs[0])
    return tuple(int(token) for token in first[: max(length, 0)])


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


def plan_layout(
    examples: Sequence[chat.Example],
    batches: Sequence[np.ndarray],
    *,
    prefix: tuple[int, ...],
    rows: int = 1,
    micro_batches: int = 1,
) -> Layout:
    """Chooses the shape that all batches fit in at the least cost.

    Args:
        examples: all examples.
        batches: the indices of each batch that will be packed.
        prefix: from `common_prefix`; () packs without sharing.
        rows: B, rows a micro-batch (data parallel shards).
        micro_batches: A, over which gradients are accumulated.
    """
    shared = len(prefix)
    lengths = [len(example.tokens) - shared for example in examples]
    answers = [example.num_answer_tokens for example in examples]
    longest = max(lengths[item] for batch in batches for item in batch)
    shortest_chunk = -(-longest // _CHUNK_STEP) * _CHUNK_STEP
    bins = rows * micro_batches

    def layout(chunk: int, batches: Sequence[np.ndarray]) -> Layout:
        packed = [
            assign_chunks([lengths[item] for item in batch], chunk) for batch in batches
        ]
        chunks = -(-max(len(groups) for groups in packed) // bins)
        most = 0
        for batch, groups in zip(batches, packed, strict=True):
            sizes = [answers[item] for item in batch]
            for row in _share_out(groups, sizes, bins, chunks):
                most = max(most, sum(sizes[item] for group in row for item in group))
        return Layout(prefix, chunk, chunks, most, rows, micro_batches)

    def cost(candidate: Layout) -> float:
        keys = shared + candidate.chunk
        own = candidate.chunk * candidate.chunks * (1 + _KEY_COST * keys)
        return own + shared * (1 + _KEY_COST * shared)

    # Longer chunks fill better but attend to more; beyond a few times the longest
    # example nothing is left to gain.
    sizes = range(shortest_chunk, 4 * shortest_chunk + 1, _CHUNK_STEP)
    sample = batches[:: -(-len(batches) // _PLANNED_BATCHES)]
    best = min((layout(size, sample) for size in sizes), key=cost)
    return layout(best.chunk, batches)


def plan_layouts(
    sets: Sequence[tuple[Sequence[chat.Example], Sequence[np.ndarray]]],
    prefixes: Sequence[tuple[int, ...]],
    *,
    rows: int = 1,
    micro_batches: int = 1,
) -> list[Layout]:
    """Layouts of one shape for several personas' batches.

    The prefixes are cut to the length of the shortest: what is cut off another
    persona's belongs to each of its examples, which changes no value.

    Args:
        sets: (examples, batches) of each persona, as for `plan_layout`.
        prefixes: of each persona.
        rows: see `plan_layout`.
        micro_batches: see `plan_layout`.
    """
    shared = min(len(prefix) for prefix in prefixes)
    together: list[chat.Example] = []
    batches: list[np.ndarray] = []
    for examples, own in sets:
        batches.extend(np.asarray(batch) + len(together) for batch in own)
        together.extend(examples)
    layout = plan_layout(
        together,
        batches,
        prefix=prefixes[0][:shared],
        rows=rows,
        micro_batches=micro_batches,
    )
    return [dataclasses.replace(layout, prefix=prefix[:shared]) for prefix in prefixes]


def pack(
    examples: Sequence[chat.Example], batch: Sequence[int] | np.ndarray, layout: Layout
) -> PackedBatch:
    """Packs the examples of one batch into the run's shape.

    Args:
        examples: all examples.
        batch: indices of this batch's examples; `owners` counts along it.
        layout: from `plan_layout`.

    Raises:
        ValueError: if the batch does not fit the layout.
    """
    shared = len(layout.prefix)
    lengths = [len(examples[item].tokens) - shared for item in batch]
    answers = [examples[item].num_answer_tokens for item in batch]
    if max(lengths) > layout.chunk:
        raise ValueError(f'{max(lengths)} tokens exceed the chunk {layout.chunk}.')
    groups = assign_chunks(lengths, layout.chunk)
    bins = layout.rows * layout.micro_batches
    if len(groups) > bins * layout.chunks:
        raise ValueError(
            f'{len(groups)} chunks are needed, the layout has {bins * layout.chunks}.'
        )

    tokens = np.zeros((bins, layout.tokens_per_row), np.int32)
    tokens[:, :shared] = layout.prefix
    positions = np.zeros_like(tokens)
    positions[:, :shared] = np.arange(shared)
    segments = np.zeros((bins, layout.chunk * layout.chunks), np.int32)
    sources = np.zeros((bins, layout.answers), np.int32)
    targets = np.zeros_like(sources)
    owners = np.zeros_like(sources)
    weights = np.zeros(sources.shape, np.float32)

    for row, row_groups in enumerate(_share_out(groups, answers, bins, layout.chunks)):
        answered = 0
        segment = 0
        for slot, group in enumerate(row_groups):
            start = shared + slot * layout.chunk
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
                weights[row, taken] = 1
                owners[row, taken] = item
                start = own.stop
                answered = taken.stop

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape((layout.micro_batches, layout.rows, *x.shape[1:]))

    return PackedBatch(
        *map(split, (tokens, positions, segments, sources, targets, weights, owners))
    )
