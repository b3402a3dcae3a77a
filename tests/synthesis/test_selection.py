"""Selection keeps exactly the asked share, highest first, ties in order."""

import numpy as np
import pytest

from ppjax.synthesis import selection


def test_highest_first_and_ties_in_order():
    scores = [0.2, 0.5, 0.2, 0.9, 0.5, 0.2, 0.1, 0.5, 0.0, 0.2]
    assert selection.select(scores, 0.6).tolist() == [3, 1, 4, 7, 0, 2]


@pytest.mark.parametrize(
    ('count', 'fraction', 'kept'),
    [(10, 0.4, 4), (1000, 0.4, 400), (7, 0.4, 3), (3, 0.01, 1), (5, 1.0, 5)],
)
def test_exactly_the_share_is_kept(count, fraction, kept):
    scores = np.random.default_rng(0).random(count)
    chosen = selection.select(scores, fraction)
    assert len(chosen) == kept == len(set(chosen.tolist()))
    others = np.delete(scores, chosen)
    assert not len(others) or scores[chosen].min() > others.max()
