"""Evaluation results as tables for the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from ppjax.evaluation import candidates, efficiency
from ppjax.evaluation.answers import failures
from ppjax.pages import formats


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        padded = [cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True)]
        lines.append('  '.join([first.ljust(widths[0]), *padded]).rstrip())
    return '\n'.join(lines)


def render(rows: Sequence[Sequence[str]], title: str) -> str:
    """Rows of cells under a title."""
    return f'{title}\n{aligned(rows)}'


def _with_interval(figure: dict[str, Any] | None, digits: int = 4) -> str:
    if figure is None:
        return '-'
    low, high = figure['interval']
    return f'{figure["mean"]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]'


def likelihood(result: dict[str, Any]) -> str:
    """Nats per answer token, divergence from and agreement with the first model."""
    heldout = result['heldout']
    first = next(iter(result['models']))
    rows = [('', 'NLL', f'to {first}', f'KL from {first}', 'same top token')]
    for name, own in result['models'].items():
        compared = 'nll_difference' in own
        rows.append(
            (
                candidates.label(name),
                _with_interval(own['nll']),
                _with_interval(own.get('nll_difference')),
                _with_interval(own['kl_to_dense']) if compared else '-',
                _with_interval(own['agreement'], 3) if compared else '-',
            )
        )
    return render(
        rows,
        f'Persona likelihood, nats per answer token: {heldout["rows"]} held-out '
        f'conversations, {heldout["answer_tokens"]} answer tokens [95 % interval]',
    )


def _accuracy(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return '-'
    error = figure['stderr']
    return f'{figure["value"]:.4f}' + ('' if error is None else f' ± {error:.4f}')


def benchmark(task: str) -> Callable[[dict[str, Any]], str]:
    """The table of one of `benchmarks.TASKS`."""
    titles = {'piqa': 'PIQA', 'openbookqa': 'OpenBookQA', 'mmlu': 'MMLU'}

    def table(result: dict[str, Any]) -> str:
        settings = result['settings']
        rows = [('', 'acc', 'acc_norm')]
        for name, own in result['models'].items():
            rows.append(
                (
                    candidates.label(name),
                    _accuracy(own['acc']),
                    _accuracy(own['acc_norm']),
                )
            )
        shots = f', {settings["shots"]}-shot' if task == 'mmlu' else ''
        return render(
            rows,
            f'{titles[task]}: {settings["questions"]} questions{shots} '
            '(± standard error)',
        )

    return table


def measured_efficiency(result: dict[str, Any]) -> str:
    """Sizes, FLOPs and times."""
    closed, models = result['closed_form'], result['models']
    rows = [('', 'dense', 'pruned', 'ratio')]
    rows += [
        (row.label, row.dense, row.pruned, f'{row.ratio:.3f}')
        for row in efficiency.table(closed)
    ]
    lines = [render(rows, 'Sizes and FLOPs, from the shape'), result['convention']]
    prompt, answer = closed['prompt_length'], closed['answer_length']
    labels = [candidates.label(name) for name in models]
    header = ('', *labels, *(f'{label} / {next(iter(models))}' for label in labels[1:]))
    timed = []
    for key, label, show in (
        ('stored_bytes', 'Files of the weights', lambda x: formats.quantity(x, 'B')),
        (
            'xla_prefill_flops',
            f"XLA's count of the blocks, {prompt} tokens",
            lambda x: formats.quantity(x, 'FLOP'),
        ),
    ):
        cells = [own.get(key) for own in models.values()]
        if all(cells):
            timed.append((label, *map(show, cells), *_ratios(cells)))
    if all('prefill_seconds' in own for own in models.values()):
        for key, label, scale in (
            ('prefill_seconds', f'Prefill of {prompt} tokens, s', 1),
            ('decode_seconds_per_token', f'Decoding, ms a token of {answer}', 1000),
        ):
            spreads = [own[key] for own in models.values()]
            cells = [
                f'{scale * x["median"]:.3f} '
                f'({scale * x["min"]:.3f} to {scale * x["max"]:.3f})'
                for x in spreads
            ]
            timed.append((label, *cells, *_ratios([x['median'] for x in spreads])))
    lines.append('')
    lines.append(
        render(
            [header, *timed],
            'Measured here, medians of models in turn (least to most)',
        )
    )
    return '\n'.join(lines)


def _ratios(values: Sequence[float]) -> list[str]:
    return [f'{value / values[0]:.3f}' for value in values[1:]]


def _points(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def judge(result: dict[str, Any]) -> str:
    """Scores of 0 to 100, refusals dropped and as zero."""
    tables = []
    kinds = ['roleplay'] + ['coherence'] * result['settings']['coherence']
    for kind in kinds:
        rows = [
            (
                '',
                'mean',
                '95 % interval',
                'mean, none = 0',
                'scored',
                'refusals',
                f'to {next(iter(result["models"]))}',
                'tokens',
                'at limit',
            )
        ]
        for name, own in result['models'].items():
            found = own[kind]
            interval, change = found['interval'], found.get('to_dense')
            rows.append(
                (
                    candidates.label(name),
                    _points(found['mean_over_personas']),
                    '-'
                    if interval is None
                    else f'{interval[0]:.2f} to {interval[1]:.2f}',
                    _points(found['mean_with_zeros']),
                    f'{found["n_scored"]}/{found["n"]}',
                    str(found['n_refused']),
                    '-' if not change else _points(change['mean']),
                    f'{own["mean_answer_tokens"]:.0f}',
                    f'{own["at_limit"]:.0%}',
                )
            )
        title = 'Persona score' if kind == 'roleplay' else 'Coherence'
        tables.append(
            render(rows, f'{title}, 0 to 100, by {result["settings"]["judge_model"]}')
        )
    return '\n\n'.join(tables)


def failure_types(result: dict[str, Any]) -> str:
    """Counts and shares of the low-scored answers' types."""
    rows = [('', 'low-scored', *(name.replace('_', '-') for name in failures.TYPES))]
    for name, own in result['models'].items():
        cells = [
            f'{own["counts"][kind]} ({own["shares"][kind]:.1%})'
            for kind in failures.TYPES
        ]
        rows.append((candidates.label(name), f'{own["n"]} of {own["answers"]}', *cells))
    return render(
        rows, f'What is wrong with answers below {result["threshold"]:.0f} points'
    )


def multiturn(result: dict[str, Any]) -> str:
    """Mean scores of 1 to 5, turn by turn, and where they lead."""
    settings, models = result['settings'], result['models']
    turns = range(1, settings['turns'] + 1)
    rows = [
        ('', *map(str, turns), 'slope a turn', 'last - first', 'scored', 'broken off')
    ]
    for name, own in models.items():
        answers = sum(turn['n'] for turn in own['turns'])
        scored = sum(turn['n_scored'] for turn in own['turns'])
        rows.append(
            (
                candidates.label(name),
                *(_points(turn['mean']) for turn in own['turns']),
                _trend(own['slope'], 3),
                _trend(own['change'], 2),
                f'{scored}/{answers}',
                str(own['broken_off']),
            )
        )
    first = next(iter(models.values()))
    table = render(
        rows,
        f'Consistency by turn, 1 to 5, by {settings["judge_model"]}: dialogues with '
        f'{settings["partner_model"]}, {first["dialogues"]} of {first["personas"]} '
        f'persona{"s" * (first["personas"] != 1)} [95 % interval]',
    )
    forgotten = sum(own['forgotten'] for own in models.values())
    if not forgotten:
        return table
    return f'{table}\n{forgotten} answers were given with earlier turns left out.'


def _trend(figure: dict[str, Any], digits: int) -> str:
    value, interval = figure['value'], figure['interval']
    if value is None:
        return '-'
    shown = f'{value:+.{digits}f}'
    if interval is None:
        return shown
    low, high = interval
    return f'{shown} [{low:+.{digits}f}, {high:+.{digits}f}]'


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    'likelihood': likelihood,
    'piqa': benchmark('piqa'),
    'openbookqa': benchmark('openbookqa'),
    'mmlu': benchmark('mmlu'),
    'efficiency': measured_efficiency,
    'judge': judge,
    'failures': failure_types,
    'multiturn': multiturn,
}
