"""Whether replies keep to the persona turn after turn, in figures.

Each answer of a dialogue has a score of 1 to 5, or none. A turn's mean is over
personas, of each one's mean over its dialogues; the slope is that of the line fitted
to these means.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import numpy as np

from ppjax.evaluation import bootstrap


def summarise(
    scores: np.ndarray,
    judged: np.ndarray,
    held: np.ndarray,
    groups: Sequence[str],
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of D dialogues of N turns.

    For the intervals whole dialogues are drawn: the turns of one are not independent.

    Args:
        scores: [D, N], NaN where there is none.
        judged: bool [D, N], where there is a verdict.
        held: bool [D, N], where there is an answer.
        groups: [D], whose dialogue each is.
        resamples: draws of D dialogues with replacement.
        seed: of the draws.

    Returns:
        turns: of each `turn`, from 1: `n` answers; of these `n_scored`, with a score,
            the others enter neither figure; `n_failed`, that the judge gave no verdict
            on; `n_unscored`, a verdict but no number; `mean` over personas; `std` over
            personas, divided by one less than their number. None is nothing.
        mean: over turns of their means.
        slope: points a turn, by least squares over the turns' means.
        change: the last turn's mean less the first's.
        The last three have a `value`, None where turns are missing that it needs, and
        its 95 % bootstrap `interval`, None for a single dialogue.

    Raises:
        ValueError: if the shapes differ, or there is no dialogue or turn.
    """
    if not (scores.ndim == 2 and scores.size and len(groups) == len(scores)):
        raise ValueError(
            f'scores must be [D, N] of {len(groups)} dialogues, got {scores.shape}.'
        )
    if not scores.shape == judged.shape == held.shape:
        raise ValueError(
            f'scores, judged and held must be alike, got {scores.shape}, '
            f'{judged.shape} and {held.shape}.'
        )
    count = len(scores)
    once = np.ones((1, count))
    by_group = _group_means(scores, groups, once)[:, 0]  # [P, N]
    curve = _over_groups(by_group[:, None])[0]  # [N]
    scored = ~np.isnan(scores)
    turns = []
    for turn, column in enumerate(by_group.T):
        there = column[~np.isnan(column)]
        turns.append(
            {
                'turn': turn + 1,
                'n': int(held[:, turn].sum()),
                'n_scored': int(scored[:, turn].sum()),
                'n_failed': int((held & ~judged)[:, turn].sum()),
                'n_unscored': int((judged & ~scored)[:, turn].sum()),
                'mean': _number(curve[turn]),
                'std': float(np.std(there, ddof=1)) if len(there) > 1 else None,
            }
        )
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    curves = _over_groups(_group_means(scores, groups, drawn))  # [R, N]

    def trend(figure: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        value, figures = _number(figure(curve[None])[0]), figure(curves)
        there = figures[~np.isnan(figures)]
        interval = None
        if value is not None and count > 1 and len(there):
            interval = tuple(np.quantile(there, [0.025, 0.975]).tolist())
        return {'value': value, 'interval': interval}

    return {
        'turns': turns,
        'mean': trend(_means),
        'slope': trend(slopes),
        'change': trend(_changes),
    }


def slopes(curves: np.ndarray) -> np.ndarray:
    """Least-squares slopes of R courses over the turns that they have.

    Args:
        curves: [R, N], NaN where a turn has no mean.

    Returns:
        [R], in points a turn; NaN with fewer than two turns.
    """
    there = ~np.isnan(curves)
    values = np.where(there, curves, 0.0)
    turns = np.broadcast_to(np.arange(curves.shape[1], dtype=np.float64), curves.shape)
    with np.errstate(invalid='ignore', divide='ignore'):
        count = there.sum(axis=1)
        centre = (turns * there).sum(axis=1) / count
        offsets = np.where(there, turns - centre[:, None], 0.0)
        return (offsets * values).sum(axis=1) / (offsets**2).sum(axis=1)


def _changes(curves: np.ndarray) -> np.ndarray:
    """[R, N] -> [R], the last turn less the first; NaN where there is but one."""
    changes = curves[:, -1] - curves[:, 0]
    return changes if curves.shape[1] > 1 else np.full_like(changes, math.nan)


def _group_means(
    scores: np.ndarray, groups: Sequence[str], weights: np.ndarray
) -> np.ndarray:
    """Means over the dialogues of each persona.

    Args:
        scores: [D, N].
        groups: [D].
        weights: [R, D], how often each dialogue counts.

    Returns:
        [P, R, N], NaN where a persona has no score.
    """
    there = ~np.isnan(scores)
    values = np.where(there, scores, 0.0)
    names = np.asarray(groups)
    means = []
    for name in dict.fromkeys(groups):
        own = names == name
        with np.errstate(invalid='ignore', divide='ignore'):
            means.append(
                (weights[:, own] @ values[own]) / (weights[:, own] @ there[own])
            )
    return np.stack(means)


def _over_groups(means: np.ndarray) -> np.ndarray:
    """[P, R, N] -> [R, N], over the personas that are there."""
    there = ~np.isnan(means)
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(there, means, 0.0).sum(axis=0) / there.sum(axis=0)


def _means(curves: np.ndarray) -> np.ndarray:
    """[R, N] -> [R], over the turns that are there."""
    return _over_groups(curves.T[..., None])[:, 0]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
