"""The learning rate of mask learning and recovery."""

from collections.abc import Callable

import jax
import optax


def make_schedule(
    *, learning_rate: float, warmup: float, num_steps: int
) -> optax.Schedule:
    """A cosine schedule with linear warm-up (paper, A.1): learning rate by step.

    Args:
        learning_rate: the peak.
        warmup: share of the steps, rounded up to whole ones.
        num_steps: after which the rate is 0.
    """
    rising = -int(-warmup * num_steps // 1)
    return optax.join_schedules(
        [
            # Step 0 already learns: the first of n warm-up steps has 1/n of the peak.
            optax.linear_schedule(
                learning_rate / max(rising, 1), learning_rate, max(rising - 1, 1)
            ),
            optax.cosine_decay_schedule(learning_rate, max(num_steps - rising, 1)),
        ],
        [rising],
    )


def on_host(schedule: optax.Schedule, num_steps: int) -> Callable[[int], float]:
    """The same for steps 0 to `num_steps`, computed ahead.

    A schedule asked between two steps waits in the device's queue for the first. One
    by one: all at a time, XLA rounds some of the cosines to their other neighbour.
    """
    rates = jax.device_get([schedule(step) for step in range(num_steps + 1)])
    return lambda step: float(rates[step])
