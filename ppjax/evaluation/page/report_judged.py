"""Judged answers, dialogues and failure types as sections of the report."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from ppjax.evaluation.answers import failures, unjudged
from ppjax.evaluation.page import report_views
from ppjax.evaluation.page.report_views import at
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats, views
from ppjax.pages.formats import number

# results/judge.csv has all.
MOST_QUESTIONS = 40

_TYPE_PAINTS = ('learned', 'heldout', 'random', 'muted')
_KINDS = {'roleplay': 'Persona score', 'coherence': 'Coherence'}
_COUNT = formats.decimals(0)
_SCORE = formats.decimals(2)
_TEXT_ROWS = (
    ('Tokens of an answer', 'mean_answer_tokens', _COUNT, ''),
    ('Answers stopped at the limit', 'at_limit', formats.percent, ''),
    ('Different word pairs in an answer', 'distinct_2', formats.percent, ''),
    ('Words that repeat four in a row', 'repeat_rate', formats.percent, ''),
)


def judge(
    result: Mapping[str, Any], failed: Mapping[str, Any], of_page: Sequence[str]
) -> views.Section:
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
    }
    score_rows = (
        *report_views.score_rows(models, _SCORE),
        ('Mean, 0 where there is no score', 'mean_with_zeros', _SCORE, ''),
        ('Answers with a score', 'n_scored', _COUNT, 'n'),
        ('Refusals', 'n_refused', _COUNT, ''),
        ('Without a verdict', 'n_failed', _COUNT, ''),
    )
    tables, groups = [], []
    for kind, figures in kinds.items():
        title = _KINDS[kind]
        tables.append(
            report_views.table(
                f'judge-{kind}', figures, score_rows, title, folded=kind != 'roleplay'
            )
        )
        bars = report_views.bars(
            figures, of_page, 'mean_over_personas', formats.decimals(1)
        )
        groups.append(charts.BarGroup(title, bars))
    title = 'The text of the answers'
    tables.append(
        report_views.table('judge-text', models, _TEXT_ROWS, title, folded=True)
    )
    tables.append(
        persona_table('judge-personas', 'Persona score by persona', kinds['roleplay'])
    )
    note = (
        'Ranges: 95 % bootstrap intervals. A refusal gets no score: one mean leaves it '
        'out, the other counts it as 0.'
    )
    rows = map(mapping, _listed(failed.get('answers')))
    types = {_key(row): str(row.get('type', '')) for row in rows}
    questions, below = worst_first(
        result,
        'roleplay',
        lambda name, row: _answer(name, row, types.get(_key(row), '')),
    )
    plot = charts.bar_groups_plot(
        'Scores by the judge', groups, report_views.legend(models, of_page)
    )
    return views.Section(
        'Judged answers',
        f'0 to 100 for each answer, by {report_views.asked(result, "judge")}: how well '
        'it plays the persona. Higher is better.',
        [plot],
        tables,
        note + missing(result),
        questions,
        below,
        report_views.settings(result),
    )


def missing(result: Mapping[str, Any]) -> str:
    """A sentence on answers that have no verdict yet; '' if all have one."""
    count = number(at(result, 'settings.without_verdict'))
    if not count:
        return ''
    return f' {count:.0f} answers have no verdict yet; evaluate again for them.'


def persona_table(
    name: str, title: str, figures: Mapping[str, dict[str, Any]]
) -> views.Table:
    """Every persona's mean, if there are several."""
    means = {name: mapping(own.get('persona_means')) for name, own in figures.items()}
    personas = list(dict.fromkeys(x for own in means.values() for x in own))

    def score(persona: str) -> list[float | None]:
        return [number(own.get(persona)) for own in means.values()]

    def worst_first(persona: str) -> float:
        last = score(persona)[-1]
        return math.inf if last is None else last

    rows = []
    for persona in sorted(personas, key=worst_first) if len(personas) > 1 else ():
        first, *others = score(persona)
        changes = [None if first is None or x is None else x - first for x in others]
        rows.append(
            (
                persona,
                [
                    *(views.cell(x, _SCORE) for x in (first, *others)),
                    *(views.cell(x, formats.points) for x in changes),
                ],
            )
        )
    columns = [*report_views.labels(means), *report_views.changes(list(means))]
    left_out = f', the lowest {views.MOST_ROWS} of {len(personas)}'
    title += left_out * (len(personas) > views.MOST_ROWS)
    return views.Table(name, columns, rows, title, len(rows) > 12)


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whose answer to which question."""
    name, group, question = (
        str(row.get(key, '')) for key in ('model', 'group', 'question')
    )
    return name, group, question


def worst_first(
    result: Mapping[str, Any],
    kind: str,
    answer: Callable[[str, Mapping[str, Any]], views.JudgedAnswer],
    *,
    unscored_last: bool = False,
) -> tuple[list[views.JudgedQuestion], str]:
    """The questions whose answers are worst, and what is said above them.

    Args:
        result: with `answers`.
        kind: of the score; rows have KIND_score and KIND_failure.
        answer: (model, row) -> how it is shown.
        unscored_last: whether an answer without a score is one that was not judged,
            and not worse than all.
    """
    asked: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    seen: dict[tuple[str, str, str], int] = {}
    for row in map(mapping, _listed(result.get('answers'))):
        name, group, question = key = _key(row)
        if not name:
            continue
        # The same question may be asked twice.
        turn = seen[key] = seen.get(key, 0) + 1
        asked.setdefault((group, question, turn), {})[name] = row
    names = list(dict.fromkeys(name for name, _, _ in seen))

    def badness(own: dict[str, dict[str, Any]]) -> tuple[bool, float, float]:
        last, first = own.get(names[-1], {}), own.get(names[0], {})
        score, before = (number(row.get(f'{kind}_score')) for row in (last, first))
        unjudged = not last or bool(last.get(f'{kind}_failure'))
        unjudged |= unscored_last and score is None
        return unjudged, score or 0.0, -(before or 0.0)

    worst = sorted(asked.items(), key=lambda item: badness(item[1]))
    questions = [
        views.JudgedQuestion(
            group,
            question,
            [(name, answer(name, own[name])) for name in names if name in own],
        )
        for (group, question, _), own in worst[:MOST_QUESTIONS]
    ]
    if not questions:
        return [], ''
    part = f'{len(questions)} of {len(asked)} questions, '
    last = questions[0].answers[-1][0]
    return questions, (
        f'Below: {part * (len(questions) < len(asked))}the worst answers of the {last} '
        'model first.'
    )


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


def failure_types(result: Mapping[str, Any]) -> views.Section:
    """results/failures.json: Table 10 of the paper."""
    models = report_views.models(result)
    labels = [name.replace('_', '-') for name in failures.TYPES]
    rows, bars = [], []
    for name, own in models.items():
        label = report_views.label(name)
        counts = [number(at(own, f'counts.{kind}')) for kind in failures.TYPES]
        cells = [views.cell(own.get('n'), _COUNT, own.get('answers'))]
        for kind, count in zip(failures.TYPES, counts, strict=True):
            share = number(at(own, f'shares.{kind}'))
            detail = '' if share is None else formats.percent(share)
            cells.append(
                views.NOTHING
                if count is None
                else views.TableCell(_COUNT(count), detail)
            )
        rows.append((label, cells))
        low, of = number(own.get('n')), number(own.get('answers'))
        if of and low is not None:
            parts = [
                (paint, (count or 0.0) / of)
                for paint, count in zip(_TYPE_PAINTS, counts, strict=True)
            ]
            bars.append((label, parts, f'{100 * low / of:.1f} % of {of:.0f}'))
    threshold = number(result.get('threshold'))
    below = failures.LOW_SCORE if threshold is None else threshold
    plot = charts.stacked_plot(
        'Low-scored answers by type',
        bars,
        [
            (paint, 'block', label)
            for paint, label in zip(_TYPE_PAINTS, labels, strict=True)
        ],
        'Of all answers.',
    )
    return views.Section(
        'What goes wrong',
        f'Answers with a persona score below {below:.0f}, and refusals, sorted by '
        'rules: repetition first, then refusal, then incomplete; all others answer '
        'like an assistant, not like the persona.',
        [plot],
        [views.Table('failures', ['Low-scored', *labels], rows)],
        "Shares of the types: of the low-scored answers, as in the paper's Table 10.",
    )


def unjudged_answers(result: Mapping[str, Any]) -> views.Section:
    """results/answers.json: what rules find in answers that nobody judged."""
    models = report_views.models(result)
    rows: list[tuple[str, str, formats.Show, str]] = [
        ('Answers', 'n', _COUNT, ''),
        *(
            (kind.capitalize(), f'shares.{kind}', formats.percent, '')
            for kind in unjudged.TYPES
        ),
    ]
    return views.Section(
        'Answers, by rule',
        'Greedy answers, and what rules find wrong with them: repetition first, then '
        'refusal, then incomplete, which all are that the limit of tokens stops.',
        tables=[report_views.table('answers', models, [*rows, *_TEXT_ROWS])],
        note='results/answers.json has every answer.',
        settings=report_views.settings(result),
    )


_DIALOGUE_ROWS = (
    ('Mean over turns', 'mean.value', _SCORE, 'mean.interval'),
    (
        'Slope, points a turn',
        'slope.value',
        lambda x: formats.signed(x, 3),
        'slope.interval',
    ),
    ('Last turn less the first', 'change.value', formats.points, 'change.interval'),
    ('Dialogues', 'dialogues', _COUNT, ''),
    ('Personas', 'personas', _COUNT, ''),
    ('Answers with a score', 'n_scored', _COUNT, 'n'),
    ('Broken off', 'broken_off', _COUNT, ''),
    ('Answers with earlier turns left out', 'forgotten', _COUNT, ''),
)


def multi_turn(result: Mapping[str, Any], of_page: Sequence[str]) -> views.Section:
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
    courses, legend, counted = [], [], {}
    for name, entries in turns.items():
        look = report_views.look(name, of_page)
        legend.append((*look, _with_slope(name, models[name])))
        points = [
            (turn, mean, math.nan if (std := number(entry.get('std'))) is None else std)
            for turn, entry in sorted(entries.items())
            if (mean := number(entry.get('mean'))) is not None
        ]
        if points:
            courses.append(charts.DialogueLine(*look, *np.array(points, float).T))
        counted[name] = models[name] | {
            key: sum(number(entry.get(key)) or 0.0 for entry in entries.values())
            for key in ('n_scored', 'n')
            if entries
        }
    by_turn = [
        (str(turn), [_turn(entries.get(turn, {})) for entries in turns.values()])
        for turn in sorted({x for entries in turns.values() for x in entries})
    ]
    return views.Section(
        'Over many turns',
        f'Dialogues with {report_views.asked(result, "partner")}; '
        f'{report_views.asked(result, "judge")} gave each answer 1 to 5 for keeping to '
        'the persona. Who drifts off it scores lower from turn to turn.',
        [charts.turns_plot('Consistency by turn', courses, legend)],
        [
            report_views.table('multiturn', counted, _DIALOGUE_ROWS),
            views.Table(
                'multiturn-turns',
                report_views.labels(models),
                by_turn,
                'Turn by turn',
                folded=True,
            ),
        ],
        'Ranges: 95 % bootstrap intervals over dialogues. SD: over personas.',
        settings=report_views.settings(result),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _with_slope(name: str, own: Mapping[str, Any]) -> str:
    slope = number(at(own, 'slope.value'))
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
