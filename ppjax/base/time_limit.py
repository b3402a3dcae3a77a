"""Code of strangers, such as chat templates, is given so much time and no more."""

from collections.abc import Iterator
import contextlib
import ctypes
import threading
import time

# How often running limits are looked at.
_POLL_SECONDS = 0.1

# Thread -> when its time is up. Single operations on it are atomic: who takes an
# entry out decides whether the thread is interrupted.
_deadlines: dict[int, float] = {}
_wanted = threading.Event()
_start = threading.Lock()
_watchers: list[threading.Thread] = []


class TimeLimitError(Exception):
    """The time that was given is up."""


def _watch() -> None:
    while _wanted.wait():
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        for ident, deadline in list(_deadlines.items()):
            if deadline < now and _deadlines.pop(ident, None) is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(ident), ctypes.py_object(TimeLimitError)
                )
        if not _deadlines:
            _wanted.clear()
            if _deadlines:  # One came in between.
                _wanted.set()


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises where the body runs longer; in any thread, but not within another limit.

    Only Python code is interrupted: one long call into C ends first.

    Raises:
        TimeLimitError: from within the body, a little after its time.
    """
    if not _watchers:
        with _start:
            if not _watchers:
                _watchers.append(threading.Thread(target=_watch, daemon=True))
                _watchers[0].start()
    ident = threading.get_ident()
    _deadlines[ident] = time.monotonic() + seconds
    _wanted.set()
    raised = False
    try:
        yield
    except TimeLimitError:
        raised = True
        raise
    finally:
        if _deadlines.pop(ident, None) is None and not raised:
            # On its way to this thread: it must not arrive later, elsewhere.
            for _ in range(1000):
                time.sleep(0.001)
