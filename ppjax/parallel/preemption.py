"""Stopping in time when the machine is about to be taken away.

Schedulers of TPUs, Slurm and Kubernetes send SIGTERM some seconds before they kill.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading
import types
from typing import Any

import jax
from jax.experimental import multihost_utils

from ppjax.base import progress

_NOTICE = 'SIGTERM: saving after this step, then stopping.'


class Notice:
    """Whether the run was told to stop."""

    def __init__(self) -> None:
        self._given = False
        self._before: Any = signal.SIG_DFL

    def given(self, step: int) -> bool:
        """Whether to save and stop after this step.

        Of several processes all are told so at the same step, whichever got the
        signal; each must ask after every step.
        """
        if jax.process_count() == 1:
            return self._given
        reached = bool(multihost_utils.reached_preemption_sync_point(step))
        if reached:
            progress.say(_NOTICE)
        return reached

    def _take(self, number: int, frame: types.FrameType | None) -> None:
        self._given = True
        # A print here could come in the middle of another.
        os.write(2, f'{_NOTICE} A second one stops at once.\n'.encode())
        signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        # Of several processes JAX listens itself; only a main thread may.
        main = threading.current_thread() is threading.main_thread()
        if jax.process_count() > 1 or not main:
            yield
            return
        self._before = signal.signal(signal.SIGTERM, self._take) or signal.SIG_DFL
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, self._before)


@contextlib.contextmanager
def noticed() -> Iterator[Notice]:
    """Listens for SIGTERM inside, which then no longer ends the process at once."""
    notice = Notice()
    with notice._listening():
        yield notice
