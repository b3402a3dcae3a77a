"""Which examples make up a step: a pure function of seed and step."""

from collections.abc import Sequence

import numpy as np

from ppjax.base import errors

# All steps are drawn before the first, to find the one shape that fits them.
_MOST_STEPS = 100_000
STEPS = f'[1, {_MOST_STEPS}]'
STEPS_OR_NONE = f'[0, {_MOST_STEPS}]'
BATCH_SIZES = '[1, 65536]'

# A batch may hold some examples twice, but not a few of them thousands of times.
_REPEATED = 1024


def _epoch(
    rng: np.random.Generator, batch_size: int, lengths: np.ndarray
) -> np.ndarray:
    """The batches of one epoch, int [steps, batch_size]."""
    order = rng.permutation(len(lengths))
    steps = len(order) // batch_size
    if not steps:  # Fewer examples than a batch holds: some come twice.
        return np.resize(order, (1, batch_size))
    # A random few, fewer than a batch, sit this epoch out.
    order = order[: steps * batch_size]
    order = order[np.argsort(lengths[order], kind='stable')]
    strata = order.reshape(batch_size, steps)
    return rng.permuted(strata, axis=1).T


def steps_per_epoch(batch_size: int, num_examples: int) -> int:
    """Optimizer steps in one pass over the data, at least 1."""
    return max(1, num_examples // batch_size)


def num_steps(
    *, steps: int | None, epochs: float, batch_size: int, groups: Sequence[int]
) -> int:
    """Optimizer steps of a run.

    Args:
        steps: as given, or None for whole epochs.
        epochs: passes over the data, otherwise.
        batch_size: examples a step.
        groups: how many examples each group has that batches are drawn from.

    Raises:
        InputError: if there are too many to draw, or a batch is far larger than the
            data.
    """
    examples = sum(groups)
    if batch_size > max(_REPEATED, examples):
        raise errors.InputError(
            f'--batch_size={batch_size} is more than the {examples} calibration '
            'examples; lower it.'
        )
    epoch = sum(steps_per_epoch(batch_size, size) for size in groups)
    total = max(1, round(epochs * epoch)) if steps is None else steps
    if total > _MOST_STEPS:
        raise errors.InputError(
            f'--epochs={epochs:g} makes {total} optimizer steps, more than '
            f'{_MOST_STEPS}; lower it or raise --batch_size.'
        )
    return total


def all_steps(
    seed: int, num_steps: int, batch_size: int, lengths: np.ndarray
) -> list[np.ndarray]:
    """Indices of the examples of each optimizer step, int [batch_size].

    Every step has exactly `batch_size` examples, one from each of as many strata
    of length, drawn anew every epoch. So all steps have about equally many tokens
    and fit one compiled shape with little padding. Resuming needs the step number
    alone, and any number of hosts computes the same order.

    Args:
        seed: of the run.
        num_steps: steps to draw, counted over all epochs.
        batch_size: examples a step.
        lengths: int [n], tokens of each example.
    """
    batches: list[np.ndarray] = []
    epochs = -(-num_steps // steps_per_epoch(batch_size, len(lengths)))
    for epoch in range(epochs):
        batches.extend(
            _epoch(np.random.default_rng([seed, epoch]), batch_size, lengths)
        )
    return batches[:num_steps]


def shortened_steps(seed: int, num_steps: int, share: float) -> np.ndarray:
    """Which steps are without the persona prompt, bool [num_steps].

    They are spread evenly, from a place that the seed draws: of any n steps in a row
    share * n are, up to one, whatever the number of all.
    """
    start = np.random.default_rng(seed).random()
    return np.diff(np.floor(start + share * np.arange(num_steps + 1))) > 0


def grouped_steps(
    seed: int,
    num_steps: int,
    batch_size: int,
    lengths: np.ndarray,
    groups: Sequence[np.ndarray],
) -> list[tuple[int, np.ndarray]]:
    """Steps that each draw from one group of examples.

    An epoch is an epoch of every group, its steps in random order; with one group it
    is that of `all_steps`.

    Args:
        seed: of the run.
        num_steps: steps to draw.
        batch_size: examples a step.
        lengths: int [n], tokens of each example.
        groups: the examples of each, int [n_g].

    Returns:
        (group, its examples [batch_size]) of every step.
    """
    if len(groups) == 1:
        return [
            (0, groups[0][batch])
            for batch in all_steps(seed, num_steps, batch_size, lengths[groups[0]])
        ]
    steps: list[tuple[int, np.ndarray]] = []
    for epoch in range(num_steps):  # An epoch has a step at least.
        rng = np.random.default_rng([seed, epoch])
        drawn = [
            (number, group[batch])
            for number, group in enumerate(groups)
            for batch in _epoch(rng, batch_size, lengths[group])
        ]
        steps.extend(drawn[place] for place in rng.permutation(len(drawn)))
        if len(steps) >= num_steps:
            break
    return steps[:num_steps]
