"""The rows of tables: cells that differ in persona and seed alone."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ppjax.comparing import cells as cells_lib
from ppjax.comparing import config as config_lib
from ppjax.comparing import measures, methods
from ppjax.comparing import statistics as statistics_lib
from ppjax.sweeping import grid


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one sparsity, recovered in one way.

    Attributes:
        method: of `methods.METHODS`.
        recovery: as the grid has it.
        sparsity: of the persona mask that it is no smaller than; None of the dense
            model, which is as it is.
        more: values on other axes, as text.
        cells: figures of its cells, of all personas and seeds.
    """

    method: str
    recovery: str
    sparsity: float | None
    more: str
    cells: tuple[Mapping[str, Any], ...]

    @property
    def label(self) -> str:
        """The method for people, with what else tells it from others."""
        name = methods.METHODS[self.method].label
        return f'{name}, {self.more}' if self.more else name

    @property
    def full_label(self) -> str:
        """And the sparsity before it."""
        share = '0 %' if self.sparsity is None else f'{100 * self.sparsity:g} %'
        return f'{share} {self.label}'

    @property
    def is_rival(self) -> bool:
        return methods.METHODS[self.method].rival

    @property
    def minutes(self) -> float | None:
        """To make one of its models, on average; None if nothing is made."""
        found = [cell['minutes'] for cell in self.cells if cell.get('minutes')]
        return sum(found) / len(found) if found else None

    def estimate(self, measure: str) -> statistics_lib.Estimate | None:
        """See `statistics.estimate`."""
        return statistics_lib.estimate(self.cells, measure)


def of_cells(
    cells: Sequence[cells_lib.Cell], figures: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """Rows: by recovery in the order of the grid, sparsity, and method in that order.

    Args:
        cells: in the order of the grid.
        figures: of each by its name.
    """
    found: dict[tuple[str, str, float | None, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        method = cell.values[config_lib.METHOD]
        fixed = config_lib.FIXED | {config_lib.PERSONA}
        more = {k: x for k, x in cell.shown.items() if k not in fixed}
        key = (
            method,
            cell.values[config_lib.RECOVERY],
            None if method == methods.DENSE else cell.values[config_lib.SPARSITY],
            grid.label_of(more) if more else '',
        )
        found.setdefault(key, []).append(figures[cell.name])
    rows = [Row(*key, tuple(own)) for key, own in found.items()]
    recoveries = list(dict.fromkeys(row.recovery for row in rows))
    order = list(methods.METHODS)

    def place(row: Row) -> tuple[int, float, int]:
        return (
            recoveries.index(row.recovery),
            row.sparsity or 0.0,
            order.index(row.method),
        )

    return sorted(rows, key=place)


def present(rows: Sequence[Row]) -> list[str]:
    """The measures that some row has, in the order of tables."""
    there = {name for row in rows for cell in row.cells for name in cell['measures']}
    return [name for name in measures.MEASURES if name in there]


def dense(rows: Sequence[Row]) -> Row | None:
    """The dense model as it is."""
    none = config_lib.NO_RECOVERY
    found = [x for x in rows if x.method == methods.DENSE and x.recovery == none]
    return found[0] if found else None


def best_rival(rows: Sequence[Row], row: Row, measure: str) -> Row | None:
    """The rival beside a row that has the best mean, at its sparsity and recovery."""
    sign = 1 if measures.MEASURES[measure].lower_is_better else -1
    found = [
        (sign * own.value, number)
        for number, other in enumerate(rows)
        if other.is_rival
        and other is not row
        and (other.sparsity, other.recovery) == (row.sparsity, row.recovery)
        and (own := other.estimate(measure))
    ]
    return rows[min(found)[1]] if found else None
