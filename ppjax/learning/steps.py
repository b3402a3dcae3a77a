"""The loop of optimizer steps, which mask learning and recovery share."""

from typing import Any, Protocol, TypeVar

import jax

from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.parallel import preemption

State = TypeVar('State')


class Learner(Protocol[State]):
    """What is done at each step, and what is said of it. Steps count from 1.

    Steps are taken and reported under a guard: what goes from host to device goes
    by `jax.device_put` or `sharding.spread`.
    """

    def take(self, state: State, step: int) -> tuple[State, Any]:
        """Starts a step; its metrics may still be on the device."""

    def report(self, step: int, metrics: Any) -> None:
        """Waits for a step, checks that its figures are finite, and logs them."""

    def measures(self, step: int) -> bool:
        """Whether held-out examples are to be measured after a step."""

    def measure(self, step: int, state: State) -> None:
        """Measures and logs them, unless the log has that figure already."""

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""


def run_steps(
    learner: Learner[State],
    state: State,
    *,
    first: int,
    last: int,
    checkpoints: checkpoints_lib.Checkpoints,
    reuses_state: bool,
) -> tuple[State, int]:
    """Takes the steps after `first` up to `last`, or to a notice of preemption.

    Metrics are fetched one step late, so that the host packs the next batch while the
    device works. A checkpoint is saved only of a state known to be finite. What was to
    be measured after step `first`, before the run was interrupted, is measured now.

    Args:
        learner: what a step is.
        state: after step `first`.
        first: steps done.
        last: the step to end with.
        checkpoints: of the run.
        reuses_state: whether a step overwrites the state it is given, so that this
            must be saved before.

    Returns:
        (state, steps done).

    Raises:
        InputError: for a loss that is not finite, or a full disk.
    """
    # A host's value that slipped in would be sent at every step, and may wait for it.
    explicit = jax.transfer_guard('disallow')
    take, report = explicit(learner.take), explicit(learner.report)
    if first and learner.measures(first):
        learner.measure(first, state)
    done, pending = first, None
    with preemption.noticed() as notice:
        while done < last:
            state, metrics = take(state, done + 1)
            if pending is not None:
                report(*pending)
            done += 1
            pending = done, metrics
            if notice.given(done):
                last = done
            saves = learner.saves_after(done) or done == last
            if saves or learner.measures(done):
                report(*pending)
                pending = None
            if saves:
                checkpoints.save(done, state)
                if reuses_state:
                    checkpoints.wait()
            if learner.measures(done):
                learner.measure(done, state)
        if pending is not None:
            report(*pending)
        checkpoints.wait()
    return state, done
