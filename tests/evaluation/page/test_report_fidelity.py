"""Character fidelity in report.html: as in its file, the worst answers first."""

from ppjax.evaluation.page import report_fidelity
from tests.evaluation.page import samples


def test_figures(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    dense, pruned = (
        results['fidelity']['models'][name]['fidelity'] for name in samples.NAMES
    )
    low, high = pruned['interval']
    assert page.row('fidelity', 'Mean over personas') == [
        f'{own["mean_over_personas"]:.2f} | '
        f'{own["interval"][0]:.2f} to {own["interval"][1]:.2f}'
        for own in (dense, pruned)
    ]
    assert low < high
    change = pruned['to_dense']['mean']
    shown = page.row('fidelity', 'Less that of dense')
    assert shown[0] == '–'
    assert shown[1].startswith(f'{change:+.2f}'.replace('-', '−') + ' | ')
    assert page.row('fidelity', 'Answers with a score') == ['6 | of 6', '4 | of 6']
    again = 'Asked again, since the reply was no JSON'
    assert page.row('fidelity', again) == ['0', '2']
    assert page.row('fidelity', 'No JSON in the end') == ['0', '1']
    assert page.row('fidelity', 'Without a verdict') == ['0', '1']
    each = pruned['flaws_per_answer']
    assert page.row('fidelity-flaws', 'Flaws in an answer')[1] == f'{each["all"]:.2f}'
    assert page.row('fidelity-flaws', 'Of knowledge')[1] == f'{each["knowledge"]:.2f}'
    means = pruned['persona_means']
    rows = page.tables['fidelity-personas'][1:]
    assert [row[0] for row in rows] == sorted(samples.PERSONAS, key=means.get)


def test_the_worst_answers_come_first_and_unjudged_ones_last(results):
    found = report_fidelity.fidelity(results['fidelity'], samples.NAMES)
    rows = [x for x in results['fidelity']['answers'] if x['model'] == 'pruned']
    scored = [x for x in rows if x['fidelity_score'] is not None]
    scored.sort(key=lambda row: row['fidelity_score'])
    order = [item.question for item in found.questions]
    assert sorted(order[-2:]) == ['What is 1?', 'What is 3?']
    assert order[3] == 'What is 4?' == scored[-1]['question']
    answers = [dict(item.answers)['pruned'] for item in found.questions]
    assert [x.score for x in answers[:4]] == [
        f'{row["fidelity_score"]:.1f}' for row in scored
    ]
    worst = answers[0]
    flaw = scored[0]['fidelity_flaws'][0]
    assert worst.remarks[0] == (
        f'{flaw["type"]} {flaw["severity"]}: "Okay" is no word of his'
    )
    assert worst.remarks[4] == '1 more'
    assert not answers[3].remarks
    by_question = dict(zip(order, answers, strict=True))
    assert by_question['What is 1?'].score == 'no score'
    assert 'no verdict' in by_question['What is 3?'].remarks
