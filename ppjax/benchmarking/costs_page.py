"""`bench costs` as a page: curves, where a step's time goes, sizes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ppjax
from ppjax.pages import charts, drawing, formats, templates, views

Point = Mapping[str, Any]

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


def _bytes(value: float) -> str:
    return formats.quantity(value, 'B')


# How each column of a table shows a row.
Columns = Mapping[str, Callable[[Any], views.TableCell]]

_POINT: Columns = {
    'A step': lambda point: views.cell(
        point['step_seconds']['median'], lambda x: f'{x:.3f} s', point['step_seconds']
    ),
    'An example': lambda point: views.cell(
        1e3 * point['seconds_per_example'], lambda x: f'{x:.1f} ms'
    ),
    'Of the peak': lambda point: views.cell(point['utilisation'], formats.percent),
    'Activations': lambda point: views.cell(point['bytes']['temp'], _bytes),
}
_SIZES: Columns = {
    'Weights': lambda sizes: views.cell(sizes['bytes'], _bytes),
    'Read for a token': lambda x: views.cell(x['decode_weight_bytes'], _bytes),
    'Cache for a token': lambda x: views.cell(x['kv_bytes_per_token'], _bytes),
}


def _table(
    name: str, rows: Iterable[tuple[str, Any]], columns: Columns, title: str = ''
) -> views.Table:
    cells = [(label, [show(row) for show in columns.values()]) for label, row in rows]
    return views.Table(name, list(columns), cells, title)


def _time(axis: str, points: Sequence[Point]) -> drawing.Drawing:
    line = []
    for point in points:
        low, value, high = (
            1e3 * point['step_seconds'][name] / point['batch']
            for name in ('min', 'median', 'max')
        )
        line.append((point[axis], value, value - low, high - value))
    return charts.curves_plot(
        f'Time against {axis}', [('', line)], axis=_LABELS[axis], unit='ms per example'
    )


def _memory(axis: str, points: Sequence[Point]) -> drawing.Drawing | None:
    """What a step needs beside weights, scores and their moments."""
    if any(point['bytes']['temp'] is None for point in points):
        return None
    line = [(point[axis], point['bytes']['temp'] / 1e6, 0.0, 0.0) for point in points]
    return charts.curves_plot(
        f'Memory against {axis}',
        [('', line)],
        axis=_LABELS[axis],
        unit='MB for activations',
    )


def _parts(found: Mapping[str, Any]) -> views.Section:
    whole = found['parts']['step_seconds']
    parts = [(*_PARTS[name], found['parts']['seconds'][name]) for name in _PARTS]
    bar = charts.stacked_plot(
        'Where a step’s time goes',
        [
            (
                'Step',
                [(colour, max(value, 0.0)) for colour, _, value in parts],
                f'{whole:.3f} s',
            )
        ],
        [(colour, 'block', name) for colour, name, _ in parts],
    )
    assert bar
    columns: Columns = {
        'Seconds': lambda seconds: views.cell(seconds, formats.decimals(3)),
        'Share': lambda seconds: views.cell(seconds / whole, formats.percent),
    }
    return views.Section(
        'Where a step’s time goes',
        'Attention with its products and FFN of one block, times the layers, and the '
        'unembedding, each timed alone with its gradient; other is the rest: what the '
        'backward pass recomputes, norms, the optimizer.',
        plots=[bar],
        tables=[_table('parts', [(name, x) for _, name, x in parts], columns)],
    )


def sections(found: Mapping[str, Any]) -> list[views.Section]:
    """What the page shows of `costs.measure`'s figures."""
    made = [_parts(found)]
    for axis, points in found['curves'].items():
        rows = [(f'{point[axis]}', point) for point in points]
        drawn = (_time(axis, points), _memory(axis, points))
        made.append(
            views.Section(
                f'Against {axis}',
                'Medians; lines reach from the fastest to the slowest round.',
                plots=[plot for plot in drawn if plot],
                tables=[_table(axis, rows, _POINT, _LABELS[axis].capitalize())],
            )
        )
    rows = [(f'{sizes["sparsity"]:.0%}', sizes) for sizes in found['pruned_model']]
    made.append(
        views.Section(
            'The pruned model against sparsity',
            'In closed form. A mask learning step runs all channels, whatever the '
            'sparsity.',
            tables=[_table('sparsity', rows, _SIZES)],
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
