"""Evaluation results as sections of the report."""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from ppjax.evaluation.page import (
    report_fidelity,
    report_judged,
    report_views,
    run_results,
)
from ppjax.evaluation.page.report_views import at
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats, views
from ppjax.pages.formats import number

# Title, and the share that guessing gets right.
_BENCHMARKS = {
    'piqa': ('PIQA', 0.5),
    'openbookqa': ('OpenBookQA', 0.25),
    'mmlu': ('MMLU', 0.25),
}


_PROMPTS = {
    'full': 'Persona prompt',
    'short': 'Short prompt',
    'none': 'No persona prompt',
}


def _per_token(
    result: Mapping[str, Any],
    of_page: Sequence[str],
    name: str,
    title: str,
    what: str,
    note: str = '',
) -> views.Section:
    """Args:
    result: of persona or plain likelihood.
    of_page: the page's models in their order.
    name: of the table.
    title: of the section.
    what: the answers, as in 'its answers'.
    note: more to say below.
    """
    models = report_views.models(result)
    reference = next(iter(models), '')
    # Of a model to itself the other figures say nothing.
    compared = models | {x: {'nll': models[x].get('nll')} for x in list(models)[:1]}
    four = formats.decimals(4)
    table = report_views.table(
        name,
        compared,
        [
            ('NLL, nats per token', 'nll.mean', four, 'nll.interval'),
            (
                f'NLL less that of {reference}',
                'nll_difference.mean',
                formats.signed,
                'nll_difference.interval',
            ),
            (
                f'KL from {reference}, nats per token',
                'kl_to_dense.mean',
                four,
                'kl_to_dense.interval',
            ),
            (
                f'Same likeliest token as {reference}',
                'agreement.mean',
                formats.percent,
                'agreement.interval',
            ),
        ],
    )
    three = formats.decimals(3)
    groups = [
        charts.BarGroup(
            report_views.label(model),
            report_views.bars({model: own}, of_page, 'nll.mean', three, 'nll.interval'),
        )
        for model, own in models.items()
    ]
    counts = [number(at(result, f'heldout.{key}')) for key in ('rows', 'answer_tokens')]
    size = '' if None in counts else ': {:.0f} conversations, {:.0f} answer tokens'
    return views.Section(
        title,
        f'How well each model, as it is used, expects {what}'
        f'{size.format(*counts)}. Lower is better.',
        [charts.bar_groups_plot(f'NLL of {what}', groups)],
        [table, _prompts(result, list(models))],
        'Ranges: 95 % bootstrap intervals over conversations. They may overlap where '
        'the difference is clear, which is taken conversation by conversation.'
        f'{note}',
        settings=report_views.settings(result),
    )


def _prompts(result: Mapping[str, Any], names: Sequence[str]) -> views.Table:
    """The same answers under shorter prompts, where they were measured."""
    prompts = {x: mapping(own) for x, own in mapping(result.get('prompts')).items()}
    whole = number(at(prompts, 'full.prompt_tokens'))
    rows: list[report_views.Row] = []
    for prompt, own in prompts.items():
        tokens = number(own.get('prompt_tokens'))
        text = _PROMPTS.get(prompt, report_views.label(prompt))
        if tokens is not None:
            text += f', {tokens:.0f} tokens'
            if prompt != 'full' and whole is not None:
                text += f', {whole - tokens:.0f} fewer'
        four, signed = formats.decimals(4), formats.signed
        first = next(iter(names), '')
        change = f'{prompt}.nll_difference_to_full'
        rows += [
            (f'{text}: NLL', f'{prompt}.nll.mean', four, f'{prompt}.nll.interval'),
            (
                f'– less that of {first} under the persona prompt',
                f'{change}.mean',
                signed,
                f'{change}.interval',
            ),
            (
                '– seconds to the first token',
                f'{prompt}.seconds.median',
                lambda x: f'{x:.3g}',
                f'{prompt}.seconds',
            ),
        ]
    figures = {
        name: {
            prompt: mapping(mapping(own.get('models')).get(name))
            | {'seconds': mapping(own.get('first_token_seconds')).get(name)}
            for prompt, own in prompts.items()
        }
        for name in names
    }
    return report_views.table('prompts', figures, rows, 'With less of a prompt')


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


def _accuracies(figures: Sequence[Any]) -> list[views.TableCell]:
    cells = []
    for figure in figures:
        value, error = (number(at(figure, key)) for key in ('value', 'stderr'))
        detail = '' if error is None else formats.plus_minus(error)
        cells.append(
            views.NOTHING if value is None else views.TableCell(f'{value:.4f}', detail)
        )
    return cells


def _count(figures: Iterable[Any]) -> views.TableCell:
    """Of how many questions they are."""
    counts = (number(at(figure, 'count')) for figure in figures)
    count = next((x for x in counts if x is not None), None)
    return views.cell(count, formats.decimals(0))


def _with_ends(model: Mapping[str, Any]) -> dict[str, Any]:
    value, error = (number(at(model, f'acc.{key}')) for key in ('value', 'stderr'))
    if value is None or error is None:
        return {'value': value}
    return {'value': value, 'interval': (value - error, value + error)}


def _benchmarks(
    results: Mapping[str, dict[str, Any]], of_page: Sequence[str]
) -> views.Section:
    names = report_views.order(results[task] for task in _BENCHMARKS)
    rows, groups, tables = [], [], []
    for task, (title, chance) in _BENCHMARKS.items():
        models = report_views.models(results[task])
        shots = number(at(results, f'{task}.settings.shots'))
        for key in ('acc', 'acc_norm'):
            label = f'{title}, {key}'
            if task == 'mmlu' and shots is not None:
                label += f', {shots:.0f}-shot'
            figures = [at(models.get(name), key) for name in names]
            cells = _accuracies(figures)
            if views.is_empty(cells):
                continue
            first, *others = (models.get(name, {}) for name in names)
            cells += [_paired(first, other, key) for other in others]
            cells += [views.cell(chance, formats.decimals(2)), _count(figures)]
            rows.append((label, cells))
        ends = {name: _with_ends(own) for name, own in models.items()}
        bars = report_views.bars(ends, of_page, 'value', formats.decimals(3))
        groups.append(charts.BarGroup(title, bars, chance))
        tables.append(_subjects(task, title, models))
    plot = charts.bar_groups_plot(
        'Benchmark accuracy',
        groups,
        [*report_views.legend(names, of_page), ('ink', 'dotted', 'Guessing')],
        'acc; whiskers: one standard error.',
    )
    columns = [*report_views.labels(names), *report_views.changes(names)]
    columns += ['Guessing', 'Questions']
    return views.Section(
        'Benchmarks',
        'General ability, without the persona: shares of right answers.',
        [plot],
        [views.Table('benchmarks', columns, rows), *tables],
        '±: one standard error. acc takes the likeliest choice, acc_norm the likeliest '
        'by character. The difference is taken question by question.',
        settings=[
            (f'{task}.{name}', value)
            for task in _BENCHMARKS
            for name, value in report_views.settings(results[task])
        ],
    )


def _subjects(
    task: str, title: str, models: Mapping[str, dict[str, Any]]
) -> views.Table:
    groups = [mapping(model.get('groups')) for model in models.values()]
    rows = []
    for subject in sorted({subject for group in groups for subject in group}):
        figures = [group.get(subject) for group in groups]
        cells = [*_accuracies(figures), _count(figures)]
        rows.append((subject.replace('_', ' '), cells))
    columns = [*report_views.labels(models), 'Questions']
    return views.Table(
        f'{task}-subjects', columns, rows, f'{title} by subject', folded=True
    )


# Measured: its key, its name, and the count of work that goes with it.
_TIMES = (
    ('prefill_seconds', 'Prefill', 'prefill_flops'),
    ('decode_seconds_per_token', 'Decoding', 'decode_flops'),
)


def _speed(result: Mapping[str, Any], of_page: Sequence[str]) -> views.Section:
    models = report_views.models(result)
    names = list(models)
    first, *others = models.values() or [{}]
    closed = mapping(result.get('closed_form'))
    shapes = [mapping(closed.get(side)) for side in ('dense', 'pruned')]

    def by_shape(own: Mapping[str, Any], key: str) -> float | None:
        # A masked model runs what the dense one does; a model of neither shape has
        # no closed form.
        count = number(own.get('prefill_flops'))
        runs = [x for x in shapes if count and x.get('prefill_flops') == count]
        return _ratio(shapes[0].get(key), runs[0].get(key)) if runs else None

    def size(key: str) -> str:
        length = number(closed.get(key))
        return '' if length is None else f' of {length:g} tokens'

    def row(
        label: str,
        path: str,
        show: formats.Show,
        *,
        spread: str = '',
        flops: str = '',
        read: str = '',
    ) -> tuple[str, list[views.TableCell]]:
        cells = [
            views.cell(at(own, path), show, at(own, spread)) for own in models.values()
        ]
        if not views.is_empty(cells):
            for own in others:
                ratio = _ratio(at(first, path), at(own, path))
                cells.append(views.cell(ratio, formats.decimals(3)))
                cells.append(_shape_cell(by_shape(own, flops), by_shape(own, read)))
        return label, cells

    rows = [
        row(
            f'Prefill{size("prompt_length")}, s',
            'prefill_seconds.median',
            lambda x: f'{x:.4g}',
            spread='prefill_seconds',
            flops='prefill_flops',
        ),
        row(
            f'Decoding{size("answer_length")}, ms a token',
            'decode_seconds_per_token.median',
            lambda x: f'{1000 * x:.4g}',
            spread='decode_seconds_per_token',
            flops='decode_flops',
            read='decode_weight_bytes',
        ),
        row(
            "XLA's count for the prefill",
            'xla_prefill_flops',
            lambda x: formats.quantity(x, 'FLOP'),
            flops='prefill_flops',
        ),
        row(
            'Files of the weights, as stored',
            'stored_bytes',
            lambda x: formats.quantity(x, 'B'),
        ),
    ]
    columns = report_views.labels(names)
    for label in columns[1:]:
        columns = [*columns, f'{label} / {names[0]}', 'By the shape']
    groups = []
    for key, label, flops in _TIMES if others else ():
        of = at(first, f'{key}.median')
        shares = {
            name: {
                'time': {
                    end: _ratio(of, at(own, f'{key}.{end}'))
                    for end in ('median', 'min', 'max')
                }
            }
            for name, own in models.items()
        }
        bars = report_views.bars(
            shares, of_page, 'time.median', formats.percent, 'time'
        )
        groups.append(charts.BarGroup(label, bars, by_shape(others[-1], flops)))
    legend = report_views.legend(names, of_page)
    if others:
        dotted = f'FLOPs of {report_views.label(names[-1])}, by the shape'
        legend.append(('ink', 'dotted', dotted))
    dtype, device = at(result, 'settings.dtype'), at(result, 'versions.device')
    where = f', in {dtype} on {device}' if dtype and device else ''
    convention = result.get('convention')
    return views.Section(
        'Measured speed',
        'One prompt and its answer at a time, the models in turn'
        f'{where}. Lower is better.',
        [
            charts.bar_groups_plot(
                f'Time against the {next(iter(names), "")} model', groups, legend
            )
        ],
        [
            views.Table('speed', columns, rows),
            report_views.sizes(
                'speed-sizes', closed, 'Sizes and FLOPs, from the shape'
            ),
        ],
        'Medians of the rounds; ranges from the least to the most. By the shape: the '
        f'ratio of the work, counted and not timed. {convention or ""}'.strip(),
        settings=report_views.settings(result),
    )


def _ratio(before: Any, after: Any) -> float | None:
    first, last = number(before), number(after)
    return None if not first or last is None else last / first


def _shape_cell(flops: float | None, read: float | None) -> views.TableCell:
    if flops is None:
        return views.NOTHING
    more = '' if read is None else f'; weights read {read:.3f}'
    return views.TableCell(f'{flops:.3f}', f'FLOPs{more}')


def sections(results: Mapping[str, dict[str, Any]]) -> list[views.Section]:
    """What there is to see of `run_results.EVALUATIONS`, in the page's order.

    Args:
        results: by name; any may be missing.
    """
    found = {name: results.get(name, {}) for name in run_results.EVALUATIONS}
    of_page = report_views.order(found.values())
    parts = (
        _per_token(
            found['persona_likelihood'],
            of_page,
            'persona-likelihood',
            'Persona likelihood, model by model',
            "the persona's held-out answers",
        ),
        _per_token(
            found['plain_likelihood'],
            of_page,
            'plain-likelihood',
            'Likelihood of plain answers, without the persona',
            'plain answers to general instructions',
            ' No persona prompt is sent; a system prompt that the chat template inserts '
            'by itself stays, the same for all models.',
        ),
        report_judged.unjudged_answers(found['answers']),
        report_judged.judge(found['judge'], found['failures'], of_page),
        report_judged.failure_types(found['failures']),
        report_fidelity.fidelity(found['fidelity'], of_page),
        report_judged.multi_turn(found['multiturn'], of_page),
        _benchmarks(found, of_page),
        _speed(found['measured_efficiency'], of_page),
    )
    return [part for made in parts if (part := made.filled())]


def headline(results: Mapping[str, dict[str, Any]]) -> tuple[str, str, str] | None:
    """The last model's persona score: (label, figure, detail); None without one."""
    models = report_views.models(results.get('judge', {}))
    if not models:
        return None
    reference, (name, own) = next(iter(models)), list(models.items())[-1]
    score = number(at(own, 'roleplay.mean_over_personas'))
    if score is None:
        return None
    change = number(at(own, 'roleplay.to_dense.mean'))
    detail = '0 to 100, by a judge'
    if change is not None:
        detail += f'; {formats.points(change)} to the {reference} model'
    return f'Persona score, {name} model', f'{score:.2f}', detail
