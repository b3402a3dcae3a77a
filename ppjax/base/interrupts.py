"""Ctrl-C while a verb starts or ends, when there is nothing to be saved."""

import os
import signal
from typing import Any

CODE = 130
MESSAGE = 'Interrupted.'


def _end(*_: Any) -> None:
    # Not by an exception: libraries that are being imported catch some.
    os.write(2, f'{MESSAGE}\n'.encode())
    os._exit(CODE)


def end_at_once() -> None:
    """From now on Ctrl-C ends the process with one line.

    Not where it is ignored, as in what shells start in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, as Python has it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
