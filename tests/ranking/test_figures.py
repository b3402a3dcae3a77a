"""Mean ranks, intervals and correlations against values by hand and against SciPy."""

import numpy as np
import pytest
import scipy.stats

from ppjax.ranking import dimensions, figures, study

_NAN = float('nan')


def _random(people: int, items: int, models: int, seed: int = 0) -> np.ndarray:
    """Ranks [D, P, I, M] of which every model's are a permutation."""
    rng = np.random.default_rng(seed)
    shape = len(dimensions.NAMES), people, items, models
    return rng.random(shape).argsort(axis=-1).argsort(axis=-1) + 1.0


def _whole(*ranks: list[list[float]]) -> np.ndarray:
    """The same in every dimension: of each person [I][M]."""
    return np.array([ranks] * len(dimensions.NAMES), np.float64)


def test_an_array_of_rankings():
    rankings = [
        study.Ranking('b', 'person', 2, 'character_fidelity', 'y', 1.0),
        study.Ranking('c', 'person', 1, 'character_fidelity', 'y', 1.0),
    ]
    ranks = figures.array(rankings, ['a', 'b'], ['x', 'y'], 3)
    assert ranks.shape == (3, 2, 3, 2)
    assert ranks[1, 1, 1, 1] == 1.0
    assert np.isnan(ranks).sum() == ranks.size - 1


def test_means_by_hand():
    # One person ranked both items, the other the first: 1, 2 and 1; 2, 1 and 2.
    ranks = _whole([[1, 2], [2, 1]], [[1, 2], [_NAN, _NAN]])
    found = figures.summarise(ranks, ['x', 'y'])
    own = found['dimensions']['anthropomorphism']['x']
    assert own['n'] == 3
    assert own['mean'] == pytest.approx(4 / 3)
    assert own['std'] == pytest.approx(np.std([1, 2, 1], ddof=1))
    assert own['std_over_participants'] == pytest.approx(np.std([1.5, 1], ddof=1))
    assert own['std_over_items'] == pytest.approx(np.std([1, 2], ddof=1))
    assert found['overall']['x']['mean'] == pytest.approx(4 / 3)
    assert found['overall']['y']['mean'] == pytest.approx(5 / 3)


def test_overall_is_the_mean_of_the_dimensions_and_not_of_all_rankings():
    ranks = _whole([[1, 2], [2, 1]])
    # One dimension with a single ranking counts as much as the others.
    ranks[0, 0, 1] = _NAN
    assert figures.overall_ranks(ranks).tolist() == pytest.approx([4 / 3, 5 / 3])
    found = figures.summarise(ranks, ['x', 'y'])
    assert found['overall']['x']['n'] == 1


def test_the_mean_of_all_ranks_is_the_middle():
    ranks = _random(7, 5, 4)
    assert figures.overall_ranks(ranks).sum() == pytest.approx(4 * 2.5)


def test_intervals_hold_the_mean_and_narrow_with_more_rankings():
    widths = []
    for people, items in ((3, 4), (30, 40)):
        found = figures.summarise(_random(people, items, 5), list('abcde'))
        for own in (
            *found['overall'].values(),
            found['dimensions'][dimensions.NAMES[0]]['a'],
        ):
            low, high = own['interval']
            assert low < own['mean'] < high
        low, high = found['dimensions'][dimensions.NAMES[0]]['a']['interval']
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_a_judges_interval_draws_items_alone():
    ranks = _random(1, 300, 5)
    own = figures.summarise(ranks, list('abcde'))['dimensions'][dimensions.NAMES[0]][
        'a'
    ]
    low, high = own['interval']
    error = own['std'] / np.sqrt(300)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_people_who_differ_widen_the_interval():
    # Half of them always put x first and half last: 30 items do not make that sure.
    ranks = _whole(*([[[1, 2]] * 30] * 4 + [[[2, 1]] * 30] * 4))
    low, high = figures.summarise(ranks, ['x', 'y'])['overall']['x']['interval']
    assert high - low > 0.5


def test_one_ranking_has_no_spread():
    own = figures.summarise(_whole([[1, 2]]), ['x', 'y'])['overall']['x']
    assert own == {
        'mean': 1.0,
        'std': None,
        'std_over_participants': None,
        'std_over_items': None,
        'interval': None,
        'n': 1,
    }


def test_spearman_by_hand_and_as_scipy_has_it():
    one, other = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    # 1 - 6 * (1 + 1 + 1 + 1 + 0) / (5 * 24)
    assert figures.spearman(one, other) == pytest.approx(0.8)
    rng = np.random.default_rng(3)
    for _ in range(20):
        one, other = rng.integers(1, 6, (2, 40)) / 2  # With many ties.
        wanted = scipy.stats.spearmanr(one, other).statistic
        assert figures.spearman(one, other) == pytest.approx(wanted, abs=1e-12)


def test_spearman_where_there_is_none():
    assert figures.spearman(np.ones(3), np.arange(3.0)) is None
    assert figures.spearman(np.array([1.0, _NAN]), np.array([2.0, 3])) is None
    ours, theirs = np.array([1.0, _NAN, 2, 3]), np.array([1.0, 9, 2, _NAN])
    assert figures.spearman(ours, theirs) == pytest.approx(1.0)


def test_agreement_at_both_levels_equals_scipy():
    people, judge = _random(6, 8, 5), _random(1, 8, 5, seed=1)
    judge[2, 0, 3] = _NAN
    found = figures.agreement(people, judge)
    spearman = scipy.stats.spearmanr
    means = people.mean(axis=(1, 2)), np.nanmean(judge, axis=(1, 2))
    for d, name in enumerate(dimensions.NAMES):
        wanted = spearman(means[0][d], means[1][d]).statistic
        assert found['model_means'][name] == pytest.approx(wanted)
    overall = [x.mean(axis=0) for x in means]
    assert found['model_means']['overall'] == pytest.approx(
        spearman(*overall).statistic
    )
    assert found['model_means']['n'] == 5
    single = people.mean(axis=1).ravel(), judge[:, 0].ravel()
    there = ~np.isnan(single[1])
    wanted = spearman(single[0][there], single[1][there]).statistic
    assert found['items']['overall'] == pytest.approx(wanted)
    assert found['items']['n'] == 3 * 8 * 5 - 5


def _reply(backwards: bool, models: str | None) -> study.Reply:
    ranked = None if models is None else tuple(models)
    return study.Reply(1, 'storyline_quality', backwards, '', ranked)


@pytest.mark.parametrize(
    ('forwards', 'back', 'identical', 'pairs', 'first'),
    [
        ('abc', 'abc', 1.0, 1.0, 2.0),
        ('abc', 'acb', 0.0, 2 / 3, 1.5),
        # It keeps to the places: shown a b c, then c b a.
        ('abc', 'cba', 0.0, 0.0, 1.0),
        ('abc', None, None, None, 1.0),
    ],
)
def test_consistency(forwards, back, identical, pairs, first):
    replies = [_reply(False, forwards), _reply(True, back)]
    assert figures.consistency(replies, {1: 'abc'}) == {
        'n_replies': 2,
        'n_invalid': int(back is None),
        'n_rankings': int(back is not None),
        'identical': identical,
        'pairs': None if pairs is None else pytest.approx(pairs),
        'rank_of_first': first,
    }
