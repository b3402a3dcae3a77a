"""What a soak saw: how often what was done, what came back, and what was wrong."""

from collections import Counter
from collections.abc import Sequence
import statistics
from typing import Any

_MOST_TOLD = 20


class Record:
    """Counts and faults; kinds of faults are few, and each is counted whole."""

    def __init__(self) -> None:
        self._done: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._told: dict[str, list[str]] = {}
        self.right = 0

    def did(self, what: str, came: str) -> None:
        """Counts something done and what came of it: a status, or words."""
        self._done[f'{what}: {came}'] += 1

    def fault(self, kind: str, said: str) -> None:
        """Notes what must not be."""
        self._faults[kind] += 1
        told = self._told.setdefault(kind, [])
        if len(told) < _MOST_TOLD:
            told.append(said[:500])

    @property
    def kinds(self) -> list[str]:
        """Of the faults so far."""
        return sorted(self._faults)

    def as_json(self) -> dict[str, Any]:
        return {
            'answers_that_were_right': self.right,
            'done': dict(sorted(self._done.items())),
            'faults': {
                kind: {'count': self._faults[kind], 'told': self._told[kind]}
                for kind in self.kinds
            },
        }


def growth(samples: Sequence[int], warm_up: float) -> float | None:
    """By what share memory grew after the warm-up.

    Args:
        samples: bytes, evenly in time.
        warm_up: share of the time that does not count.

    Returns:
        Of the medians over the first and the last third of the rest; None of fewer than
        six samples there.
    """
    counted = samples[int(warm_up * len(samples)) :]
    third = len(counted) // 3
    if third < 2:
        return None
    before, after = statistics.median(counted[:third]), counted[-third:]
    return statistics.median(after) / before - 1
