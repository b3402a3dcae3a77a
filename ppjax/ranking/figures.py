"""What rankings come to: mean ranks, their spread, and how far people and judges agree.

A table of ranks is an array [D, P, I, M] over dimensions, participants, items and
models, with NaN where a participant did not rank an item in a dimension.
"""

from collections.abc import Mapping, Sequence
from typing import Any
import warnings

import numpy as np
import scipy.stats

from ppjax.evaluation import bootstrap
from ppjax.ranking import dimensions, study


def array(
    rankings: Sequence[study.Ranking],
    participants: Sequence[str],
    models: Sequence[str],
    num_items: int,
) -> np.ndarray:
    """The ranks that some participants gave, float64 [D, P, I, M]."""
    shape = len(dimensions.NAMES), len(participants), num_items, len(models)
    ranks = np.full(shape, np.nan)
    rows, columns = (
        {name: number for number, name in enumerate(names)}
        for names in (participants, models)
    )
    for one in rankings:
        if one.participant in rows:
            place = (
                dimensions.NAMES.index(one.dimension),
                rows[one.participant],
                one.item - 1,
                columns[one.model],
            )
            ranks[place] = one.rank
    return ranks


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Of what is there; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _std(values: np.ndarray) -> float | None:
    """Of a sample, divided by one less than its size; None for fewer than two."""
    there = values[~np.isnan(values)]
    return float(np.std(there, ddof=1)) if len(there) > 1 else None


def _given(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def mean_ranks(ranks: np.ndarray) -> np.ndarray:
    """[D, P, I, M] -> [D, M], averaged over participants and items at once.

    Source: Persona-Pruner, arXiv:2606.14695, appendix C.
    """
    return _mean(ranks, axis=(1, 2))


def overall_ranks(ranks: np.ndarray) -> np.ndarray:
    """[D, P, I, M] -> [M]: the mean over the dimensions of `mean_ranks`, as in Table 5.

    NaN if a dimension has none.
    """
    return mean_ranks(ranks).mean(axis=0)


def resampled(ranks: np.ndarray) -> np.ndarray:
    """Mean ranks of samples of the participants and of the items, drawn anew.

    Both are drawn with replacement, each independently of the other and the same for
    all dimensions and models: other people would have ranked, and other questions been
    asked. A judge is one participant, so that there only items are drawn.

    Returns:
        [R, D, M]; NaN where a sample has no ranking.

    Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics, 2007.
    """
    _, people, items, _ = ranks.shape
    rng = np.random.default_rng(0)
    drawn = [
        rng.multinomial(size, np.full(size, 1 / size), bootstrap.RESAMPLES)
        for size in (people, items)
    ]
    there = ~np.isnan(ranks)
    weigh = 'rp,dpim,ri->rdm'
    sums, counts = (
        np.einsum(weigh, drawn[0], values, drawn[1], optimize=True)
        for values in (np.where(there, ranks, 0.0), there.astype(np.float64))
    )
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(counts > 0, sums / counts, np.nan)


def _interval(means: np.ndarray) -> list[float] | None:
    there = means[~np.isnan(means)]
    if not len(there):
        return None
    return [float(x) for x in np.quantile(there, [0.025, 0.975])]


def _figures(ranks: np.ndarray, mean: float, means: np.ndarray) -> dict[str, Any]:
    """Of one model in one dimension, or in all of them together.

    Args:
        ranks: [P, I].
        mean: of them.
        means: [R] of samples.
    """
    count = int((~np.isnan(ranks)).sum())
    return {
        'mean': _given(mean),
        'std': _std(ranks),
        'std_over_participants': _std(_mean(ranks, axis=1)),
        'std_over_items': _std(_mean(ranks, axis=0)),
        # One ranking says nothing of how others would be.
        'interval': _interval(means) if count > 1 else None,
        'n': count,
    }


def summarise(ranks: np.ndarray, models: Sequence[str]) -> dict[str, Any]:
    """Tables 5 and 9 of one kind of participants.

    Args:
        ranks: [D, P, I, M].
        models: [M].

    Returns:
        dimensions: dimension -> model -> figures. overall: model -> figures, of ranks
        averaged over the dimensions. Figures, None where there is nothing:
        mean: rank, 1 is the best; overall it is the mean of the dimensions' means.
        std: over all rankings, each of a participant and an item.
        std_over_participants, std_over_items: of these means.
        interval: 95 % bootstrap interval of `mean`; see `resampled`.
        n: rankings; overall, those in all dimensions.
    """
    means, drawn = mean_ranks(ranks), resampled(ranks)
    overall = overall_ranks(ranks)
    # NaN where one dimension is missing.
    together = ranks.mean(axis=0)
    return {
        'dimensions': {
            dimension: {
                model: _figures(ranks[d, :, :, m], means[d, m], drawn[:, d, m])
                for m, model in enumerate(models)
            }
            for d, dimension in enumerate(dimensions.NAMES)
        },
        'overall': {
            model: _figures(together[:, :, m], overall[m], drawn[:, :, m].mean(axis=1))
            for m, model in enumerate(models)
        },
    }


def spearman(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Rank correlation of two arrays of one shape, where both have a value.

    Equal values share the mean of their ranks. None if one does not vary, or fewer
    than two pairs are left.
    """
    both = ~(np.isnan(ours) | np.isnan(theirs))
    pair = ours[both], theirs[both]
    if any(len(np.unique(values)) < 2 for values in pair):
        return None
    return float(scipy.stats.spearmanr(*pair).statistic)


def agreement(people: np.ndarray, judge: np.ndarray) -> dict[str, Any]:
    """Spearman's rank correlation between people and a judge, at two levels.

    Args:
        people: [D, P, I, M].
        judge: [D, 1, I, M].

    Returns:
        model_means: of the models' mean ranks, M pairs: `overall`, as in Table 5, and
        in every dimension. items: of the ranks of the single answers, people's
        averaged over them: in every dimension, `overall` of all dimensions' together;
        `n` has their pairs.
    """
    means = [mean_ranks(ranks) for ranks in (people, judge)]
    single = [_mean(ranks, axis=1) for ranks in (people, judge)]  # [D, I, M]
    both = ~(np.isnan(single[0]) | np.isnan(single[1]))

    def by_dimension(values: Sequence[np.ndarray]) -> dict[str, float | None]:
        return {
            name: spearman(values[0][d], values[1][d])
            for d, name in enumerate(dimensions.NAMES)
        }

    return {
        'model_means': {
            'overall': spearman(overall_ranks(people), overall_ranks(judge)),
            **by_dimension(means),
            'n': people.shape[-1],
        },
        'items': {
            'overall': spearman(*single),
            **by_dimension(single),
            'n': int(both.sum()),
        },
    }


def consistency(
    replies: Sequence[study.Reply], shown: Mapping[int, Sequence[str]]
) -> dict[str, Any]:
    """How far a judge's rankings depend on the order in which answers stand.

    Args:
        replies: all of one judge.
        shown: item -> the models as they stood for it, forwards.

    Returns:
        Figures, None where there is nothing:
        n_replies, n_invalid: replies, and those that are no ranking.
        n_rankings: rankings of which both orders are there.
        identical: share of them that are the same both ways.
        pairs: share of the pairs of their answers that stand the same way round.
        rank_of_first: mean rank of the answer that stood first, over all valid
        replies; without a liking for places it is (M + 1) / 2.
    """
    valid = {(x.item, x.dimension, x.backwards): x.models for x in replies if x.models}
    same, pairs = [], []
    for (item, dimension, backwards), forwards in valid.items():
        other = valid.get((item, dimension, True))
        if backwards or other is None:
            continue
        same.append(forwards == other)
        places = {model: place for place, model in enumerate(other)}
        pairs += [
            places[above] < places[below]
            for number, above in enumerate(forwards)
            for below in forwards[number + 1 :]
        ]
    first = [
        models.index(shown[item][-1 if backwards else 0]) + 1
        for (item, _, backwards), models in valid.items()
    ]
    return {
        'n_replies': len(replies),
        'n_invalid': len(replies) - len(valid),
        'n_rankings': len(same),
        'identical': float(np.mean(same)) if same else None,
        'pairs': float(np.mean(pairs)) if pairs else None,
        'rank_of_first': float(np.mean(first)) if first else None,
    }
