"""Intervals by resampling examples."""

import math

import numpy as np
import pytest

from ppjax.evaluation import bootstrap


def test_bootstrap_interval():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 90, 200)
    nats = tokens * rng.normal(-0.05, 0.3, 200)
    low, high = bootstrap.ratio_interval(nats, tokens)
    plain = nats.sum() / tokens.sum()
    assert low < plain < high
    assert (low, high) == bootstrap.ratio_interval(nats, tokens)
    assert (low, high) != bootstrap.ratio_interval(nats, tokens, seed=1)
    # The linearised standard error of a ratio of sums.
    error = np.std(nats - plain * tokens) / tokens.mean() / math.sqrt(200)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_bootstrap_of_one_example_is_a_point():
    assert bootstrap.ratio_interval(np.array([3.0]), np.array([4])) == (
        0.75,
        0.75,
    )


@pytest.mark.parametrize('shapes', [((0,), (0,)), ((2,), (3,)), ((2, 2), (2, 2))])
def test_bootstrap_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match='n at least 1'):
        bootstrap.ratio_interval(np.ones(shapes[0]), np.ones(shapes[1]))
