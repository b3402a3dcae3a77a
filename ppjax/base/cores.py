"""How many threads are worth having."""

import os

_MOST = 8


def count() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS does not tie processes to cores.
        return os.cpu_count() or 1


def threads() -> int:
    """Threads for work on memory, of which many cores do no more than some."""
    return min(_MOST, count())
