"""Charts of results: bars with whiskers, stacked bars, turns, curves."""

from collections.abc import Sequence
import dataclasses
import itertools
import math
import textwrap
from typing import Any

from matplotlib import ticker
import numpy as np

from ppjax.pages import drawing

# Colours of the page and kinds of line: twenty that can be told apart.
_COLOURS = ('learned', 'heldout', 'one_shot', 'random', 'dense')
_STYLES = ('solid', 'dashed', 'dotted', 'dashdot')
# Share of an axis between two places that have room for their numbers.
_LEAST_GAP = 0.06


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of `bar_groups_plot`.

    Attributes:
        paint: a colour of the page.
        value: its length.
        interval: the ends of its whisker, or None.
        text: beside it.
    """

    paint: str
    value: float
    interval: tuple[float, float] | None
    text: str

    @property
    def end(self) -> float:
        """How far it reaches, whisker included."""
        return max(self.value, self.interval[1] if self.interval else 0.0)


@dataclasses.dataclass(frozen=True)
class BarGroup:
    """Bars under one name.

    Attributes:
        label: at the axis.
        bars: from top to bottom.
        reference: a dotted line across them, or None.
    """

    label: str
    bars: Sequence[Bar]
    reference: float | None = None


# Of labels at an axis: letters that leave room for bars, and a line's height in bars.
_LETTERS = 26
_LINE = 0.6


def _lines(label: str) -> list[str]:
    """A label in lines that leave room for bars."""
    return textwrap.wrap(label, _LETTERS) or [label]


def _clear(bar: Bar, reference: float | None, end: float) -> float:
    """Where what is written behind a bar begins: behind a line that would cross it."""
    width = (0.05 + 0.03 * len(bar.text)) * end
    if reference is not None and bar.end <= reference < bar.end + width:
        return reference
    return bar.end


def bar_groups_plot(
    title: str,
    groups: Sequence[BarGroup],
    legend: Sequence[tuple[str, str, str]] = (),
    note: str = '',
) -> drawing.Drawing | None:
    """Bars from zero with whiskers; None if there is no bar."""
    groups = [group for group in groups if group.bars]
    if not groups:
        return None
    end = max(bar.end for group in groups for bar in group.bars)
    end = max(end, *(group.reference or 0.0 for group in groups)) or 1.0
    labels = [_lines(group.label) for group in groups]
    # What a label is taller than its bars.
    beyond = [
        max(0.0, _LINE * len(label) - len(group.bars))
        for label, group in zip(labels, groups, strict=True)
    ]
    count = sum(len(group.bars) for group in groups) + sum(beyond)

    def paint(axes: Any) -> None:
        place = 0.0
        ticks: list[tuple[float, str]] = []
        for group, lines, more in zip(groups, labels, beyond, strict=True):
            place += more / 2
            first = place
            for bar in group.bars:
                axes.barh(
                    place, bar.value, height=0.74, color=drawing.PAINTS[bar.paint]
                )
                if bar.interval:
                    _whisker(axes, place, bar)
                start = _clear(bar, group.reference, end)
                axes.text(start + 0.025 * end, place, bar.text, va='center')
                place += 1
            if group.reference is not None:
                # The wider one lets it be seen on bars of any colour.
                for colour, width in (('card', 3.0), ('ink', 1.3)):
                    axes.vlines(
                        group.reference,
                        first - 0.5,
                        place - 0.5,
                        color=drawing.PAINTS[colour],
                        linestyle='solid' if colour == 'card' else (0, (1.5, 1.2)),
                        linewidth=width,
                    )
            # A line has a tick of its own: several under one would not end alike.
            top = (first + place - 1 - _LINE * (len(lines) - 1)) / 2
            ticks += [(top + _LINE * i, line) for i, line in enumerate(lines)]
            place += 0.5 + more / 2
        _label_bars(axes, *zip(*ticks, strict=True))
        axes.set_ylim(place - 0.9, -0.6)
        axes.set_xlim(0, 1.28 * end)

    height = 0.2 + 0.27 * count + 0.14 * len(groups)
    return drawing.Drawing(title, paint, height, legend, note)


def _label_bars(axes: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    """Labels beside horizontal bars, whose lengths are written at their ends."""
    axes.set_yticks(places, labels)
    axes.tick_params(axis='y', labelcolor=drawing.PAINTS['ink'])
    axes.set_xticks([])
    axes.grid(False)
    axes.spines[['top', 'right', 'bottom']].set_visible(False)


def _whisker(axes: Any, place: float, bar: Bar) -> None:
    assert bar.interval
    # Twice: it has to be seen on its own bar and beside it, light or dark.
    for colour, width in (('card', 3.2), ('ink', 1.2)):
        axes.plot(
            bar.interval,
            [place, place],
            color=drawing.PAINTS[colour],
            linewidth=width,
            marker='|',
            markersize=7 if colour == 'ink' else 9,
            markeredgewidth=width,
            solid_capstyle='butt',
        )


def stacked_plot(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float]], str]],
    legend: Sequence[tuple[str, str, str]],
    note: str = '',
) -> drawing.Drawing | None:
    """Stacked bars; None if there are none.

    Args:
        title: above the chart.
        rows: (label, (colour, length) of each part, text beside the bar).
        legend: of the colours.
        note: below it.
    """
    if not rows:
        return None
    end = max(sum(length for _, length in parts) for _, parts, _ in rows) or 1.0

    def paint(axes: Any) -> None:
        for place, (_, parts, text) in enumerate(rows):
            left = 0.0
            for colour, length in parts:
                axes.barh(
                    place, length, left=left, height=0.6, color=drawing.PAINTS[colour]
                )
                left += length
            axes.text(left + 0.025 * end, place, text, va='center')
        _label_bars(axes, range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.45 * end)

    return drawing.Drawing(title, paint, 0.3 + 0.36 * len(rows), legend, note)


@dataclasses.dataclass(frozen=True)
class DialogueLine:
    """A model's line over the turns of a dialogue.

    Attributes:
        paint: a colour of the page.
        style: of the line; a name of the page's legend.
        turns: [n].
        means: [n].
        stds: [n], NaN where there is none.
    """

    paint: str
    style: str
    turns: np.ndarray
    means: np.ndarray
    stds: np.ndarray


def turns_plot(
    title: str, courses: Sequence[DialogueLine], legend: Sequence[tuple[str, str, str]]
) -> drawing.Drawing | None:
    """Mean scores of 1 to 5 over turns, with a band of one standard deviation."""
    if not courses:
        return None

    def paint(axes: Any) -> None:
        for course in courses:
            colour = drawing.PAINTS[course.paint]
            axes.fill_between(
                course.turns,
                np.maximum(course.means - course.stds, 1),
                np.minimum(course.means + course.stds, 5),
                color=colour,
                alpha=0.16,
                linewidth=0,
            )
            axes.plot(
                course.turns,
                course.means,
                color=colour,
                linestyle=course.style,
                marker='o',
            )
        axes.set_ylim(0.9, 5.1)
        axes.set_yticks([1, 2, 3, 4, 5])
        axes.set_xlabel('turn')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(10, integer=True))

    note = 'Bands: one standard deviation, none where it is not known.'
    return drawing.Drawing(title, paint, 2.7, legend, note)


def curves_plot(
    title: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float, float, float]]]],
    *,
    axis: str,
    unit: str,
    reference: str = '',
    from_zero: bool = True,
) -> drawing.Drawing:
    """Lines over an axis of numbers, with whiskers.

    Args:
        title: above it.
        lines: (name or '', (place, value, how far its whisker reaches down, and up)).
        axis: what the places are.
        unit: of the values.
        reference: names a line at 0, across places on a logarithmic axis.
        from_zero: without one, whether values begin at 0 as places do.
    """
    styles = [(colour, style) for style in _STYLES for colour in _COLOURS]
    drawn = list(zip(styles * (1 + len(lines) // len(styles)), lines, strict=False))

    def paint(axes: Any) -> None:
        for (colour, style), (_, points) in drawn:
            places, values, below, above = zip(*points, strict=True)
            axes.errorbar(
                places,
                values,
                yerr=[below, above],
                color=drawing.PAINTS[colour],
                linestyle=style,
                marker='o',
                markersize=4,
                linewidth=1.7,
                elinewidth=1.0,
                capsize=2.5,
            )
        if reference:
            muted = drawing.PAINTS['muted']
            axes.axhline(0, color=muted, linestyle='--', linewidth=1.0, zorder=1)
            axes.set_xscale('log')
        else:
            axes.set_xlim(left=0)
            if from_zero:
                axes.set_ylim(bottom=0)
        ticks = sorted({point[0] for _, points in lines for point in points})
        gaps = [after - before for before, after in itertools.pairwise(ticks)]
        if not reference and min(gaps, default=math.inf) < _LEAST_GAP * ticks[-1]:
            # Their numbers would lie on each other.
            axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        else:
            axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
        axes.set_xlabel(axis)
        axes.set_ylabel(unit)

    legend = [(colour, style, name) for (colour, style), (name, _) in drawn if name]
    if reference:
        legend.append(('muted', 'dashed', reference))
    return drawing.Drawing(title, paint, height=2.9, legend=legend)
