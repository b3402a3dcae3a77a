"""The loop of optimizer steps, which mask learning and recovery share."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import time
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from ppjax.base import progress as progress_lib
from ppjax.base import run_directory
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.learning import run as run_lib
from ppjax.parallel import preemption

State = TypeVar('State')

# Of a step's figures, those that are shown as it runs.
_SHOWN = {
    'loss': 'loss {:.3f}',
    'grad_norm': 'gradient {:.2g}',
    'flip_fraction': 'flips {:.2%}',
    'unlikelihood': 'repeats {:.3f}',
}


@dataclasses.dataclass
class Learner(Generic[State]):
    """The steps of a run, or of several side by side, and what is said of them.

    They count from 1, each run's own as well. Steps are taken and reported under a
    guard: what goes from host to device goes by `jax.device_put` or
    `sharding.spread`.

    Attributes:
        stage: name of the steps in the logs.
        label: the same for people.
        runs: with the same settings but for their data.
        heldouts: what each is measured on.
        directory: which is told how far all are; a single run's own.
        turns: the runs that take each step, by their number, and how many steps of
            its own each has taken before.
        first: steps done.
        last: the step to end with.
        take: (state, step) -> (state, a named tuple of figures, which may still be on
            the device). Starts a step. Figures are those of each run that takes it,
            [N], N = 1 or more, or scalars of the only one.
        likelihood: (number of a run, state) -> held-out likelihood of what it has
            learned.
        reuses_state: whether a step overwrites the state it is given, so that this
            must be saved before.
    """

    stage: str
    label: str
    runs: Sequence[run_lib.Run]
    heldouts: Sequence[heldout_lib.HeldOut | None]
    directory: run_directory.RunDirectory
    turns: Sequence[Mapping[int, int]]
    first: int
    take: Callable[[State, int], tuple[State, Any]]
    likelihood: Callable[[int, State], heldout_lib.Likelihood]
    reuses_state: bool

    def __post_init__(self) -> None:
        self.last = min(len(self.turns), self.runs[0].cfg.stop_after or len(self.turns))
        # Now, and not between two steps.
        self._rates = [run.rate for run in self.runs]
        taken = Counter(number for turn in self.turns[: self.first] for number in turn)
        self._logs = [
            metrics_lib.MetricsLog(
                run.directory.path,
                resume_step=taken[number],
                stages=(self.stage, 'heldout'),
            )
            for number, run in enumerate(self.runs)
        ]
        self._progress = progress_lib.Progress(
            self.label, self.last, initial=self.first
        )
        if self.first < self.last:
            progress_lib.say('Compiling the step; the first one takes longest.')
        self._began = time.monotonic()
        self._held_note = ''
        # Run -> held-out likelihood after its last step.
        self._learned: dict[int, heldout_lib.Likelihood] = {}

    def learned(self, number: int, state: State) -> heldout_lib.Likelihood:
        """Held-out likelihood of what a run has learned in the end."""
        # One killed between its last step and here has not measured yet.
        return self._learned.get(number) or self.likelihood(number, state)

    def learn(
        self, state: State, checkpoints: checkpoints_lib.Checkpoints
    ) -> State | None:
        """Takes the steps that are left; see `run_steps`.

        Returns:
            The state after the last step; None if `--stop_after` or a SIGTERM came
            first.
        """
        with contextlib.closing(self):
            state, done = run_steps(self, state, checkpoints)
        if done < len(self.turns):
            self.directory.paused(done, len(self.turns))
            return None
        return state

    def report(self, step: int, metrics: Any) -> None:
        """Waits for a step, checks that its figures are finite, and logs them."""
        turn = self.turns[step - 1]
        figures = {
            name: np.atleast_1d(x)[: len(turn)]
            for name, x in jax.device_get(metrics)._asdict().items()
        }
        spent, self._began = time.monotonic() - self._began, time.monotonic()
        count = 0
        for slot, (number, taken) in enumerate(turn.items()):
            run = self.runs[number]
            own = {name: float(x[slot]) for name, x in figures.items()}
            examples = run.examples(taken + 1)
            metrics_lib.check_finite(
                own['loss'],
                own['grad_norm'],
                taken + 1,
                [example.query_id for example in examples],
                score_norm=own.pop('score_norm', 0.0),
            )
            tokens = sum(example.num_answer_tokens for example in examples)
            if (taken + 1) % run.cfg.log_every == 0 or taken + 1 == run.total:
                self._logs[number].write(
                    self.stage,
                    taken + 1,
                    **own,
                    learning_rate=self._rates[number](taken),
                    examples_per_s=len(examples) / spent,
                    answer_tokens_per_s=tokens / spent,
                )
            count += len(examples)
        shown = [
            text.format(np.mean(figures[name]))
            for name, text in _SHOWN.items()
            if name in figures
        ]
        self._progress.update(
            step, f'{" ".join(shown)} {count / spent:.2f} ex/s{self._held_note}'
        )
        self.directory.status(step=step, total_steps=len(self.turns))

    def _due(self, step: int) -> Iterator[tuple[int, int]]:
        """The runs that are measured after a step, and their own steps by then."""
        for number, taken in self.turns[step - 1].items():
            run = self.runs[number]
            due = (taken + 1) % run.heldout_every == 0 or taken + 1 == run.total
            if due and self.heldouts[number] is not None:
                yield number, taken + 1

    def measures(self, step: int) -> bool:
        """Whether held-out examples are to be measured after a step."""
        return any(self._due(step))

    def measure(self, step: int, state: State) -> None:
        """Measures and logs them, unless the logs have those figures already."""
        for number, own in self._due(step):
            log, run = self._logs[number], self.runs[number]
            if log.has('heldout', own):
                continue
            found = self.likelihood(number, state)
            log.write('heldout', own, heldout_nll=found.mean)
            if own == run.total:
                self._learned[number] = found
            note = f' held-out {run.name} {found.mean:.4f}'
            self._held_note = note.replace('  ', ' ')
        self._began = time.monotonic()

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return step % self.runs[0].cfg.checkpoint_every == 0

    def close(self) -> None:
        """Ends the progress bar and closes the logs."""
        self._progress.close()
        for log in self._logs:
            log.close()


def run_steps(
    learner: Learner[State], state: State, checkpoints: checkpoints_lib.Checkpoints
) -> tuple[State, int]:
    """Takes the steps after `first` up to `last`, or to a notice of preemption.

    Metrics are fetched one step late, so that the host packs the next batch while the
    device works. A checkpoint is saved only of a state known to be finite. What was to
    be measured after step `first`, before the run was interrupted, is measured now.

    Args:
        learner: what a step is.
        state: after step `first`.
        checkpoints: of the run.

    Returns:
        (state, steps done).

    Raises:
        InputError: for a loss that is not finite, or a full disk.
    """
    first, last = learner.first, learner.last
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
                if learner.reuses_state:
                    checkpoints.wait()
            if learner.measures(done):
                learner.measure(done, state)
        if pending is not None:
            report(*pending)
        checkpoints.wait()
    return state, done
