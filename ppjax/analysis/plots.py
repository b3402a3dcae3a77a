"""Plots of a comparison of masks: heat maps, dendrogram, scatters, layers."""

from typing import Any

from matplotlib import ticker
import numpy as np

from ppjax.analysis import clustering, correlation, labels, study, tables
from ppjax.pages import drawing, formats
from ppjax.pages.drawing import PAINTS

# Beyond, what is written into cells and beside leaves cannot be read.
_MOST_NUMBERS, _MOST_LEAVES = 12, 60
_LONGEST_NAME = 22
# Plots of a section; the tables have all.
_MOST_PLOTS = 6


def _name(text: str) -> str:
    text = formats.printable(text)
    return text if len(text) <= _LONGEST_NAME else f'{text[: _LONGEST_NAME - 1]}…'


def heat_plots(found: study.Study) -> list[drawing.Drawing]:
    """Similarity of personas' masks, a map for each repetition; of seeds on one scale."""
    off = ~np.eye(len(found.personas), dtype=bool)
    values = {
        name: table[off & ~np.isnan(table)]
        for name, table in found.by_repetition.items()
    }
    shown = [name for name, own in values.items() if own.size][:_MOST_PLOTS]
    if found.kind == labels.SEED and shown:
        values = dict.fromkeys(shown, np.concatenate([values[x] for x in shown]))
    return [
        _heat_plot(found, x, (float(values[x].min()), float(values[x].max())))
        for x in shown
    ]


def _heat_plot(
    found: study.Study, repetition: str, limits: tuple[float, float]
) -> drawing.Drawing:
    low, high = limits
    table = found.by_repetition[repetition]
    shown = np.where(np.eye(len(table), dtype=bool), np.nan, table)
    names = [_name(name) for name in found.personas]
    many = len(names) > _MOST_LEAVES

    def paint(axes: Any) -> None:
        axes.imshow(
            shown,
            cmap=drawing.fades(),
            interpolation='none',
            vmin=low,
            # Full colour is too dark for numbers in either theme.
            vmax=high + 0.35 * max(high - low, 1e-6),
        )
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if not many:
            places = range(len(names))
            axes.set_xticks(places, names, rotation=90)
            axes.set_yticks(places, names)
        for row, column in zip(*np.nonzero(~np.isnan(shown)), strict=True):
            if len(names) > _MOST_NUMBERS:
                break
            text = f'{shown[row, column]:.2f}'.removeprefix('0')
            axes.text(column, row, text, ha='center', va='center', fontsize=8)

    alone = len(found.repetitions) == 1
    return drawing.Drawing(
        'Jaccard similarity' if alone else f'Jaccard similarity, {repetition}',
        paint,
        height=4.0,
        label='Heat map of similarities' if alone else f'Heat map, {repetition}',
        note=f'From {low:.3f}, pale, to {high:.3f}; like personas beside each other.',
    )


def tree_plot(found: study.Study) -> drawing.Drawing | None:
    """The dendrogram of all masks; None if they are too many to be told apart."""
    masks, tree = found.masks, found.tree
    if len(masks) > _MOST_LEAVES:
        return None
    texts = [mask.name if found.repeated else mask.persona for mask in masks]

    def paint(axes: Any) -> None:
        _branches(axes, tree)
        leaves = [_name(texts[place]) for place in tree.order]
        axes.set_yticks(range(len(leaves)), leaves)
        axes.tick_params(axis='y', labelcolor=PAINTS['ink'])
        axes.set_ylim(len(leaves) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(False, axis='y')
        axes.grid(True, axis='x')
        axes.spines['left'].set_visible(False)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.set_xlabel('1 − Jaccard similarity')

    return drawing.Drawing(
        'Dendrogram',
        paint,
        height=0.8 + 0.24 * len(masks),
        label='Dendrogram of masks',
        note='Average linkage: branches join at the mean distance of their masks.',
    )


def _branches(axes: Any, tree: clustering.Tree) -> None:
    for places, distances in tree.merges:
        axes.plot(distances, places, color=PAINTS['learned'], linewidth=1.4)


def seed_plots(found: study.Study) -> list[drawing.Drawing]:
    """Similarities of personas in one repetition against those in another."""
    made = []
    for pair in found.seed_pairs[:_MOST_PLOTS]:
        if not pair.found.pairs:
            continue
        first, second = (found.by_repetition[x] for x in (pair.first, pair.second))
        made.append(
            _scatter(
                f'{pair.first} and {pair.second}'.capitalize(),
                first,
                second,
                pair.found,
                names=(f'Jaccard, {pair.first}', f'Jaccard, {pair.second}'),
                # Variants may be alike to a different degree altogether.
                diagonal=found.kind == labels.SEED,
            )
        )
    return made


def alignment_plot(alignment: study.Alignment) -> drawing.Drawing:
    """Similarity of texts against that of masks."""
    return _scatter(
        'Texts and masks',
        alignment.texts,
        alignment.masks,
        alignment.found,
        names=('cosine of embeddings', 'Jaccard of masks'),
    )


def _scatter(
    title: str,
    first: np.ndarray,
    second: np.ndarray,
    found: correlation.Correlation,
    *,
    names: tuple[str, str],
    diagonal: bool = False,
) -> drawing.Drawing:
    """A point for every two personas.

    Args:
        title: above it.
        first: [P, P], places along x.
        second: [P, P], along y.
        found: their correlation.
        names: of the axes.
        diagonal: whether equal values have a line.
    """
    upper = np.triu_indices(len(first), 1)
    x, y = first[upper], second[upper]
    known = ~np.isnan(x + y)
    x, y = x[known], y[known]

    def paint(axes: Any) -> None:
        if diagonal:
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            axes.plot(ends, ends, color=PAINTS['muted'], linestyle='--', linewidth=1.0)
        axes.plot(
            x,
            y,
            color=PAINTS['learned'],
            linestyle='none',
            marker='o',
            markersize=5,
            alpha=0.75,
            markeredgewidth=0,
        )
        axes.grid(True, axis='x')
        axes.margins(0.06)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(ticker.MaxNLocator(5))
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])

    legend = [('muted', 'dashed', 'Equal in both')] if diagonal else []
    note = f'{len(x)} pairs of personas; {tables.r_text(found)}.'
    return drawing.Drawing(
        title, paint, height=3.2, legend=legend, note=note, label=f'Scatter, {title}'
    )


def layers_plot(layers: study.LayerMeans) -> drawing.Drawing:
    """Similarity over layers."""
    lines: list[tuple[str, str, str, np.ndarray]] = []
    for paint_name, style, name, values in (
        ('learned', 'solid', 'One persona', layers.within),
        ('heldout', 'solid', 'Two personas', layers.between),
        ('random', 'dotted', 'By chance', layers.chance),
    ):
        if values is not None:
            lines.append((paint_name, style, name, values))
    numbers = np.arange(1, len(layers.chance) + 1)

    def paint(axes: Any) -> None:
        for paint_name, style, _, values in lines:
            marker = '' if style == 'dotted' else 'o'
            colour = PAINTS[paint_name]
            axes.plot(numbers, values, color=colour, linestyle=style, marker=marker)
        axes.set_xlabel('layer')
        axes.set_ylabel('Jaccard similarity')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))

    legend = [
        (paint_name, style, f'{name}, {values.mean():.3f} on average')
        for paint_name, style, name, values in lines
    ]
    return drawing.Drawing('Similarity by layer', paint, height=2.9, legend=legend)
