"""Charts of a sweep: curves over an axis, and dots with whiskers."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from matplotlib import ticker

from ppjax.pages import drawing
from ppjax.sweeping import aggregate

# Colours of the page and kinds of line: twenty that can be told apart.
_COLOURS = ('learned', 'heldout', 'one_shot', 'random', 'dense')
_STYLES = ('solid', 'dashed', 'dotted', 'dashdot')
_UNIT = 'learned − dense, nats per token'


@dataclasses.dataclass(frozen=True)
class Dot:
    """One dot of `dots_plot`.

    Attributes:
        paint: a colour of the page.
        value: where it is.
        std: half of its whisker, or None.
    """

    paint: str
    value: float
    std: float | None


def dots_plot(
    title: str,
    rows: Sequence[tuple[str, Sequence[Dot]]],
    legend: Sequence[tuple[str, str, str]] = (),
) -> drawing.Drawing:
    """Dots with whiskers in rows, and a line at 0, where the dense model is."""

    def paint(axes: Any) -> None:
        axes.axvline(0, color=drawing.PAINTS['dense'], linestyle='--', linewidth=1.2)
        for place, (_, dots) in enumerate(rows):
            for index, dot in enumerate(dots):
                # Side by side, so that whiskers do not lie on one another.
                height = place + 0.26 * (index - (len(dots) - 1) / 2)
                axes.errorbar(
                    dot.value,
                    height,
                    xerr=dot.std,
                    color=drawing.PAINTS[dot.paint],
                    marker='o',
                    markersize=5.5,
                    linewidth=1.5,
                    capsize=3,
                )
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.tick_params(axis='y', labelcolor=drawing.PAINTS['ink'])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis='y')
        axes.grid(True, axis='x')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.set_xlabel(_UNIT)

    most = max(len(dots) for _, dots in rows)
    height = 0.8 + len(rows) * (0.2 + 0.13 * most)
    legend = [*legend, ('dense', 'dashed', 'Dense model')]
    return drawing.Drawing(title, paint, height=height, legend=legend)


def curves_plot(
    title: str,
    axis: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, aggregate.Figure]]]],
) -> drawing.Drawing:
    """A line for each name over an axis of numbers, whiskers over seeds."""
    styles = [(colour, style) for style in _STYLES for colour in _COLOURS]
    drawn = list(zip(styles * (1 + len(lines) // len(styles)), lines, strict=False))

    def paint(axes: Any) -> None:
        axes.axhline(0, color=drawing.PAINTS['muted'], linestyle='--', linewidth=1.0)
        for (colour, style), (_, points) in drawn:
            axes.errorbar(
                [place for place, _ in points],
                [figure.mean for _, figure in points],
                yerr=[figure.std or 0.0 for _, figure in points],
                color=drawing.PAINTS[colour],
                linestyle=style,
                marker='o',
                markersize=4,
                elinewidth=1.0,
                capsize=2.5,
            )
        places = sorted({place for _, points in lines for place, _ in points})
        axes.set_xscale('log')
        axes.xaxis.set_major_locator(ticker.FixedLocator(places))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
        axes.set_xlabel(axis)
        axes.set_ylabel(_UNIT)

    legend = [(colour, style, name) for (colour, style), (name, _) in drawn]
    return drawing.Drawing(
        title, paint, height=2.9, legend=[*legend, ('muted', 'dashed', 'Dense model')]
    )
