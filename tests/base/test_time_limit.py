"""Code that runs too long is stopped, wherever it runs, and nothing else is."""

import threading
import time

import pytest

from ppjax.base import time_limit


def _spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _stopped() -> float:
    began = time.monotonic()
    with pytest.raises(time_limit.TimeLimitError), time_limit.limit(0.05):
        _spin(20)
    return time.monotonic() - began


def test_stops_in_the_main_thread_and_in_another():
    assert _stopped() < 10
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(_stopped())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    _spin(0.3)  # Not this one.
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert max(found) < 10


def test_what_ends_in_time_is_left_alone():
    for _ in range(200):
        with time_limit.limit(60):
            pass
    with pytest.raises(ZeroDivisionError), time_limit.limit(60):
        _ = 1 / 0
    with time_limit.limit(0.2):
        pass
    _spin(0.5)


def test_what_ends_just_then_is_never_stopped_later():
    for number in range(20):
        try:
            with time_limit.limit(0.02):
                _spin(0.02 + number * 0.006)
        except time_limit.TimeLimitError:
            pass
    _spin(0.3)
