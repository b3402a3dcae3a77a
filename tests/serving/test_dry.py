"""DRY penalties against what a quadratic search finds."""

import timeit

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ppjax.serving import dry as dry_lib
from ppjax.serving import sampling


def _found(history, **settings):
    dry = sampling.Dry(**{'multiplier': 1.0, 'base': 2.0} | settings)
    ids, penalties = dry_lib.penalties(np.asarray(history, np.int32), dry)
    assert ids.dtype == np.int32 and penalties.dtype == np.float32
    return dict(zip(ids.tolist(), penalties.tolist(), strict=True))


def _naive(history, dry):
    """Every earlier place, walked back token by token."""
    if dry.last_n is not None:
        history = history[max(0, len(history) - dry.last_n) :]
    longest = {}
    for place in range(1, len(history)):
        length = 0
        while length < place:
            token = history[place - 1 - length]
            if token != history[-1 - length] or token in dry.breakers:
                break
            length += 1
        token = history[place]
        if token not in dry.breakers:
            longest[token] = max(length, longest.get(token, 0))
    return {
        token: min(dry.multiplier * dry.base ** (n - dry.allowed_length), dry_lib.MOST)
        for token, n in longest.items()
        if n >= max(1, dry.allowed_length)
    }


@pytest.mark.parametrize(
    ('history', 'settings', 'wanted'),
    [
        # 1 2 3 came before 9, and the text ends with it: n = 3.
        ([1, 2, 3, 9, 7, 1, 2, 3], {}, {9: 2.0}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'multiplier': 0.8, 'base': 1.75}, {9: 1.4}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'allowed_length': 3}, {9: 1.0}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'allowed_length': 4}, {}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'multiplier': 0.0}, {}),
        # Two ways on, of which the longer counts for each.
        ([3, 9, 5, 2, 3, 8, 2, 3, 9, 1, 2, 3], {'allowed_length': 1}, {8: 2.0, 9: 2.0}),
        ([3, 9, 1, 3, 9, 1, 3], {'allowed_length': 1}, {9: 8.0}),
        # A sequence overlaps with itself: the first 5 is followed by five of them.
        ([5, 5, 5, 5, 5, 5], {}, {5: 8.0}),
        # Nothing comes after the last token, and no token is no history.
        ([1], {'allowed_length': 1}, {}),
        ([], {}, {}),
        # The window holds one of 1 2 3 alone, or lacks the first token of it.
        ([1, 2, 3, 9, 7, 1, 2, 3], {'last_n': 5}, {}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'last_n': 7}, {9: 1.0}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'last_n': 8}, {9: 2.0}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'last_n': 99}, {9: 2.0}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'last_n': 0}, {}),
        # 2 ends the sequence, 3 at the end leaves none, and 9 may always follow.
        ([1, 2, 3, 9, 7, 1, 2, 3], {'breakers': {2}, 'allowed_length': 1}, {9: 1.0}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'breakers': {2}}, {}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'breakers': {3}, 'allowed_length': 1}, {}),
        ([1, 2, 3, 9, 7, 1, 2, 3], {'breakers': {9}}, {}),
        # 0 is no length of a sequence.
        ([1, 2, 9, 4, 2], {'allowed_length': 0}, {9: 2.0}),
    ],
)
def test_by_hand(history, settings, wanted):
    if 'breakers' in settings:
        settings = settings | {'breakers': frozenset(settings['breakers'])}
    assert _found(history, **settings) == pytest.approx(wanted)


@hypothesis.given(
    history=st.lists(st.integers(0, 3), max_size=60),
    dry=st.builds(
        sampling.Dry,
        multiplier=st.floats(0.1, 5),
        base=st.floats(1, 4),
        allowed_length=st.integers(0, 6),
        last_n=st.none() | st.integers(0, 70),
        breakers=st.frozensets(st.integers(0, 3), max_size=1),
    ),
)
@hypothesis.settings(max_examples=400)
def test_what_a_quadratic_search_finds(history, dry):
    ids, penalties = dry_lib.penalties(np.asarray(history, np.int32), dry)
    assert ids.tolist() == sorted(set(ids.tolist()))
    found = dict(zip(ids.tolist(), penalties.tolist(), strict=True))
    assert found == pytest.approx(_naive(history, dry), rel=1e-5)


@pytest.mark.parametrize('base', [1.0, 1.75, 1e30])
def test_penalties_are_finite(base):
    [penalty] = _found([5] * 4096, base=base).values()
    assert penalty == (1.0 if base == 1.0 else dry_lib.MOST)


def _periodic(period):
    return np.arange(4096) % period


@pytest.mark.parametrize('period', [1, 2, 7, 1000])
def test_time_grows_with_the_window_alone(period):
    """A quadratic search of the first takes seconds."""
    history = _periodic(period).astype(np.int32)
    dry = sampling.Dry(multiplier=1.0, base=1.0)
    took = timeit.repeat(lambda: dry_lib.penalties(history, dry), number=1, repeat=5)
    assert min(took) < 0.1
