"""Means, paired differences and their spread over seeds, from a sweep's results.

The figure that is compared is always the learned mask's NLL minus the dense model's
on the same held-out answers, in nats per answer token: lower is better.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
import dataclasses
from typing import Any, TypeVar

import numpy as np

from ppjax.sweeping import grid, results

Item = TypeVar('Item')
Key = TypeVar('Key', bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over figures.

    Attributes:
        mean: over all of them.
        std: sample standard deviation, over seeds, of each seed's mean; None if
            there are not two seeds.
        count: how many figures there are.
    """

    mean: float
    std: float | None
    count: int


def figure(values: Iterable[tuple[Any, float]]) -> Figure:
    """The mean of (seed, value) pairs, of which there is at least one."""
    by_seed = grouped(values, lambda pair: pair[0])
    means = [np.mean([x for _, x in pairs]) for pairs in by_seed.values()]
    everything = [x for pairs in by_seed.values() for _, x in pairs]
    return Figure(
        mean=float(np.mean(everything)),
        std=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        count=len(everything),
    )


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, in the order in which keys first come up."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def gains(found: Iterable[results.Result]) -> Figure:
    """Learned minus dense."""
    return figure((x.seed, x.gain) for x in found)


def _paired(
    first: Iterable[results.Result],
    second: Iterable[results.Result],
    *without: str,
) -> Figure | None:
    """Second minus first, over results alike on all axes but some; None if none are."""
    partners = {x.without(*without): x for x in first}
    pairs = [
        (x, partners[x.without(*without)])
        for x in second
        if x.without(*without) in partners
    ]
    if not pairs:
        return None
    return figure((x.seed, x.gain - partner.gain) for x, partner in pairs)


@dataclasses.dataclass(frozen=True)
class Compared:
    """A row of a comparison.

    Attributes:
        label: what is compared.
        gains: learned minus dense.
        difference: between cells alike on all axes but the one compared; None where
            there are none, and for what the others are compared with.
    """

    label: str
    gains: Sequence[Figure]
    difference: Figure | None


def marginals(found: Sequence[results.Result], axis: str) -> list[Compared]:
    """An axis's values, over all cells that have each; differences to the first.

    Masks learned from one persona's rows only.
    """
    by_value = grouped(
        (x for x in found if not x.is_global), lambda result: result.values[axis]
    )
    first = next(iter(by_value.values()), [])
    return [
        Compared(
            grid.text_of(value),
            [gains(own)],
            None if own is first else _paired(first, own, axis),
        )
        for value, own in by_value.items()
    ]


@dataclasses.dataclass(frozen=True)
class Setting:
    """All personas and seeds of one combination of the other axes.

    Attributes:
        values: on those axes.
        is_global: whether its masks were learned from all personas' rows.
        nll: model -> mean nats per answer token.
        gain: learned minus dense.
        personas: persona -> its own gain; empty without an axis persona.
    """

    values: dict[str, Any]
    is_global: bool
    nll: dict[str, float]
    gain: Figure
    personas: dict[str, Figure]


def settings(found: Sequence[results.Result]) -> list[Setting]:
    """What was measured by setting, global masks after the others."""

    def key(result: results.Result) -> tuple[bool, Any]:
        return result.is_global, result.without(grid.PERSONA, grid.SEED)

    made = []
    for (is_global, values), own in grouped(found, key).items():
        nll = {
            name: float(np.mean([x.nll[name] for x in own])) for name in results.MODELS
        }
        personas = {
            persona: gains(measured)
            for persona, measured in grouped(own, lambda x: x.persona).items()
            if persona is not None
        }
        made.append(Setting(dict(values), is_global, nll, gains(own), personas))
    return sorted(made, key=lambda setting: setting.is_global)


def versus_global(found: Sequence[results.Result]) -> list[Compared]:
    """Each persona's own and the global mask over all that else varies, then the mean.

    Differences are global minus own. Empty without global masks.
    """
    by_persona = {
        persona or 'Mean': own
        for persona, own in grouped(found, lambda x: x.persona).items()
    }
    rows = []
    for label, measured in [*by_persona.items(), ('Mean', found)]:
        own = [x for x in measured if not x.is_global]
        shared = [x for x in measured if x.is_global]
        difference = _paired(own, shared)
        if difference is not None:
            rows.append(Compared(label, [gains(own), gains(shared)], difference))
    return rows


def curves(
    found: Sequence[results.Result], axis: str
) -> list[tuple[dict[str, Any], dict[str | None, list[tuple[float, Figure]]]]]:
    """(values on the other axes, persona -> (value on the axis, gain) in its order).

    Masks learned from one persona's rows only.
    """
    own = [x for x in found if not x.is_global]
    made = []
    by_setting = grouped(own, lambda x: x.without(grid.PERSONA, grid.SEED, axis))
    for values, members in by_setting.items():
        lines = {
            persona: [
                (value, gains(points))
                for value, points in sorted(
                    grouped(measured, lambda x: x.values[axis]).items()
                )
            ]
            for persona, measured in grouped(members, lambda x: x.persona).items()
        }
        made.append((dict(values), lines))
    return made


def compared_axes(axes: Sequence[grid.Axis]) -> list[str]:
    """The axes whose values are compared: two or more, but no personas and seeds."""
    return [
        axis.name
        for axis in axes
        if len(axis.values) > 1 and axis.name not in (grid.PERSONA, grid.SEED)
    ]


def label(values: dict[str, Any], axes: Sequence[grid.Axis]) -> str:
    """Values for people, without those that are the same in all of the grid."""
    varied = compared_axes(axes)
    return grid.label_of({k: v for k, v in values.items() if k in varied})
