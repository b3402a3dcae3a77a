"""What a run reports while it runs: lines, a progress bar, JSON, event files."""

import json
import pathlib
import sys
import time
from typing import Any

import tensorboardX
import tqdm

# Without a terminal, a line this often is enough to see that a run is alive.
_PLAIN_SECONDS = 10.0


class MetricsLog:
    """metrics.jsonl and TensorBoard event files with the same scalars."""

    def __init__(self, run: pathlib.Path, *, resume_step: int):
        """Opens both; entries of steps that will be done again are dropped."""
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
        entry: dict[str, Any] = {'stage': stage, 'step': step}
        entry |= {name: round(float(value), 8) for name, value in values.items()}
        self._file.write(json.dumps(entry) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f'{stage}/{name}', value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


class Progress:
    """A bar with ETA on a terminal, plain lines elsewhere, on stderr."""

    def __init__(self, label: str, total: int, *, initial: int = 0):
        self._label, self._total, self._initial = label, total, initial
        self._done = initial
        self._began = time.monotonic()
        self._said = 0.0
        self._bar = (
            tqdm.tqdm(total=total, initial=initial, desc=label, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def update(self, done: int, note: str = '') -> None:
        """Says that `done` of the total are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._done)
            self._done = done
            return
        self._done = done
        now = time.monotonic()
        if now - self._said < _PLAIN_SECONDS and done < self._total:
            return
        self._said = now
        spent = now - self._began
        fresh = done - self._initial
        left = spent / fresh * (self._total - done) if fresh else 0.0
        print(
            f'{self._label} {done}/{self._total}  {note}  '
            f'{spent:.0f} s spent, {left:.0f} s left',
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def say(text: str) -> None:
    """One line for people, on stderr, without breaking a progress bar."""
    tqdm.tqdm.write(text, file=sys.stderr)
