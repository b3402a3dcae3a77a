"""Character fidelity as a section of the report: scores, flaws, the worst answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from ppjax.evaluation.judges import flaws
from ppjax.evaluation.page import report_judged, report_views
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats, views
from ppjax.pages.formats import number

_COUNT = formats.decimals(0)
_FIGURE = formats.decimals(2)
# Of an answer that has many: what is said of one, and of how many.
_FLAWS, _LETTERS = 4, 160
_FLAW_ROWS = (
    ('Flaws in an answer', 'flaws_per_answer.all', _FIGURE, ''),
    *((f'Of {kind}', f'flaws_per_answer.{kind}', _FIGURE, '') for kind in flaws.KINDS),
    ('Mean severity of a flaw, 1 to 5', 'severity', _FIGURE, ''),
)


def fidelity(result: Mapping[str, Any], of_page: Sequence[str]) -> views.Section:
    """results/fidelity.json, and the worst answers.

    Args:
        result: of the judge.
        of_page: the page's models in their order.
    """
    models = report_views.models(result)
    figures = {name: mapping(own.get('fidelity')) for name, own in models.items()}
    rows = (
        *report_views.score_rows(models, _FIGURE),
        ('Answers with a score', 'n_scored', _COUNT, 'n'),
        ('Asked again, since the reply was no JSON', 'n_retried', _COUNT, ''),
        ('No JSON in the end', 'n_malformed', _COUNT, ''),
        ('Without a verdict', 'n_failed', _COUNT, ''),
    )
    bars = report_views.bars(
        figures, of_page, 'mean_over_personas', formats.decimals(1)
    )
    questions, below = report_judged.worst_first(
        result, 'fidelity', _answer, unscored_last=True
    )
    return views.Section(
        'Character fidelity',
        f'0 to 100 for each answer, from the flaws that '
        f'{report_views.asked(result, "judge")} finds in it: 100 less 5 for each point '
        'of their severity beyond 0.3 (CoSER). Higher is better.',
        [
            charts.bar_groups_plot(
                'Character fidelity',
                [charts.BarGroup('Fidelity', bars)],
                report_views.legend(models, of_page),
            )
        ],
        [
            report_views.table('fidelity', figures, rows),
            report_views.table('fidelity-flaws', figures, _FLAW_ROWS, 'Flaws'),
            report_judged.persona_table(
                'fidelity-personas', 'Fidelity by persona', figures
            ),
        ],
        'Ranges: 95 % bootstrap intervals. An answer whose flaws the judge never listed '
        f'as JSON has no score.{report_judged.missing(result)}',
        questions,
        below,
        report_views.settings(result),
    )


def _answer(name: str, row: Mapping[str, Any]) -> views.JudgedAnswer:
    score = number(row.get('fidelity_score'))
    listed = row.get('fidelity_flaws')
    found = [mapping(x) for x in listed] if isinstance(listed, list) else []
    remarks = []
    for flaw in found[:_FLAWS]:
        severity = number(flaw.get('severity'))
        degree = '' if severity is None else f' {severity:.0f}'
        said = f'{flaw.get("type", "")}{degree}: {flaw.get("instance", "")}'
        shown = said if len(said) <= _LETTERS else f'{said[:_LETTERS]}…'
        remarks.append(formats.printable(shown))
    if len(found) > _FLAWS:
        remarks.append(f'{len(found) - _FLAWS} more')
    if row.get('fidelity_failure'):
        remarks.append('no verdict')
    return views.JudgedAnswer(
        report_views.label(name),
        'no score' if score is None else f'{score:.1f}',
        remarks,
        str(row.get('answer', '')),
    )
