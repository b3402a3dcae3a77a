"""What people see while something runs: lines, and a bar with ETA, on stderr.

Of several processes the first alone speaks.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import sys
import time
from typing import TypeVar

import tqdm

from ppjax.base import processes

Item = TypeVar('Item')

# Without a terminal, a line this often is enough to see that a run is alive.
_PLAIN_SECONDS = 10.0


class Progress:
    """A bar with ETA on a terminal, plain lines elsewhere, on stderr."""

    def __init__(self, label: str, total: int, *, initial: int = 0):
        self._label, self._total, self._initial = label, total, initial
        self._done = initial
        self._began = time.monotonic()
        self._said = 0.0
        self._bar = (
            tqdm.tqdm(total=total, initial=initial, desc=label, dynamic_ncols=True)
            if sys.stderr.isatty() and processes.is_first()
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
        if not processes.is_first():
            return
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
    """One line for people, on stderr, without breaking a progress bar.

    Whoever reads it may have left, or its disk be full: work goes on unheard.
    """
    if processes.is_first():
        with contextlib.suppress(OSError):
            tqdm.tqdm.write(text, file=sys.stderr)


def over(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Items one after the other, with progress; one counts when the next is asked."""
    shown = Progress(label, len(items))
    for done, item in enumerate(items, start=1):
        yield item
        shown.update(done)
    shown.close()


def counter(label: str) -> Callable[[int, int], None]:
    """A callback (done, total) that shows progress, and ends it at the total."""
    shown: Progress | None = None

    def update(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            shown = Progress(label, total, initial=0)
        shown.update(done)
        if done >= total:
            shown.close()

    return update
