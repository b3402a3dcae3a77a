"""Figures of dialogues, by hand and by drawing one dialogue after another."""

import json
import math
import types

import numpy as np
import pytest

from ppjax.evaluation.dialogues import consistency

_NAN = math.nan


def _summarise(scores, groups, judged=None, held=None, **options):
    scores = np.array(scores, np.float64)
    whole = np.ones(scores.shape, bool)
    found = consistency.summarise(
        scores,
        whole if judged is None else np.array(judged, bool),
        whole if held is None else np.array(held, bool),
        groups,
        **options,
    )
    # Figures by their names: found.turns[0].mean.
    return json.loads(
        json.dumps(found), object_hook=lambda figures: types.SimpleNamespace(**figures)
    )


def _trend(value, interval):
    return types.SimpleNamespace(value=value, interval=interval and [*interval])


def test_figures_by_hand():
    found = _summarise(
        [[5, 4, 3], [3, 4, 1], [5, 5, 5], [_NAN, 4, 2]], ['a', 'a', 'b', 'c']
    )
    assert [turn.turn for turn in found.turns] == [1, 2, 3]
    # a: 4, 4, 2; b: 5, 5, 5; c: none, 4, 2.
    assert [turn.mean for turn in found.turns] == pytest.approx([4.5, 13 / 3, 3])
    assert [turn.std for turn in found.turns] == pytest.approx(
        [math.sqrt(0.5), math.sqrt(1 / 3), math.sqrt(3)]
    )
    assert [turn.n_scored for turn in found.turns] == [3, 4, 4]
    assert found.slope.value == pytest.approx((3 - 4.5) / 2)
    assert found.change.value == pytest.approx(3 - 4.5)
    assert found.mean.value == pytest.approx((4.5 + 13 / 3 + 3) / 3)


def test_what_has_no_score_is_counted_and_is_no_middling_score():
    found = _summarise(
        [[5, _NAN, _NAN], [_NAN, _NAN, _NAN], [1, _NAN, _NAN]],
        ['a', 'a', 'b'],
        judged=[[1, 1, 0], [0, 1, 0], [1, 0, 0]],
        held=[[1, 1, 0], [1, 1, 0], [1, 1, 1]],
    )
    counts = [(t.n, t.n_scored, t.n_failed, t.n_unscored) for t in found.turns]
    assert counts == [(3, 2, 1, 0), (3, 0, 1, 2), (1, 0, 1, 0)]
    assert [turn.mean for turn in found.turns] == [3, None, None]
    assert [turn.std for turn in found.turns] == [
        pytest.approx(math.sqrt(8)),
        None,
        None,
    ]
    none = _trend(None, None)
    assert (found.slope, found.change) == (none, none)
    assert found.mean.value == 3


def test_nothing_scored_at_all_is_no_figure():
    found = _summarise([[_NAN] * 2] * 2, ['a', 'b'])
    none = _trend(None, None)
    assert (found.mean, found.slope, found.change) == (none, none, none)


def test_one_turn_has_no_course_and_one_dialogue_no_interval():
    found = _summarise([[4], [2]], ['a', 'b'])
    none = _trend(None, None)
    assert (found.slope, found.change) == (none, none)
    assert found.mean == _trend(3.0, (2.0, 4.0))
    found = _summarise([[4, 2, 3]], ['a'])
    assert found.mean == _trend(3.0, None)
    assert found.slope == _trend(-0.5, None)
    assert found.change == _trend(-1.0, None)
    assert found.turns[0].std is None


def test_slopes_are_least_squares_over_the_turns_that_are_there():
    rng = np.random.default_rng(1)
    curves = rng.normal(size=(40, 7))
    curves[rng.random(curves.shape) < 0.4] = _NAN
    curves[0], curves[1] = _NAN, [_NAN, 3, *[_NAN] * 5]
    found = consistency.slopes(curves)
    for curve, slope in zip(curves, found, strict=True):
        there = ~np.isnan(curve)
        if there.sum() < 2:
            assert math.isnan(slope)
            continue
        want = np.polyfit(np.arange(7)[there], curve[there], 1)[0]
        assert slope == pytest.approx(want)
    assert np.isnan(found).sum() >= 2


@pytest.mark.filterwarnings('ignore:Mean of empty slice')
def test_intervals_are_those_of_dialogues_drawn_one_by_one():
    rng = np.random.default_rng(2)
    groups = ['a'] * 4 + ['b'] * 3 + ['c'] * 5
    level = np.array([2.0] * 4 + [3.5] * 3 + [4.0] * 5)[:, None]
    scores = level + rng.normal(scale=0.5, size=(12, 4))
    scores[3, 2] = scores[7, 0] = _NAN
    found = _summarise(scores, groups, resamples=4000, seed=7)
    drawn_slopes, drawn_changes, drawn_means = [], [], []
    for _ in range(4000):
        rows = rng.integers(12, size=12)
        people = []
        for name in 'abc':
            own = [row for row in rows if groups[row] == name]
            if own:
                people.append(np.nanmean(scores[own], axis=0))
        curve = np.nanmean(people, axis=0)
        drawn_slopes.append(np.polyfit(np.arange(4), curve, 1)[0])
        drawn_changes.append(curve[-1] - curve[0])
        drawn_means.append(curve.mean())
    for trend, drawn in (
        (found.slope, drawn_slopes),
        (found.change, drawn_changes),
        (found.mean, drawn_means),
    ):
        want = np.quantile(drawn, [0.025, 0.975])
        width = want[1] - want[0]
        assert trend.interval == pytest.approx(want, abs=0.08 * width)
        assert trend.interval[0] < trend.value < trend.interval[1]
    again = _summarise(scores, groups, resamples=4000, seed=7)
    assert again == found
    assert _summarise(scores, groups, resamples=4000, seed=8) != found


def test_a_dialogues_turns_are_drawn_together():
    # Every dialogue falls by exactly one, whatever its level.
    found = _summarise([[5, 4], [3, 2], [2, 1]], ['a', 'b', 'c'])
    assert found.change.interval == pytest.approx((-1, -1))
    assert found.mean.interval[0] < found.mean.interval[1]


@pytest.mark.parametrize(
    ('shape', 'groups', 'why'),
    [
        ((2, 3), ['a'], r'of 1 dialogues, got \(2, 3\)'),
        ((0, 3), [], r'got \(0, 3\)'),
        ((2,), ['a', 'b'], r'got \(2,\)'),
        ((1, 0), ['a'], r'got \(1, 0\)'),
    ],
)
def test_other_shapes_are_refused(shape, groups, why):
    with pytest.raises(ValueError, match=why):
        _summarise(np.ones(shape), groups)
    with pytest.raises(ValueError, match='must be alike'):
        _summarise(np.ones((1, 2)), ['a'], judged=np.ones((2, 1)))
    with pytest.raises(ValueError, match='must be alike'):
        _summarise(np.ones((1, 2)), ['a'], held=np.ones((1, 3)))
