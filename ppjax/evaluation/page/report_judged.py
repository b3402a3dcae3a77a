"""Judged answers, dialogues and failure types as sections of the report."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from ppjax.evaluation.answers import failures
from ppjax.evaluation.page import report_views
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats, views
from ppjax.pages.formats import number

# results/judge.csv has all.
MOST_QUESTIONS = 40

_TYPE_PAINTS = ('learned', 'heldout', 'random', 'muted')
_KINDS = {'roleplay': 'Persona score', 'coherence': 'Coherence'}


def judge(
    result: Mapping[str, Any], failed: Mapping[str, Any], of_page: Sequence[str]
) -> views.Section | None:
    """results/judge.json, and the worst answers.

    Args:
        result: of the judge.
        failed: results/failures.json.
        of_page: the page's models in their order.
    """
    models = report_views.models(result)
    kinds = {
        kind: {name: mapping(own.get(kind)) for name, own in models.items()}
        for kind in _KINDS
        if any(mapping(own.get(kind)) for own in models.values())
    }
    tables, groups = [], []
    for kind, figures in kinds.items():
        rows = _score_rows(figures)
        if rows:
            tables.append(
                views.Table(
                    f'judge-{kind}',
                    report_views.labels(models),
                    rows,
                    _KINDS[kind],
                    folded=kind != 'roleplay',
                )
            )
        bars = [
            report_views.bar(
                report_views.look(name, of_page)[0],
                own.get('mean_over_personas'),
                formats.decimals(1),
                formats.interval(own.get('interval')),
            )
            for name, own in figures.items()
        ]
        groups.append(charts.BarGroup(_KINDS[kind], [bar for bar in bars if bar]))
    length_rows = views.filled(
        (label, [views.cell(own.get(key), show) for own in models.values()])
        for key, label, show in (
            ('mean_answer_tokens', 'Tokens of an answer', formats.decimals(0)),
            ('at_limit', 'Answers stopped at the limit', formats.percent),
            ('distinct_2', 'Different word pairs in an answer', formats.percent),
            ('repeat_rate', 'Words that repeat four in a row', formats.percent),
        )
    )
    if length_rows:
        title = 'The text of the answers'
        tables.append(
            views.Table(
                'judge-text',
                report_views.labels(models),
                length_rows,
                title,
                folded=True,
            )
        )
    questions, count = _judged(result, failed)
    if not tables and not questions:
        return None
    roleplay = kinds.get('roleplay', {})
    if by_persona := _persona_table(roleplay):
        tables.append(by_persona)
    settings = mapping(result.get('settings'))
    judge = settings.get('judge_model') or result.get('judge') or 'A judge'
    note = (
        'Small figures: 95 % bootstrap intervals. A refusal gets no score: one mean '
        'leaves it out, the other counts it as 0.'
    )
    if missing := number(settings.get('without_verdict')):
        note += f' {missing:.0f} answers have no verdict yet; evaluate again for them.'
    if count:
        part = f'{len(questions)} of {count} questions, ' * (len(questions) < count)
        last = questions[0].answers[-1][0]
        note += f' Below: {part}the worst answers of the {last} model first.'
    plot = charts.bar_groups_plot(
        'Scores by the judge', groups, report_views.legend(models, of_page)
    )
    return views.Section(
        'Judged answers',
        f'{judge} gave each answer 0 to 100: how well it plays the persona. Higher is '
        'better.',
        [plot] if plot else [],
        tables,
        note,
        questions,
        report_views.settings(result),
    )


def _score_rows(
    figures: Mapping[str, dict[str, Any]],
) -> list[tuple[str, list[views.TableCell]]]:
    two = formats.decimals(2)

    def change(own: dict[str, Any]) -> views.TableCell:
        found = mapping(own.get('to_dense'))
        return views.cell(found.get('mean'), formats.points, found.get('interval'))

    def scored(own: dict[str, Any]) -> views.TableCell:
        count, of = number(own.get('n_scored')), number(own.get('n'))
        return (
            views.NOTHING
            if None in (count, of)
            else views.TableCell(f'{count:.0f} of {of:.0f}')
        )

    rows: list[tuple[str, Callable[[dict[str, Any]], views.TableCell]]] = [
        (
            'Mean over personas',
            lambda own: views.cell(
                own.get('mean_over_personas'), two, own.get('interval')
            ),
        ),
        (f'Less that of {next(iter(figures))}', change),
        (
            'Standard deviation over personas',
            lambda own: views.cell(own.get('std_over_personas'), two),
        ),
        ('Mean over answers', lambda own: views.cell(own.get('mean'), two)),
        (
            'Mean, 0 where there is no score',
            lambda own: views.cell(own.get('mean_with_zeros'), two),
        ),
        ('Answers with a score', scored),
        ('Refusals', lambda own: views.cell(own.get('n_refused'), formats.decimals(0))),
        (
            'Without a verdict',
            lambda own: views.cell(own.get('n_failed'), formats.decimals(0)),
        ),
    ]
    return views.filled(
        (label, [take(own) for own in figures.values()]) for label, take in rows
    )


def _persona_table(figures: Mapping[str, dict[str, Any]]) -> views.Table | None:
    means = {name: mapping(own.get('persona_means')) for name, own in figures.items()}
    personas = list(dict.fromkeys(x for own in means.values() for x in own))
    if len(personas) < 2:
        return None
    last = means[list(means)[-1]]

    def worst_first(persona: str) -> float:
        value = number(last.get(persona))
        return math.inf if value is None else value

    rows = []
    for persona in sorted(personas, key=worst_first)[: views.MOST_ROWS]:
        values = [number(own.get(persona)) for own in means.values()]
        cells = [views.cell(value, formats.decimals(2)) for value in values]
        cells += [
            views.NOTHING
            if values[0] is None or value is None
            else views.TableCell(formats.points(value - values[0]))
            for value in values[1:]
        ]
        rows.append((persona, cells))
    columns = [*report_views.labels(means), *report_views.changes(list(means))]
    left_out = f', the lowest {views.MOST_ROWS} of {len(personas)}'
    title = f'Persona score by persona{left_out * (len(personas) > views.MOST_ROWS)}'
    return views.Table(
        'judge-personas', columns, views.filled(rows), title, len(rows) > 12
    )


def _judged(
    result: Mapping[str, Any], failed: Mapping[str, Any]
) -> tuple[list[views.JudgedQuestion], int]:
    """The questions whose answers are worst, and how many there are in all."""
    rows = [mapping(row) for row in _listed(result.get('answers'))]
    asked: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    seen: dict[tuple[str, ...], int] = {}
    for row in rows:
        name, group, question = (
            str(row.get(key, '')) for key in ('model', 'group', 'question')
        )
        if not name:
            continue
        # The same question may be asked twice.
        turn = seen[name, group, question] = seen.get((name, group, question), 0) + 1
        asked.setdefault((group, question, turn), {})[name] = row
    names = list(dict.fromkeys(name for name, _, _ in seen))
    if not names:
        return [], 0
    types = {
        tuple(str(row.get(key, '')) for key in ('model', 'group', 'question')): str(
            row.get('type', '')
        )
        for row in map(mapping, _listed(failed.get('answers')))
    }

    def badness(own: dict[str, dict[str, Any]]) -> tuple[bool, float, float]:
        last, first = own.get(names[-1], {}), own.get(names[0], {})
        unjudged = not last or bool(last.get('roleplay_failure'))
        # An answer without a score is a refusal, which the judge puts below all.
        score = number(last.get('roleplay_score')) or 0.0
        return unjudged, score, -(number(first.get('roleplay_score')) or 0.0)

    worst = sorted(asked.items(), key=lambda item: badness(item[1]))
    questions = [
        views.JudgedQuestion(
            group,
            question,
            [
                (name, _answer(name, own[name], types.get((name, group, question), '')))
                for name in names
                if name in own
            ],
        )
        for (group, question, _), own in worst[:MOST_QUESTIONS]
    ]
    return questions, len(asked)


def _answer(name: str, row: Mapping[str, Any], kind: str) -> views.JudgedAnswer:
    score = number(row.get('roleplay_score'))
    remarks = []
    if kind in failures.TYPES:
        remarks.append(kind.replace('_', '-'))
    coherence = number(row.get('coherence_score'))
    if coherence is not None:
        remarks.append(f'coherence {coherence:.1f}')
    refusal = number(row.get('roleplay_refusal'))
    if refusal is not None and refusal >= 0.01 and kind != failures.REFUSAL:
        remarks.append(f'refusal {100 * refusal:.0f}\N{NO-BREAK SPACE}%')
    if row.get('finished') is False:
        remarks.append('stopped at the limit')
    if row.get('roleplay_failure'):
        remarks.append('no verdict')
    return views.JudgedAnswer(
        report_views.label(name),
        'no score' if score is None else f'{score:.1f}',
        remarks,
        str(row.get('answer', '')),
    )


def failure_types(result: Mapping[str, Any]) -> views.Section | None:
    """results/failures.json: Table 10 of the paper."""
    models = report_views.models(result)
    labels = [name.replace('_', '-') for name in failures.TYPES]
    rows, bars = [], []
    for name, own in models.items():
        counts = [number(mapping(own.get('counts')).get(x)) for x in failures.TYPES]
        shares = [number(mapping(own.get('shares')).get(x)) for x in failures.TYPES]
        low, of = number(own.get('n')), number(own.get('answers'))
        cells = [
            views.cell(low, formats.decimals(0)),
            *(
                views.TableCell(
                    f'{count:.0f}', '' if share is None else formats.percent(share)
                )
                if count is not None
                else views.NOTHING
                for count, share in zip(counts, shares, strict=True)
            ),
        ]
        if of and low is not None:
            cells[0] = views.TableCell(f'{low:.0f}', f'of {of:.0f}')
            parts = [
                (paint, (count or 0.0) / of)
                for paint, count in zip(_TYPE_PAINTS, counts, strict=True)
            ]
            share = f'{100 * low / of:.1f} % of {of:.0f}'
            bars.append((report_views.label(name), parts, share))
        rows.append((report_views.label(name), cells))
    rows = views.filled(rows)
    if not rows:
        return None
    threshold = number(result.get('threshold'))
    below = failures.LOW_SCORE if threshold is None else threshold
    plot = charts.stacked_plot(
        'Low-scored answers by type',
        bars,
        [
            (paint, 'block', label)
            for paint, label in zip(_TYPE_PAINTS, labels, strict=True)
        ],
    )
    return views.Section(
        'What goes wrong',
        f'Answers with a persona score below {below:.0f}, and refusals, sorted by '
        'rules: repetition first, then refusal, then incomplete; all others answer '
        'like an assistant, not like the persona.',
        [plot] if plot else [],
        [views.Table('failures', ['Low-scored', *labels], rows)],
        'Bars: of all answers. Small figures of the types: of the low-scored '
        "ones, as in the paper's Table 10.",
    )


def multi_turn(
    result: Mapping[str, Any], of_page: Sequence[str]
) -> views.Section | None:
    """results/multiturn.json: consistency turn by turn."""
    models = report_views.models(result)
    turns = {
        name: {
            int(turn): entry
            for entry in map(mapping, _listed(own.get('turns')))
            if (turn := number(entry.get('turn'))) is not None
        }
        for name, own in models.items()
    }
    courses = []
    for name, entries in turns.items():
        points = [
            (turn, mean, math.nan if (std := number(entry.get('std'))) is None else std)
            for turn, entry in sorted(entries.items())
            if (mean := number(entry.get('mean'))) is not None
        ]
        if points:
            figures = np.array(points, float).T
            courses.append(
                charts.DialogueLine(*report_views.look(name, of_page), *figures)
            )
    plot = charts.turns_plot(
        'Consistency by turn',
        courses,
        [
            (*report_views.look(name, of_page), _with_slope(name, models[name]))
            for name in models
        ],
    )
    rows = []
    for key, label, show in (
        ('mean', 'Mean over turns', formats.decimals(2)),
        ('slope', 'Slope, points a turn', lambda x: formats.signed(x, 3)),
        ('change', 'Last turn less the first', formats.points),
    ):
        found = [mapping(own.get(key)) for own in models.values()]
        cells = [views.cell(x.get('value'), show, x.get('interval')) for x in found]
        rows.append((label, cells))
    for key, label in (
        ('dialogues', 'Dialogues'),
        ('broken_off', 'Broken off'),
        ('forgotten', 'Answers with earlier turns left out'),
    ):
        cells = [
            views.cell(own.get(key), formats.decimals(0)) for own in models.values()
        ]
        rows.append((label, cells))
    by_turn = [
        (str(turn), [_turn(entries.get(turn, {})) for entries in turns.values()])
        for turn in sorted({x for entries in turns.values() for x in entries})
    ]
    rows, by_turn = views.filled(rows), views.filled(by_turn)
    if not rows and not by_turn:
        return None
    columns = report_views.labels(models)
    tables = [
        views.Table('multiturn', columns, rows),
        views.Table(
            'multiturn-turns',
            columns,
            by_turn[: views.MOST_ROWS],
            'Turn by turn',
            folded=True,
        ),
    ]
    settings = mapping(result.get('settings'))
    partner = settings.get('partner_model') or result.get('partner') or 'a partner'
    judge = settings.get('judge_model') or result.get('judge') or 'a judge'
    return views.Section(
        'Over many turns',
        f'Dialogues with {partner}; {judge} gave each answer 1 to 5 for keeping to '
        'the persona. A falling line drifts off.',
        [plot] if plot else [],
        [table for table in tables if table.rows],
        'Bands: one standard deviation over personas, none for a single one. '
        'Small figures: 95 % bootstrap intervals over dialogues.',
        settings=report_views.settings(result),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _with_slope(name: str, own: Mapping[str, Any]) -> str:
    slope = number(mapping(own.get('slope')).get('value'))
    label = report_views.label(name)
    if slope is None:
        return label
    return f'{label}, {formats.signed(slope, 3)} points a turn'


def _turn(entry: Mapping[str, Any]) -> views.TableCell:
    mean, std, count = (number(entry.get(key)) for key in ('mean', 'std', 'n_scored'))
    if mean is None:
        return views.NOTHING
    details = [] if std is None else [f'SD {std:.2f}']
    details += [] if count is None else [f'{count:.0f} scored']
    return views.TableCell(f'{mean:.2f}', ', '.join(details))
