"""What a run records while it runs: JSON lines and event files."""

from collections.abc import Iterator, Sequence
import contextlib
import json
import math
import pathlib
from typing import Any

from ppjax.base import atomic, errors, json_lines, processes, reading
from ppjax.base import progress as progress_lib

# What they are, for a run's marker.
FILES = ('metrics.jsonl', 'tensorboard/events.out.tfevents.*')


class MetricsLog:
    """metrics.jsonl, on disk line by line, and TensorBoard event files of the same.

    Of several processes the first alone keeps them.
    """

    def __init__(
        self,
        run: pathlib.Path,
        *,
        resume_step: int,
        stages: Sequence[str] | None = None,
        with_events: bool = True,
    ):
        """Opens both; entries of steps that will be done again are dropped.

        Args:
            run: the run directory.
            resume_step: the last step that is done.
            stages: those whose steps these are; what the file has of others stays.
                None are all.
            with_events: whether there are event files. Of those, steps that will be
                done again are dropped whatever stage they are of.

        Raises:
            InputError: if they cannot be written.
        """
        path = run / FILES[0]
        kept = processes.first_decides(lambda: _keep(path, resume_step, stages))
        self._known = {(entry['stage'], entry['step']): entry for entry in kept}
        self._log = json_lines.AppendLog(path)
        self._events: Any = None
        self._folder = run / 'tensorboard'
        if processes.is_first() and with_events:
            # It loads PyTorch where that is installed: seconds, which neither a
            # refusal nor --help should take.
            import tensorboardX

            with self._as_disk_error():
                self._events = tensorboardX.SummaryWriter(
                    str(self._folder), purge_step=resume_step + 1
                )

    def has(self, stage: str, step: int) -> bool:
        """Whether there is an entry of a stage after a step."""
        return (stage, step) in self._known

    def write(self, stage: str, step: int, **values: float) -> None:
        """Appends one entry; `step` counts finished optimizer steps.

        Raises:
            DiskError: if the disk is full.
        """
        entry: dict[str, Any] = {'stage': stage, 'step': step}
        entry |= {name: round(float(value), 8) for name, value in values.items()}
        self._log.append(entry)
        self._known[stage, step] = entry
        if self._events is None:
            return
        with self._as_disk_error():
            for name, value in values.items():
                self._events.add_scalar(f'{stage}/{name}', value, step)

    def close(self) -> None:
        """Raises:
        DiskError: if the disk is full.
        """
        self._log.close()
        if self._events is not None:
            with self._as_disk_error():
                self._events.close()

    @contextlib.contextmanager
    def _as_disk_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.DiskError(
                f'Cannot write {self._folder}: {error.strerror}.'
            ) from error


def _keep(
    path: pathlib.Path, resume_step: int, stages: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The entries up to a step; what else the file has of it is dropped."""
    if not path.exists():
        return []
    # Whole: a long run's log is larger than what people bring may be.
    with reading.opened(path, 'Metrics') as file:
        data = file.read()
    lines = data.splitlines()
    kept, damaged = [], 0
    # What follows the last line break was being written when the run was killed.
    for number, line in enumerate(lines, start=1):
        try:
            entry = json_lines.parse(line, str(path))
            stage, step = entry['stage'], entry['step']
            if not isinstance(stage, str) or not isinstance(step, int):
                raise TypeError
        except (errors.InputError, KeyError, TypeError):
            damaged += number < len(lines)
            continue
        other = stages is not None and stage not in stages
        if other or step <= resume_step:
            kept.append(entry)
    if damaged:
        progress_lib.say(f'{path}: {damaged} damaged lines were left out.')
    if len(kept) != len(lines) or not data.endswith(b'\n'):
        atomic.write_text(path, ''.join(json.dumps(entry) + '\n' for entry in kept))
    return kept


def check_finite(
    loss: float,
    grad_norm: float,
    step: int,
    query_ids: Sequence[str],
    *,
    score_norm: float = 0.0,
) -> None:
    """Stops a run whose loss, gradient or scores are no numbers any more.

    Args:
        loss: of the step.
        grad_norm: of its gradient.
        step: counted from 1.
        query_ids: of its examples.
        score_norm: of the scores after it, where there are some.

    Raises:
        InputError: naming the step and its examples.
    """
    if all(map(math.isfinite, (loss, grad_norm, score_norm))):
        return
    scores = '' if math.isfinite(score_norm) else f', norm of scores {score_norm}'
    raise errors.InputError(
        f'Step {step}: loss {float(loss)}, gradient norm {float(grad_norm)}{scores}. Its '
        f'examples: {", ".join(query_ids)}. Look at them, or lower --learning_rate; '
        'the same command goes on from the last checkpoint.'
    )
