"""Whether replies keep to the persona turn after turn, in figures.

Each answer of a dialogue has a score of 1 to 5, or none. A turn's mean is over
personas, of each one's mean over its dialogues; the slope is that of the line fitted
to these means.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from ppjax.evaluation import bootstrap


@dataclasses.dataclass(frozen=True)
class TurnFigures:
    """One turn of all dialogues; None where there is nothing.

    Attributes:
        turn: from 1.
        n: answers.
        n_scored: with a score; the others enter neither figure.
        n_failed: that the judge gave no verdict on.
        n_unscored: that it gave a verdict on, but no number.
        mean: over personas.
        std: over personas, divided by one less than their number.
    """

    turn: int
    n: int
    n_scored: int
    n_failed: int
    n_unscored: int
    mean: float | None
    std: float | None


@dataclasses.dataclass(frozen=True)
class Trend:
    """A figure of the whole course.

    Attributes:
        value: None where turns are missing that it needs.
        interval: its 95 % bootstrap interval; None for a single dialogue.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Course:
    """One model's dialogues.

    Attributes:
        turns: one a turn.
        mean: over turns of their means.
        slope: points a turn, by least squares over the turns' means.
        change: the last turn's mean less the first's.
    """

    turns: tuple[TurnFigures, ...]
    mean: Trend
    slope: Trend
    change: Trend


def summarise(
    scores: np.ndarray,
    judged: np.ndarray,
    held: np.ndarray,
    groups: Sequence[str],
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Course:
    """The figures of D dialogues of N turns.

    For the intervals whole dialogues are drawn: the turns of one are not independent.

    Args:
        scores: [D, N], NaN where there is none.
        judged: bool [D, N], where there is a verdict.
        held: bool [D, N], where there is an answer.
        groups: [D], whose dialogue each is.
        resamples: draws of D dialogues with replacement.
        seed: of the draws.

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
            TurnFigures(
                turn=turn + 1,
                n=int(held[:, turn].sum()),
                n_scored=int(scored[:, turn].sum()),
                n_failed=int((held & ~judged)[:, turn].sum()),
                n_unscored=int((judged & ~scored)[:, turn].sum()),
                mean=_number(curve[turn]),
                std=float(np.std(there, ddof=1)) if len(there) > 1 else None,
            )
        )
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    curves = _over_groups(_group_means(scores, groups, drawn))  # [R, N]

    def trend(figure: np.ndarray, figures: np.ndarray) -> Trend:
        value = _number(figure[0])
        there = figures[~np.isnan(figures)]
        if value is None or count < 2 or not len(there):
            return Trend(value, None)
        low, high = np.quantile(there, [0.025, 0.975])
        return Trend(value, (float(low), float(high)))

    mine = curve[None]
    return Course(
        turns=tuple(turns),
        mean=trend(_means(mine), _means(curves)),
        slope=trend(slopes(mine), slopes(curves)),
        change=trend(mine[:, -1] - mine[:, 0], curves[:, -1] - curves[:, 0])
        if scores.shape[1] > 1
        else Trend(None, None),
    )


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
