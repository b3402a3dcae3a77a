"""What memory of its own a process takes, and processes that nothing else is in."""

from collections.abc import Callable
import concurrent.futures
import gc
import multiprocessing
import pathlib
import threading
from typing import Any

from ppjax.base import errors
from ppjax.evaluation import timing

_STATUS = pathlib.Path('/proc/self/status')
_EVERY_S = 0.002


def check_is_told() -> None:
    """Raises:
    InputError: if this system does not tell processes their memory.
    """
    if not _STATUS.exists():
        raise errors.InputError('bench load reads memory from /proc, as Linux has it.')


def anonymous_bytes() -> int:
    """The process's own memory; pages of mapped files, which can be dropped, aside."""
    for line in _STATUS.read_text('ascii').splitlines():
        if line.startswith('RssAnon:'):
            return int(line.split()[1]) * 1024
    raise AssertionError(f'{_STATUS} has no RssAnon.')


def measured(act: Callable[[], Any], beyond: int | None = None) -> dict[str, Any]:
    """Seconds that a call takes, and the most memory while it runs.

    Args:
        act: called; what it gives is kept until memory has been read.
        beyond: anonymous bytes that do not count; by default those before the call.
    """
    gc.collect()
    peak, ended = anonymous_bytes(), threading.Event()
    beyond = peak if beyond is None else beyond

    def sample() -> None:
        nonlocal peak
        while not ended.wait(_EVERY_S):
            peak = max(peak, anonymous_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        seconds, _kept = timing.timed(act)
    finally:
        ended.set()
        thread.join()
    peak = max(peak, anonymous_bytes())
    return {'seconds': seconds, 'peak_bytes': peak - beyond}


def alone(measure: Callable[..., dict[str, Any]], *args: str) -> dict[str, Any]:
    """In a process of its own: what another loader left must not count."""
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context('spawn')
    ) as pool:
        return pool.submit(measure, *args).result()
