"""Means over personas and seeds, their intervals, and paired differences.

Items of a persona's own are drawn within that persona, and personas count alike. Items
that are the same for all personas are drawn once for all: a mean over personas knows
no more of the questions of PIQA than one of them.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from ppjax.comparing import measures
from ppjax.evaluation import bootstrap

Figures = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and what is known of it.

    Attributes:
        value: the mean over personas of ratios of sums over items.
        interval: 95 % percentile interval over items.
        std: over seeds, of each seed's mean; None if there are not two.
        spread: standard deviation over items, of an item's own ratio.
        count: items in all.
    """

    value: float
    interval: tuple[float, float]
    std: float | None
    spread: float
    count: int


@dataclasses.dataclass(frozen=True)
class _Group:
    """The items of a persona, or of all: means over seeds.

    Attributes:
        names: of the items.
        values: [S, n] sums by seed.
        weights: [n].
    """

    names: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray

    def means(self) -> np.ndarray:
        """[S]"""
        return self.values.sum(axis=1) / self.weights.sum()


def estimate(cells: Sequence[Figures], measure: str) -> Estimate | None:
    """A measure over cells of all personas and seeds of one row of a table.

    Args:
        cells: their figures.
        measure: one of `measures.MEASURES`.

    Returns:
        None if no cell has it.
    """
    groups = _groups(cells, measure)
    return _estimate(groups, measures.MEASURES[measure]) if groups else None


def difference(
    cells: Sequence[Figures], others: Sequence[Figures], measure: str
) -> Estimate | None:
    """A measure of cells less that of others, item by item.

    Of the personas that both have. None if there is none, or items differ.
    """
    first, second = _groups(cells, measure), _groups(others, measure)
    paired = {}
    for name in first.keys() & second.keys():
        own, other = first[name], second[name]
        if own.names != other.names or (own.weights != other.weights).any():
            return None
        mean = other.values.mean(axis=0, keepdims=True)
        seeds = other.values if len(other.values) == len(own.values) else mean
        paired[name] = dataclasses.replace(own, values=own.values - seeds)
    return _estimate(paired, measures.MEASURES[measure]) if paired else None


def _groups(cells: Iterable[Figures], measure: str) -> dict[str, _Group]:
    by_persona: dict[str, dict[str, Sequence[measures.Item]]] = {}
    of_persona = measures.MEASURES[measure].of_persona
    for number, cell in enumerate(cells):
        if measure not in cell['measures']:
            continue
        persona = str(cell['values'].get('persona', ''))
        # Without an axis of seeds each persona has one cell.
        seed = str(cell['values'].get('seed', ''))
        key = (persona, seed) if of_persona else ('', f'{persona} {seed} {number}')
        by_persona.setdefault(key[0], {})[key[1]] = cell['measures'][measure]
    found = {}
    for persona, seeds in sorted(by_persona.items()):
        own = [seeds[name] for name in sorted(seeds)]
        names = tuple(item[0] for item in own[0])
        if any(tuple(item[0] for item in other) != names for other in own):
            continue
        found[persona] = _Group(
            names,
            np.array([[item[1] for item in other] for other in own], np.float64),
            np.array([item[2] for item in own[0]], np.float64),
        )
    return found


def _estimate(groups: Mapping[str, _Group], of: measures.Measure) -> Estimate:
    rng = np.random.default_rng(0)
    drawn = np.zeros(bootstrap.RESAMPLES)
    for group in groups.values():
        count = len(group.names)
        places = rng.integers(count, size=(bootstrap.RESAMPLES, count))
        values = group.values.mean(axis=0)
        drawn += values[places].sum(axis=1) / group.weights[places].sum(axis=1)
    low, high = np.quantile(drawn / len(groups), [0.025, 0.975])
    by_seed = [group.means() for group in groups.values()]
    std = None
    seeds = {len(x) for x in by_seed}
    if of.of_persona and len(seeds) == 1 and seeds != {1}:
        std = float(np.mean(by_seed, axis=0).std(ddof=1))
    ratios = np.concatenate(
        [x.values.mean(axis=0) / x.weights for x in groups.values()]
    )
    return Estimate(
        value=float(np.mean([x.mean() for x in by_seed])),
        interval=(float(low), float(high)),
        std=std,
        spread=float(ratios.std(ddof=1)) if len(ratios) > 1 else 0.0,
        count=len(ratios),
    )
