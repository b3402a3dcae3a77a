"""Plots as inline SVG, in the colours and the font of the page that shows them."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import io
import re
from typing import Any

import markupsafe
import matplotlib
from matplotlib import colors
from matplotlib import figure as figure_lib
import numpy as np

# Drawn in these colours, then replaced by the page's CSS variables, so that one
# drawing serves the light and the dark theme.
PAINTS = {
    name: f'#0000{number:02x}'
    for number, name in enumerate(
        (
            'ink',
            'muted',
            'line',
            'learned',
            'heldout',
            'dense',
            'one_shot',
            'random',
            'card',
        ),
        start=1,  # Matplotlib leaves out black, SVG's own default.
    )
}
# Read at that strength on white and on black alike; weaker is more transparent.
_HEAT_COLOUR = '#3b7ddd'
_STYLE = {
    'axes.axisbelow': True,
    'axes.edgecolor': PAINTS['line'],
    'axes.formatter.use_mathtext': False,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.labelcolor': PAINTS['muted'],
    'axes.spines.right': False,
    'axes.spines.top': False,
    'font.size': 9.5,
    'grid.color': PAINTS['line'],
    'grid.linewidth': 0.6,
    'lines.linewidth': 1.7,
    'lines.markersize': 3.5,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'ppjax',
    'text.color': PAINTS['ink'],
    'text.parse_math': False,
    'xtick.color': PAINTS['line'],
    'xtick.labelcolor': PAINTS['muted'],
    'ytick.color': PAINTS['line'],
    'ytick.labelcolor': PAINTS['muted'],
    'ytick.left': False,
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A plot as the page shows it, drawn once it is.

    Attributes:
        title: above it; no two plots of a page have the same.
        paint: draws on Matplotlib axes, in `PAINTS`; None if the rest says it all.
        height: in inches; all are 4 wide.
        legend: (colour, kind of line, text).
        note: below it.
        label: names the drawing itself, where that is not its title.
    """

    title: str
    paint: Callable[[Any], None] | None
    height: float = 2.5
    legend: Sequence[tuple[str, str, str]] = ()
    note: str = ''
    label: str = ''

    @property
    def svg(self) -> markupsafe.Markup:
        """Inline SVG in the page's own colours and font."""
        if self.paint is None:
            return markupsafe.Markup('')
        label = self.label or self.title
        with matplotlib.rc_context(_STYLE):
            # 4 inches: on a phone's 340 pixels the letters shrink by an eighth only.
            figure = figure_lib.Figure(figsize=(4.0, self.height), layout='constrained')
            self.paint(figure.add_subplot())
            text = io.StringIO()
            nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
            figure.savefig(text, format='svg', transparent=True, metadata=nothing)
        drawn = text.getvalue()
        drawn = drawn[drawn.index('<svg') :]
        for name, paint_code in PAINTS.items():
            drawn = re.sub(rf'{paint_code}\b', f'var(--{name})', drawn)
        drawn = re.sub(r'<style.*?</style>', '', drawn, flags=re.DOTALL)
        drawn = re.sub(r'font-family: [^;"]*;?', '', drawn)
        # Ids are unique within a drawing only, and only marks and clips are referred
        # to.
        used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', drawn))
        prefix = re.sub(r'\W+', '-', label.lower())

        def rename(match: re.Match[str]) -> str:
            return f' id="{prefix}-{match[1]}"' if match[1] in used else ''

        drawn = re.sub(r'\sid="([^"]*)"', rename, drawn)
        drawn = re.sub(r'(href="|url\()#', rf'\1#{prefix}-', drawn)
        size = re.compile(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"')
        spoken = f' role="img" aria-label="{markupsafe.escape(label)}"'
        drawn = size.sub(lambda match: match[1] + spoken, drawn, count=1)
        return markupsafe.Markup(drawn)


def fades() -> colors.ListedColormap:
    """Colours of heat maps, from transparent to full."""
    shades = np.linspace(0, 1, 256)
    return colors.ListedColormap([(*colors.to_rgb(_HEAT_COLOUR), x) for x in shades])


def readable_limits(
    curves: np.ndarray, references: Iterable[float]
) -> tuple[float, float]:
    """y-limits that show the curves, and of the reference lines those near by.

    Args:
        curves: values to show; outliers may be cut.
        references: horizontal lines. These, and the curves' extremes, are left
            outside if they are farther off than three quarters of the range that
            94 % of the curves' values take.
    """
    low, high = np.quantile(curves, [0.03, 0.97])
    reach = 0.75 * max(high - low, 0.05 * abs(high), 1e-3)
    wanted = [curves.min(), curves.max(), *references]
    near = [x for x in wanted if low - reach <= x <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.07 * max(high - low, 0.02 * abs(high), 1e-3)
    return float(low - margin), float(high + margin)
