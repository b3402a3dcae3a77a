"""Which examples make up a step: a pure function of seed and step."""

import numpy as np


def _epoch(seed: int, epoch: int, batch_size: int, lengths: np.ndarray) -> np.ndarray:
    """The batches of one epoch, int [steps, batch_size]."""
    rng = np.random.default_rng([seed, epoch])
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


def step_examples(
    seed: int, step: int, batch_size: int, lengths: np.ndarray
) -> np.ndarray:
    """Indices of the examples of optimizer step `step`, int [batch_size].

    Every step has exactly `batch_size` examples, one from each of as many strata
    of length, drawn anew every epoch. So all steps have about equally many tokens
    and fit one compiled shape with little padding. Resuming needs the step number
    alone, and any number of hosts computes the same order.

    Args:
        seed: of the run.
        step: counted from 0, over all epochs.
        batch_size: examples a step.
        lengths: int [n], tokens of each example.
    """
    epoch, place = divmod(step, steps_per_epoch(batch_size, len(lengths)))
    return _epoch(seed, epoch, batch_size, lengths)[place]


def all_steps(
    seed: int, num_steps: int, batch_size: int, lengths: np.ndarray
) -> list[np.ndarray]:
    """`step_examples` of steps 0 to `num_steps` - 1, each epoch drawn once."""
    size = steps_per_epoch(batch_size, len(lengths))
    batches: list[np.ndarray] = []
    for epoch in range(-(-num_steps // size)):
        batches.extend(_epoch(seed, epoch, batch_size, lengths))
    return batches[:num_steps]
