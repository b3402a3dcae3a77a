"""`bench costs` as a page: curves, where a step's time goes, sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import ticker

import ppjax
from ppjax.pages import charts, drawing, formats, templates, views

_LABELS = {
    'persona': 'persona prompt, tokens',
    'answer': 'answer, tokens',
    'batch': 'examples a step',
    'layers': 'layers',
}
_PARTS = {
    'attention': ('learned', 'Attention'),
    'ffn': ('heldout', 'FFN'),
    'unembedding': ('one_shot', 'Unembedding'),
    'other': ('muted', 'Other'),
}


def _curve(
    title: str,
    axis: str,
    unit: str,
    points: Sequence[tuple[float, float, tuple[float, float] | None]],
) -> drawing.Drawing:
    """A line from zero through (place, value, ends of its whisker)."""

    def paint(axes: Any) -> None:
        places, values, ends = zip(*points, strict=True)
        axes.plot(
            places,
            values,
            color=drawing.PAINTS['learned'],
            marker='o',
            markersize=4,
        )
        for place, end in zip(places, ends, strict=True):
            if end:
                axes.vlines(place, *end, color=drawing.PAINTS['learned'], linewidth=1.0)
        axes.set_xlim(0, 1.05 * max(places))
        most = max(end[1] if end else value for _, value, end in points)
        axes.set_ylim(0, 1.1 * most)
        axes.xaxis.set_major_locator(ticker.FixedLocator(places))
        axes.set_xlabel(_LABELS[axis])
        axes.set_ylabel(unit)

    return drawing.Drawing(title, paint, height=2.3)


def _time(axis: str, points: Sequence[Mapping[str, Any]]) -> drawing.Drawing:
    def per_example(point: Mapping[str, Any], name: str) -> float:
        return 1e3 * float(point['step_seconds'][name]) / float(point['batch'])

    return _curve(
        f'Time against {axis}',
        axis,
        'ms per example',
        [
            (
                point[axis],
                per_example(point, 'median'),
                (per_example(point, 'min'), per_example(point, 'max')),
            )
            for point in points
        ],
    )


def _memory(axis: str, points: Sequence[Mapping[str, Any]]) -> drawing.Drawing | None:
    """What a step needs beside weights, scores and their moments."""
    if any(point['bytes']['temp'] is None for point in points):
        return None
    return _curve(
        f'Memory against {axis}',
        axis,
        'MB for activations',
        [(point[axis], point['bytes']['temp'] / 1e6, None) for point in points],
    )


def _table(axis: str, points: Sequence[Mapping[str, Any]]) -> views.Table:
    def cells(point: Mapping[str, Any]) -> list[views.TableCell]:
        seconds = point['step_seconds']
        temp = point['bytes']['temp']
        return [
            views.TableCell(
                f'{seconds["median"]:.3f} s',
                f'{seconds["min"]:.3f} to {seconds["max"]:.3f}',
            ),
            views.TableCell(f'{1e3 * point["seconds_per_example"]:.1f} ms'),
            views.TableCell(formats.percent(point['utilisation'])),
            views.NOTHING
            if temp is None
            else views.TableCell(formats.quantity(temp, 'B')),
        ]

    return views.Table(
        name=axis,
        columns=('A step', 'An example', 'Of the peak', 'Activations'),
        rows=[(f'{point[axis]}', cells(point)) for point in points],
        title=_LABELS[axis].capitalize(),
    )


def _parts(found: Mapping[str, Any]) -> views.Section:
    seconds = found['parts']['seconds']
    whole = found['parts']['step_seconds']
    parts = [(_PARTS[name], seconds[name]) for name in _PARTS]
    bar = charts.stacked_plot(
        'Where a step\u2019s time goes',
        [
            (
                'Step',
                [(colour, max(value, 0.0)) for (colour, _), value in parts],
                f'{whole:.3f} s',
            )
        ],
        [(colour, 'block', name) for (colour, name), _ in parts],
    )
    assert bar
    return views.Section(
        'Where a step’s time goes',
        'Attention with its products and FFN of one block, times the layers, and the '
        'unembedding, each timed alone with its gradient; other is the rest: what the '
        'backward pass recomputes, norms, the optimizer.',
        plots=[bar],
        tables=[
            views.Table(
                name='parts',
                columns=('Seconds', 'Share'),
                rows=[
                    (
                        name,
                        [
                            views.TableCell(f'{value:.3f}'),
                            views.TableCell(formats.percent(value / whole)),
                        ],
                    )
                    for (_, name), value in parts
                ],
            )
        ],
    )


def sections(found: Mapping[str, Any]) -> list[views.Section]:
    """What the page shows of `costs.measure`'s figures."""
    made = [_parts(found)]
    for axis, points in found['curves'].items():
        drawn = (_time(axis, points), _memory(axis, points))
        made.append(
            views.Section(
                f'Against {axis}',
                'Medians; lines reach from the fastest to the slowest round.',
                plots=[plot for plot in drawn if plot],
                tables=[_table(axis, points)],
            )
        )
    sizes = views.Table(
        name='sparsity',
        columns=('Weights', 'Read for a token', 'Cache for a token'),
        rows=[
            (
                f'{row["sparsity"]:.0%}',
                [
                    views.TableCell(formats.quantity(row[name], 'B'))
                    for name in ('bytes', 'decode_weight_bytes', 'kv_bytes_per_token')
                ],
            )
            for row in found['pruned_model']
        ],
    )
    made.append(
        views.Section(
            'The pruned model against sparsity',
            'In closed form. A mask learning step runs all channels, whatever the '
            'sparsity.',
            tables=[sizes],
        )
    )
    return made


def render(found: Mapping[str, Any]) -> str:
    """The page as HTML text.

    Args:
        found: of `costs.measure`, with `settings` and `versions`.
    """
    base = found['base']
    page = templates.load('ppjax.benchmarking', 'costs.html.jinja').render(
        model=found['settings']['base_model'],
        device=found['device'],
        dtype=found['settings']['dtype'],
        shape=[(_LABELS[axis], f'{base[axis]}') for axis in _LABELS],
        utilisation=formats.percent(base['utilisation']),
        peak=formats.quantity(found['matrix_peak_flops_per_s'], 'FLOP/s'),
        ratio=found.get('ratio_to_reference'),
        sections=sections(found),
        settings=list(found['settings'].items()),
        versions=list(found['versions'].items()),
        tool_version=ppjax.__version__,
    )
    return page.encode('utf-8', 'replace').decode('utf-8')
