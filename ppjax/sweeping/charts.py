"""Charts of a sweep: dots with whiskers."""

from collections.abc import Sequence
from typing import Any

from matplotlib import ticker

from ppjax.pages import drawing
from ppjax.sweeping import aggregate

UNIT = 'learned − dense, nats per token'
_PAINTS = ('learned', 'heldout')


def dots_plot(
    title: str, rows: Sequence[aggregate.Compared], names: Sequence[str] = ()
) -> drawing.Drawing:
    """Gains as dots with whiskers, and a line at 0, where the dense model is.

    Args:
        title: above it.
        rows: from the top.
        names: of each one's gains, where there are two.
    """

    def paint(axes: Any) -> None:
        axes.axvline(0, color=drawing.PAINTS['dense'], linestyle='--', linewidth=1.2)
        for place, row in enumerate(rows):
            for index, (colour, gain) in enumerate(
                zip(_PAINTS, row.gains, strict=False)
            ):
                # Side by side, so that whiskers do not lie on one another.
                height = place + 0.26 * (index - (len(row.gains) - 1) / 2)
                axes.errorbar(
                    gain.mean,
                    height,
                    xerr=gain.std,
                    color=drawing.PAINTS[colour],
                    marker='o',
                    markersize=5.5,
                    linewidth=1.5,
                    capsize=3,
                )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis='y', labelcolor=drawing.PAINTS['ink'])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis='y')
        axes.grid(True, axis='x')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.set_xlabel(UNIT)

    height = 0.8 + len(rows) * (0.2 + 0.13 * len(rows[0].gains))
    legend = [(c, 'block', name) for c, name in zip(_PAINTS, names, strict=False)]
    legend.append(('dense', 'dashed', 'Dense model'))
    return drawing.Drawing(title, paint, height=height, legend=legend)
