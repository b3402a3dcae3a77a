"""Evaluation results as sections of the report."""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any

import numpy as np

from ppjax.evaluation.page import report_judged, report_views, run_results
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats, views
from ppjax.pages.formats import number

# Title, and the share that guessing gets right.
_BENCHMARKS = {
    'piqa': ('PIQA', 0.5),
    'openbookqa': ('OpenBookQA', 0.25),
    'mmlu': ('MMLU', 0.25),
}


def _per_token(
    result: Mapping[str, Any], of_page: Sequence[str]
) -> views.Section | None:
    models = report_views.models(result)
    reference = next(iter(models), '')

    def part(name: str, key: str) -> dict[str, Any]:
        return mapping(models[name].get(key))

    rows = views.filled(
        (
            label,
            [
                # Of a model to itself these say nothing.
                views.NOTHING
                if name == reference and key != 'nll'
                else views.cell(
                    part(name, key).get('mean'), show, part(name, key).get('interval')
                )
                for name in models
            ],
        )
        for key, label, show in (
            ('nll', 'NLL, nats per token', formats.decimals(4)),
            ('nll_difference', f'NLL less that of {reference}', formats.signed),
            (
                'kl_to_dense',
                f'KL from {reference}, nats per token',
                formats.decimals(4),
            ),
            ('agreement', f'Same likeliest token as {reference}', formats.percent),
        )
    )
    if not rows:
        return None
    bars = {
        name: report_views.bar(
            report_views.look(name, of_page)[0],
            part(name, 'nll').get('mean'),
            formats.decimals(3),
            formats.interval(part(name, 'nll').get('interval')),
        )
        for name in models
    }
    plot = charts.bar_groups_plot(
        'NLL of held-out answers',
        [
            charts.BarGroup(report_views.label(name), [bar])
            for name, bar in bars.items()
            if bar
        ],
    )
    heldout = mapping(result.get('heldout'))
    counts = [number(heldout.get(key)) for key in ('rows', 'answer_tokens')]
    size = '' if None in counts else ': {:.0f} conversations, {:.0f} answer tokens'
    return views.Section(
        'Persona likelihood, model by model',
        "How well each model, as it is used, expects the persona's held-out answers"
        f'{size.format(*counts)}. Lower is better.',
        [plot] if plot else [],
        [views.Table('persona-likelihood', report_views.labels(models), rows)],
        'Whiskers and small figures: 95 % bootstrap intervals over conversations. '
        'They may overlap where the difference is clear, which is taken conversation '
        'by conversation.',
        settings=report_views.settings(result),
    )


def _hits(model: Mapping[str, Any], key: str) -> list[tuple[Any, bool]] | None:
    listed = model.get('questions')
    if not isinstance(listed, list) or not listed:
        return None
    rows = [mapping(row) for row in listed]
    if any(number(row.get(name)) is None for row in rows for name in ('gold', key)):
        return None
    return [(row.get('where'), row['gold'] == row[key]) for row in rows]


def _paired(
    dense: Mapping[str, Any], other: Mapping[str, Any], key: str
) -> views.TableCell:
    """Mean of the differences, question by question, and its standard error."""
    before, after = _hits(dense, key), _hits(other, key)
    if not before or not after or [x for x, _ in before] != [x for x, _ in after]:
        return views.NOTHING
    right = np.array([(b, a) for (_, b), (_, a) in zip(before, after, strict=True)])
    gains = right[:, 1].astype(float) - right[:, 0]
    error = np.std(gains, ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else None
    return views.TableCell(
        formats.signed(gains.mean()), '' if error is None else formats.plus_minus(error)
    )


def _accuracy(figure: Any) -> views.TableCell:
    value, error = (number(mapping(figure).get(key)) for key in ('value', 'stderr'))
    if value is None:
        return views.NOTHING
    return views.TableCell(
        f'{value:.4f}', '' if error is None else formats.plus_minus(error)
    )


def _benchmarks(
    results: Mapping[str, dict[str, Any]], of_page: Sequence[str]
) -> views.Section | None:
    found = {task: report_views.models(results.get(task, {})) for task in _BENCHMARKS}
    names = report_views.order(results.get(task, {}) for task in _BENCHMARKS)
    rows, groups, tables = [], [], []
    for task, (title, chance) in _BENCHMARKS.items():
        models = found[task]
        shots = number(mapping(results.get(task, {}).get('settings')).get('shots'))
        for key in ('acc', 'acc_norm'):
            label = f'{title}, {key}'
            if task == 'mmlu' and shots is not None:
                label += f', {shots:.0f}-shot'
            figures = [mapping(models.get(name, {}).get(key)) for name in names]
            cells = [_accuracy(figure) for figure in figures]
            if not views.filled([(label, cells)]):
                continue
            first, *others = (models.get(name, {}) for name in names)
            cells += [_paired(first, other, key) for other in others]
            counts = [number(figure.get('count')) for figure in figures]
            count = next((x for x in counts if x is not None), None)
            cells += [
                views.cell(chance, formats.decimals(2)),
                views.cell(count, formats.decimals(0)),
            ]
            rows.append((label, cells))
        bars = [
            _accuracy_bar(report_views.look(name, of_page)[0], mapping(own.get('acc')))
            for name, own in models.items()
        ]
        groups.append(charts.BarGroup(title, [bar for bar in bars if bar], chance))
        if subjects := _subjects(task, title, models):
            tables.append(subjects)
    if not rows:
        return None
    plot = charts.bar_groups_plot(
        'Benchmark accuracy',
        groups,
        [*report_views.legend(names, of_page), ('ink', 'dotted', 'Guessing')],
    )
    columns = [*report_views.labels(names), *report_views.changes(names)]
    columns += ['Guessing', 'Questions']
    return views.Section(
        'Benchmarks',
        'General ability, without the persona: shares of right answers.',
        [plot] if plot else [],
        [views.Table('benchmarks', columns, rows), *tables],
        'Whiskers and ±: one standard error. acc takes the likeliest choice, '
        'acc_norm the likeliest by character; the chart shows acc. The difference '
        'is taken question by question.',
        settings=[
            (f'{task}.{name}', value)
            for task in _BENCHMARKS
            for name, value in report_views.settings(results.get(task, {}))
        ],
    )


def _accuracy_bar(paint: str, figure: Mapping[str, Any]) -> charts.Bar | None:
    value, error = (number(figure.get(key)) for key in ('value', 'stderr'))
    ends = None if value is None or error is None else (value - error, value + error)
    return report_views.bar(paint, value, formats.decimals(3), ends)


def _subjects(
    task: str, title: str, models: Mapping[str, dict[str, Any]]
) -> views.Table | None:
    groups = {name: mapping(model.get('groups')) for name, model in models.items()}
    subjects = sorted({subject for group in groups.values() for subject in group})
    rows = []
    for subject in subjects[: views.MOST_ROWS]:
        figures = [mapping(group.get(subject)) for group in groups.values()]
        count = next((x for f in figures if (x := number(f.get('count')))), None)
        cells = [*map(_accuracy, figures), views.cell(count, formats.decimals(0))]
        rows.append((subject.replace('_', ' '), cells))
    rows = views.filled(rows)
    if not rows:
        return None
    columns = [*report_views.labels(models), 'Questions']
    return views.Table(
        f'{task}-subjects', columns, rows, f'{title} by subject', folded=True
    )


# Measured: key, label, unit; and the counts that it goes with.
_TIMES = (
    ('prefill_seconds', 'Prefill', 's', 1, 'prompt_length', 'prefill_flops', ''),
    (
        'decode_seconds_per_token',
        'Decoding',
        'ms a token',
        1000,
        'answer_length',
        'decode_flops',
        'decode_weight_bytes',
    ),
)


def _speed(result: Mapping[str, Any], of_page: Sequence[str]) -> views.Section | None:
    models = report_views.models(result)
    closed = mapping(result.get('closed_form'))
    names = list(models)
    shapes = [mapping(closed.get(side)) for side in ('dense', 'pruned')]

    def by_shape(own: Mapping[str, Any], key: str) -> float | None:
        # A masked model runs what the dense one does; a model of neither shape has
        # no closed form.
        count = number(own.get('prefill_flops'))
        runs = [x for x in shapes if count and x.get('prefill_flops') == count]
        return _ratio(shapes[0].get(key), runs[0].get(key)) if runs else None

    rows, groups = [], []
    for key, label, unit, scale, length_key, flops_key, read_key in _TIMES:
        spreads = [mapping(own.get(key)) for own in models.values()]
        cells = [_spread(spread, scale) for spread in spreads]
        length = number(closed.get(length_key))
        size = '' if length is None else f' of {length:g} tokens'
        title = f'{label}{size}, {unit}'
        if not views.filled([(title, cells)]):
            continue
        flops = None
        for own, spread in list(zip(models.values(), spreads, strict=True))[1:]:
            flops = by_shape(own, flops_key)
            cells += [
                _three(_ratio(spreads[0].get('median'), spread.get('median'))),
                _shape_cell(flops, by_shape(own, read_key)),
            ]
        rows.append((title, cells))
        if len(names) > 1 and (first := number(spreads[0].get('median'))):
            bars = [
                _relative(report_views.look(name, of_page)[0], spread, first)
                for name, spread in zip(names, spreads, strict=True)
            ]
            # Of the last one.
            reference = None if flops is None else 100 * flops
            drawn_bars = [bar for bar in bars if bar]
            groups.append(charts.BarGroup(label, drawn_bars, reference))
    for key, label, unit, flops_key in (
        ('xla_prefill_flops', "XLA's count for the prefill", 'FLOP', 'prefill_flops'),
        ('stored_bytes', 'Files of the weights, as stored', 'B', ''),
    ):
        show = functools.partial(formats.quantity, unit=unit)
        values = [own.get(key) for own in models.values()]
        cells = [views.cell(value, show) for value in values]
        if not views.filled([(label, cells)]):
            continue
        for own in list(models.values())[1:]:
            # Files may be of another precision than the weights in memory.
            ratio = _ratio(values[0], own.get(key)) if flops_key else None
            cells += [_three(ratio), _shape_cell(by_shape(own, flops_key), None)]
        rows.append((label, cells))
    if not rows:
        return None
    columns = report_views.labels(names)
    for label in columns[1:]:
        columns = [*columns, f'{label} / {names[0]}', 'By the shape']
    dotted = f'FLOPs of {report_views.label(names[-1])}, by the shape'
    legend = [*report_views.legend(names, of_page), ('ink', 'dotted', dotted)]
    plot = charts.bar_groups_plot(f'Time against the {names[0]} model', groups, legend)
    dtype = mapping(result.get('settings')).get('dtype')
    device = mapping(result.get('versions')).get('device')
    where = f', in {dtype} on {device}' if dtype and device else ''
    return views.Section(
        'Measured speed',
        'One prompt and its answer at a time, the models in turn'
        f'{where}. Lower is better.',
        [plot] if plot else [],
        [views.Table('speed', columns, rows)],
        'Medians of the rounds; whiskers and small figures from the least to the '
        'most. By the shape: the ratio of the work, counted and not timed.',
        settings=report_views.settings(result),
    )


def _three(ratio: float | None) -> views.TableCell:
    return views.cell(ratio, formats.decimals(3))


def _ratio(before: Any, after: Any) -> float | None:
    first, last = number(before), number(after)
    return None if not first or last is None else last / first


def _shape_cell(flops: float | None, read: float | None) -> views.TableCell:
    if flops is None:
        return views.NOTHING
    more = '' if read is None else f'; weights read {read:.3f}'
    return views.TableCell(f'{flops:.3f}', f'FLOPs{more}')


def _spread(spread: Mapping[str, Any], scale: float) -> views.TableCell:
    ends = [spread.get('min'), spread.get('max')]

    def show(value: float) -> str:
        return f'{scale * value:.4g}'

    return views.cell(spread.get('median'), show, ends)


def _relative(paint: str, spread: Mapping[str, Any], of: float) -> charts.Bar | None:
    low, median, high = (number(spread.get(x)) for x in ('min', 'median', 'max'))
    if median is None:
        return None
    ends = None if low is None or high is None else (100 * low / of, 100 * high / of)
    return report_views.bar(
        paint, 100 * median / of, lambda x: f'{x:.1f}\N{NO-BREAK SPACE}%', ends
    )


def sections(results: Mapping[str, dict[str, Any]]) -> list[views.Section]:
    """What there is to see of `run_results.EVALUATIONS`, in the page's order.

    Args:
        results: by name; any may be missing.
    """
    found = {name: results.get(name, {}) for name in run_results.EVALUATIONS}
    of_page = report_views.order(found.values())
    parts = [
        _per_token(found['persona_likelihood'], of_page),
        report_judged.judge(found['judge'], found['failures'], of_page),
        report_judged.failure_types(found['failures']),
        report_judged.multi_turn(found['multiturn'], of_page),
        _benchmarks(found, of_page),
        _speed(found['measured_efficiency'], of_page),
    ]
    return [part for part in parts if part]


def headline(results: Mapping[str, dict[str, Any]]) -> tuple[str, str, str] | None:
    """The last model's persona score: (label, figure, detail); None without one."""
    models = report_views.models(results.get('judge', {}))
    if not models:
        return None
    reference, (name, own) = next(iter(models)), list(models.items())[-1]
    found = mapping(own.get('roleplay'))
    score = number(found.get('mean_over_personas'))
    if score is None:
        return None
    change = number(mapping(found.get('to_dense')).get('mean'))
    detail = '0 to 100, by a judge'
    if change is not None:
        detail += f'; {formats.points(change)} to the {reference} model'
    return f'Persona score, {name} model', f'{score:.2f}', detail
