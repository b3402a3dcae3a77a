"""How long cells took, over every session that worked on them."""

import datetime
import pathlib
import time

from ppjax.base import atomic, errors, json_lines
from ppjax.base import progress as progress_lib

_DONE = 'done'


def duration(seconds: float) -> str:
    """Seconds as text: '40 s', '12 min' or '3.4 h'."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def _session(cell: pathlib.Path) -> tuple[str, float] | None:
    """When the last session in a run directory began, and its seconds until now."""
    try:
        status = json_lines.read_object(cell / 'status.json', 'Status')
        first, last = (
            datetime.datetime.fromisoformat(status[name])
            for name in ('started', 'updated')
        )
    except (errors.InputError, ValueError, KeyError, TypeError):
        return None
    return status['started'], (last - first).total_seconds()


class Clock:
    """Seconds by cell and session, in a file beside the cells.

    A killed session's seconds are those that its cell's status.json still tells.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._cells: dict[str, dict[str, float]] = {}
        if path.exists():
            try:
                found = json_lines.read_object(path, 'Seconds')
                self._cells = {
                    str(cell): {str(name): float(x) for name, x in sessions.items()}
                    for cell, sessions in found.items()
                }
            except (errors.InputError, ValueError, TypeError, AttributeError):
                progress_lib.say(f'{path} is damaged; seconds are counted anew.')

    def start(self, cell: pathlib.Path) -> None:
        """A session begins to work on a cell's run directory."""
        self._began = time.monotonic()
        sessions = self._cells.setdefault(cell.name, {})
        session = _session(cell)
        if _DONE not in sessions and session:
            sessions[session[0]] = session[1]
            atomic.write_json(self._path, self._cells)

    def stop(self, cell: pathlib.Path) -> None:
        """The cell is done; what comes later is no work on it."""
        sessions = self._cells[cell.name]
        session = _session(cell)
        if _DONE not in sessions and session:
            sessions[session[0]] = round(time.monotonic() - self._began, 1)
            sessions[_DONE] = 0.0
            atomic.write_json(self._path, self._cells)

    def seconds(self, cell: str) -> float:
        """What a cell took so far."""
        return round(sum(self._cells.get(cell, {}).values()), 1)

    def mean(self) -> float | None:
        """Seconds that a cell took on average; None before one is done."""
        done = [name for name, sessions in self._cells.items() if _DONE in sessions]
        return sum(map(self.seconds, done)) / len(done) if done else None
