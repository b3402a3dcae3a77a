"""The learning rate: warm-up, then a cosine to zero."""

import itertools

import jax
import numpy as np
import pytest

from ppjax.learning import schedule as schedule_lib


def test_schedule_warms_up_then_falls_to_zero():
    schedule = schedule_lib.make_schedule(
        learning_rate=1e-2, warmup=0.03, num_steps=100
    )
    rates = [float(schedule(step)) for step in range(101)]
    np.testing.assert_allclose(rates[:3], [1e-2 / 3, 2e-2 / 3, 1e-2], rtol=1e-6)
    assert rates[3] == pytest.approx(1e-2)
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))
    assert rates[100] == pytest.approx(0, abs=1e-9)
    middle = 3 + 97 / 2
    assert np.interp(middle, range(101), rates) == pytest.approx(5e-3, rel=1e-2)


def test_on_the_host_it_is_the_same_to_the_last_bit():
    schedule = schedule_lib.make_schedule(learning_rate=3e-2, warmup=0.03, num_steps=97)
    rate = schedule_lib.on_host(schedule, 97)
    with jax.transfer_guard('disallow'):
        found = [rate(step) for step in range(98)]
    assert found == [float(schedule(step)) for step in range(98)]
