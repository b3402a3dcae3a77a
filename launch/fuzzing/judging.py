"""What a reader may do with a bad input: read it, or refuse it in one line, and soon."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import io
import os
import pathlib
import resource
import signal
import traceback
from typing import Any

from ppjax.base import errors

# Of a line of refusal.
LONGEST_LINE = errors.LONGEST + len('ERROR: ')
# An answer, on a machine that does nothing else.
SECONDS = 30.0
_MEMORY = 2 * 2**30


class TooLate(BaseException):
    """The time is over; no reader catches it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a bad input brought about and must not.

    Attributes:
        target: what was fed.
        case: its number, which makes the same input again.
        kind: 'traceback', 'line', 'slow', 'died', 'left' or 'memory'.
        said: the error, the line, or what was left behind.
        place: the innermost line of ppjax that the error came through.
    """

    target: str
    case: int
    kind: str
    said: str
    place: str = ''

    @property
    def group(self) -> tuple[str, str, str]:
        """What findings of one cause have in common."""
        return self.target, self.kind, self.place or self.said[:60]


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TooLate` inside after so long."""

    def late(*_: Any) -> None:
        raise TooLate

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Makes what takes far more memory inside fail, before the machine does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    taken = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * _MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def problem_of_line(line: str) -> str | None:
    """What is wrong with a line of refusal; None if nothing is."""
    if line.splitlines() != [line] or not line.isprintable():
        return 'not one printable line'
    if len(line) > LONGEST_LINE:
        return f'{len(line)} characters'
    return None


def listing(folder: pathlib.Path) -> set[str]:
    """Everything in a folder, by name."""
    return {
        os.path.join(root, name)
        for root, folders, files in os.walk(folder)
        for name in [*folders, *files]
    }


def place_of(error: BaseException) -> str:
    """Where in ppjax an error came through, innermost."""
    found = ''
    for frame in traceback.extract_tb(error.__traceback__):
        if '/ppjax/' in frame.filename:
            found = f'ppjax/{frame.filename.rpartition("/ppjax/")[2]}:{frame.lineno}'
    return found


def judge(
    target: str, case: int, read: Callable[[], object], watched: pathlib.Path
) -> tuple[str, list[Finding]]:
    """Feeds one bad input.

    Args:
        target: what is fed.
        case: its number.
        read: feeds it.
        watched: a folder that a refusal must leave as it was.

    Returns:
        'read' or 'refused', and what is wrong.
    """

    def finding(kind: str, said: str, error: BaseException | None = None) -> Finding:
        place = place_of(error) if error else ''
        return Finding(target, case, kind, said[:300], place)

    before = listing(watched)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcome, found = 'refused', []
    try:
        with (
            limited(SECONDS),
            bounded_memory(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            read()
        outcome = 'read'
    except errors.InputError as error:
        line = str(error)
        if wrong := problem_of_line(line):
            found.append(finding('line', f'{wrong}: {line!r}', error))
    except TooLate as error:
        found.append(finding('slow', f'no answer in {SECONDS:.0f} s', error))
    # Whatever it is, it is what we look for.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        found.append(finding('traceback', f'{type(error).__name__}: {error}', error))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory
    if grown > _MEMORY:
        found.append(finding('memory', f'{grown / 2**30:.1f} GiB'))
    if outcome == 'refused' and (left := listing(watched) - before):
        found.append(finding('left', ', '.join(sorted(left))))
    return outcome, found
