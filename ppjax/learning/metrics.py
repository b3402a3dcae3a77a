"""What a run records while it runs: JSON lines and event files."""

from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any

import tensorboardX

from ppjax.base import errors, processes


class MetricsLog:
    """metrics.jsonl and TensorBoard event files with the same scalars.

    Of several processes the first alone keeps them.
    """

    def __init__(self, run: pathlib.Path, *, resume_step: int):
        """Opens both; entries of steps that will be done again are dropped."""
        self._writes = processes.is_first()
        if not self._writes:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / 'metrics.jsonl'
        kept = []
        if path.exists():
            for line in path.read_text('utf-8').splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # The torn last line of a killed run.
                    continue
                if entry.get('step', 0) <= resume_step:
                    kept.append(line + '\n')
        path.write_text(''.join(kept), encoding='utf-8')
        self._file = path.open('a', encoding='utf-8')
        self._events = tensorboardX.SummaryWriter(
            str(run / 'tensorboard'), purge_step=resume_step + 1
        )

    def write(self, stage: str, step: int, **values: float) -> None:
        """Appends one entry; `step` counts finished optimizer steps."""
        if not self._writes:
            return
        entry: dict[str, Any] = {'stage': stage, 'step': step}
        entry |= {name: round(float(value), 8) for name, value in values.items()}
        self._file.write(json.dumps(entry) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f'{stage}/{name}', value, step)

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._events.close()


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
