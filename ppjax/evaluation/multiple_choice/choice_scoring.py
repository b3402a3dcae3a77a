"""Log-likelihoods of continuations, every shared context computed once.

A tree is a context and its continuations side by side; every continuation attends to
the context and to itself, from the position where the context ends. Trees are packed
into rows behind what the contexts of a group have in common, whose keys and values
are computed once.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.data import row_calls
from ppjax.evaluation.multiple_choice import choice_tokens
from ppjax.learning import loss as loss_lib
from ppjax.models import attention, prompt_batches, shared_prefix
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.parallel import execution, sharding

# Numbers of targets in a row are rounded up to multiples of it: fewer shapes.
_TARGET_STEP = 32


class _Tree(NamedTuple):
    """A context, less the common prefix, and the choices (by number) after it."""

    context: tuple[int, ...]
    choices: list[int]


class _Batch(NamedTuple):
    """One call's rows: B rows of C tokens with at most M targets.

    Attributes:
        tokens: int32 [B, C].
        offsets: int32 [B, C], positions after the prefix.
        segments: int32 [B, C]; 1, 2, ... for contexts and continuations, 0 for
            padding.
        parents: int32 [B, C], the segment of a continuation's context; -1 for none.
        sources: int32 [B, M], the token whose prediction a target is.
        targets: int32 [B, M].
        owners: int32 [B, M], which choice a target belongs to; -1 for padding.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    segments: np.ndarray
    parents: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    owners: np.ndarray


def _trees(choices: Sequence[choice_tokens.Choice], prefix: int) -> list[_Tree]:
    """Choices with the same context in one tree, in the order they are met."""
    trees: dict[tuple[int, ...], list[int]] = {}
    for number, choice in enumerate(choices):
        trees.setdefault(choice.context, []).append(number)
    return [_Tree(context[prefix:], own) for context, own in trees.items()]


def _fed(choices: Sequence[choice_tokens.Choice], tree: _Tree) -> int:
    """Tokens that run; a continuation's last one is only predicted."""
    return len(tree.context) + sum(
        len(choices[number].continuation) - 1 for number in tree.choices
    )


def _batch(
    choices: Sequence[choice_tokens.Choice],
    trees: Sequence[_Tree],
    call: row_calls.Call,
    most_targets: int,
) -> _Batch:
    shape = (call.size, call.capacity)
    tokens, offsets, segments = (np.zeros(shape, np.int32) for _ in range(3))
    parents = np.full(shape, -1, np.int32)
    sources = np.zeros((call.size, most_targets), np.int32)
    targets, owners = np.zeros_like(sources), np.full_like(sources, -1)
    for row, items in enumerate(call.rows):
        place, segment, target = 0, 0, 0
        for tree in (trees[item] for item in items):
            own = slice(place, place + len(tree.context))
            segment += 1
            parent, last = segment, own.stop - 1
            tokens[row, own] = tree.context
            offsets[row, own] = np.arange(len(tree.context))
            segments[row, own] = parent
            place = own.stop
            for number in tree.choices:
                continuation = choices[number].continuation
                own = slice(place, place + len(continuation) - 1)
                segment += 1
                tokens[row, own] = continuation[:-1]
                offsets[row, own] = len(tree.context) + np.arange(own.stop - place)
                segments[row, own], parents[row, own] = segment, parent
                predicted = slice(target, target + len(continuation))
                sources[row, predicted] = [last, *range(own.start, own.stop)]
                targets[row, predicted] = continuation
                owners[row, predicted] = number
                place, target = own.stop, predicted.stop
    return _Batch(tokens, offsets, segments, parents, sources, targets, owners)


def _targets(choices: Sequence[choice_tokens.Choice], row: list[_Tree]) -> int:
    return sum(len(choices[n].continuation) for tree in row for n in tree.choices)


@jax.jit
def _log_probabilities(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prefix: shared_prefix.SharedPrefix,
    batch: _Batch,
) -> jax.Array:
    """log p of every target, float32 [B, M]."""
    segments, parents = jnp.asarray(batch.segments), jnp.asarray(batch.parents)
    sees = segments[:, :, None] == segments[:, None, :]
    sees |= parents[:, :, None] == segments[:, None, :]
    length = segments.shape[1]
    sees &= jnp.tril(jnp.ones((1, length, length), bool))
    hidden, _, _ = model(
        jnp.asarray(batch.tokens),
        prefix.length + batch.offsets,
        masks,
        attention.Branched(prefix.length, sees),
        cache=prefix.cache,
    )
    states = jnp.take_along_axis(hidden, batch.sources[:, :, None], axis=1)
    flat = states.reshape(-1, states.shape[-1])
    targets = jnp.asarray(batch.targets).reshape(-1)
    nll = loss_lib.token_losses(model, flat, targets, None, objective='ce')
    return execution.whole(-nll.reshape(batch.targets.shape))


def log_likelihoods(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    choices: Sequence[choice_tokens.Choice],
    *,
    batch_tokens: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sums of log p over the tokens of each continuation, given its context.

    Give choices whose contexts begin alike in one call, as those of one subject
    with its worked examples: that beginning is run once.

    Args:
        model: the decoder; rows are spread over all devices.
        masks: what of it is masked.
        choices: contexts and continuations.
        batch_tokens: about how many tokens are run at a time.

    Yields:
        (choices [n], their log-likelihoods [n] float64 in nats), each choice once.
    """
    on = prompt_batches.behind(model, masks, [choice.context for choice in choices])
    trees = _trees(choices, on.shared)
    calls = row_calls.plan(
        [_fed(choices, tree) for tree in trees],
        batch_tokens=batch_tokens,
        row_multiple=sharding.row_shards(on.mesh),
    )
    most: dict[int, int] = {}  # By capacity, so that calls of one have one shape.
    for call in calls:
        needed = max(_targets(choices, [trees[i] for i in row]) for row in call.rows)
        needed = -(-needed // _TARGET_STEP) * _TARGET_STEP
        most[call.capacity] = max(most.get(call.capacity, 0), needed)
    for call in calls:
        batch = _batch(choices, trees, call, most[call.capacity])
        rows = sharding.shard_rows(batch, on.mesh)
        found = execution.call(
            on.mesh, _log_probabilities, on.model, on.masks, on.prefix, rows
        )
        values = np.asarray(found, np.float64)
        real = batch.owners >= 0
        owners, where = np.unique(batch.owners[real], return_inverse=True)
        yield owners, np.bincount(where, weights=values[real])
