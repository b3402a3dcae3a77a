"""Evaluation results in report.html: as in their files, worst first, safe, optional."""

import math
import re
from typing import Any

import numpy as np
import pytest

from ppjax.evaluation.page import (
    report,
    report_judged,
    report_views,
    run_results,
)
from ppjax.pages import drawing, formats
from tests.evaluation.page import samples


def test_the_whole_page(tmp_path, results):
    page = samples.page(tmp_path, results)
    order = [
        'Persona likelihood, model by model',
        'Likelihood of plain answers, without the persona',
        'Answers, by rule',
        'Judged answers',
        'What goes wrong',
        'Character fidelity',
        'Over many turns',
        'Benchmarks',
        'Measured speed',
    ]
    assert [x for x in page.headings if x in order] == order
    labels = {value for name, value in page.attributes if name == 'aria-label'}
    assert labels == {
        "NLL of the persona's held-out answers",
        'NLL of plain answers to general instructions',
        'Scores by the judge',
        'Low-scored answers by type',
        'Character fidelity',
        'Consistency by turn',
        'Benchmark accuracy',
        'Time against the dense model',
    }
    text = (tmp_path / 'report.html').read_text('utf-8')
    drawings = re.findall(r'<svg.*?</svg>', text, flags=re.DOTALL)
    assert len(drawings) >= len(labels)
    for svg in drawings:
        assert not re.search(r'(fill|stroke): #', svg)
    for said in ('0.10.2', 'd880 no mask', 'judge-3 abc', 'partner-8'):
        assert said in page.text
    assert text == samples.page_text(
        tmp_path, results
    )  # The same inputs give the same bytes.


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
def test_a_section_comes_with_its_file(tmp_path, results, name, undrawn):
    page = samples.page(tmp_path, {name: results[name]})
    assert set(page.headings) & set(samples.TITLES.values()) == {samples.TITLES[name]}


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
def test_a_section_goes_with_its_file(tmp_path, results, name, undrawn):
    del results[name]
    page = samples.page(tmp_path, results)
    want = {samples.TITLES[other] for other in results}
    assert set(page.headings) & set(samples.TITLES.values()) == want


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
@pytest.mark.parametrize('content', ['{"models": ', '[' * 100_000, '[1]', '"x"'])
def test_damaged_files_are_named(tmp_path, results, name, content, undrawn):
    samples.page_text(tmp_path, results)
    (tmp_path / 'results' / f'{name}.json').write_text(content, encoding='utf-8')
    page = samples.Page(report.write_report(tmp_path).read_text('utf-8'))
    assert f'could not be read: results/{name}.json' in page.text
    others = {samples.TITLES[other] for other in results if other != name}
    assert others <= set(page.headings)


def test_likelihood_figures(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    models = results['persona_likelihood']['models']
    assert page.tables['persona-likelihood'][0] == ['', 'Dense', 'Pruned']

    def shown(figure: dict[str, Any]) -> str:
        low, high = figure['interval']
        return f'{figure["mean"]:.4f} | {low:.4f} to {high:.4f}'

    assert page.row('persona-likelihood', 'NLL, nats per token') == [
        shown(models[name]['nll']) for name in samples.NAMES
    ]
    kl = page.row('persona-likelihood', 'KL from dense, nats per token')
    assert kl == ['–', shown(models['pruned']['kl_to_dense'])]
    change = page.row('persona-likelihood', 'NLL less that of dense')[1]
    mean = models['pruned']['nll_difference']['mean']
    assert mean < 0
    assert change.startswith(f'−{-mean:.4f} | −')
    same = page.row('persona-likelihood', 'Same likeliest token as dense')
    assert same[0] == '–'
    assert same[1].startswith(f'{100 * models["pruned"]["agreement"]["mean"]:.1f} % | ')
    size = results['persona_likelihood']['heldout']
    assert f'12 conversations, {size["answer_tokens"]} answer tokens' in page.text


def test_plain_answers_have_a_section_of_their_own(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    mean = results['plain_likelihood']['models']['pruned']['nll']['mean']
    shown = page.row('plain-likelihood', 'NLL, nats per token')[1]
    assert shown.startswith(f'{mean:.4f} | ')
    assert 'expects plain answers to general instructions: 12' in page.text
    assert 'No persona prompt is sent' in page.text


def test_settings_are_told_but_not_whole_lists(tmp_path, results, undrawn):
    results['judge']['settings']['judge_model'] = 'j' * 5000
    page = samples.page(tmp_path, {'judge': results['judge']})
    pairs = dict(page.tables[''])
    assert pairs['max_new_tokens'] == '64'
    assert pairs['models.dense'] == 'd880 no mask'
    assert len(pairs['judge_model']) == 300
    assert 'questions' not in pairs


def test_an_interval_is_two_numbers():
    for value in (None, 'ab', [1], [1, 2, 3], [1, None], [1, math.nan]):
        assert formats.interval(value) is None
    assert formats.interval([1, 2.5]) == (1.0, 2.5)


def test_benchmark_figures(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    assert page.tables['benchmarks'][0][1:] == [
        'Dense',
        'Pruned',
        'Pruned less dense',
        'Guessing',
        'Questions',
    ]
    labels = [row[0] for row in page.tables['benchmarks'][1:]]
    assert labels == [
        'PIQA, acc',
        'PIQA, acc_norm',
        'OpenBookQA, acc',
        'OpenBookQA, acc_norm',
        'MMLU, acc, 5-shot',
    ]
    for task, label, guess in (
        ('piqa', 'PIQA, acc_norm', '0.50'),
        ('openbookqa', 'OpenBookQA, acc_norm', '0.25'),
        ('mmlu', 'MMLU, acc, 5-shot', '0.25'),
    ):
        key = 'acc' if task == 'mmlu' else 'acc_norm'
        models = results[task]['models']
        *own, change, guessing, count = page.row('benchmarks', label)
        assert own == [
            f'{models[name][key]["value"]:.4f} | ± {models[name][key]["stderr"]:.4f}'
            for name in samples.NAMES
        ]
        dense, pruned = (
            np.array([q['gold'] == q[key] for q in models[name]['questions']], float)
            for name in samples.NAMES
        )
        gain = pruned - dense
        error = np.sqrt(np.var(gain, ddof=1) / len(gain))
        shown = f'{gain.mean():+.4f}'.replace('-', '−')
        assert change == f'{shown} | ± {error:.4f}'
        assert (guessing, count) == (guess, '60')
    subjects = page.tables['mmlu-subjects']
    assert [row[0] for row in subjects[1:]] == ['college physics', 'virology']
    virology = results['mmlu']['models']['pruned']['groups']['virology']
    assert subjects[2][2].startswith(f'{virology["value"]:.4f} | ± ')
    assert subjects[2][3] == '30'


def test_differences_need_the_same_questions(tmp_path, results, undrawn):
    results['piqa']['models']['pruned']['questions'].pop()
    results['openbookqa']['models']['pruned']['questions'][0]['where'] = 'other:1'
    page = samples.page(tmp_path, results)
    assert page.row('benchmarks', 'PIQA, acc')[2] == '–'
    assert page.row('benchmarks', 'OpenBookQA, acc')[2] == '–'
    assert page.row('benchmarks', 'MMLU, acc, 5-shot')[2] != '–'


def test_judge_figures(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    models = results['judge']['models']
    for kind in ('roleplay', 'coherence'):
        table = f'judge-{kind}'
        dense, pruned = (models[name][kind] for name in samples.NAMES)
        low, high = pruned['interval']
        assert page.row(table, 'Mean over personas')[1] == (
            f'{pruned["mean_over_personas"]:.2f} | {low:.2f} to {high:.2f}'
        )
        assert page.row(table, 'Mean over answers') == [
            f'{own["mean"]:.2f}' for own in (dense, pruned)
        ]
        assert page.row(table, 'Mean, 0 where there is no score') == [
            f'{own["mean_with_zeros"]:.2f}' for own in (dense, pruned)
        ]
        change = pruned['to_dense']
        shown = page.row(table, 'Less that of dense')
        assert shown[0] == '–'
        assert shown[1].startswith(f'{change["mean"]:+.2f}'.replace('-', '−') + ' | ')
        assert page.row(table, 'Standard deviation over personas')[1] == (
            f'{pruned["std_over_personas"]:.2f}'
        )
    assert page.row('judge-roleplay', 'Answers with a score')[1] == '58 | of 60'
    assert page.row('judge-roleplay', 'Refusals') == ['0', '1']
    assert page.row('judge-roleplay', 'Without a verdict') == ['0', '1']
    assert page.row('judge-text', 'Answers stopped at the limit') == ['12.5 %'] * 2
    means = models['pruned']['roleplay']['persona_means']
    rows = page.tables['judge-personas'][1:]
    assert [row[0] for row in rows] == sorted(samples.PERSONAS, key=means.get)
    for persona, dense, pruned, change in rows:
        before = models['dense']['roleplay']['persona_means'][persona]
        assert (dense, pruned) == (f'{before:.2f}', f'{means[persona]:.2f}')
        assert change == f'{means[persona] - before:+.2f}'.replace('-', '−')
    assert (
        f'{models["pruned"]["roleplay"]["mean_over_personas"]:.2f}'
        in (page.text.split('Persona score, pruned model')[1][:40])
    )


def test_missing_verdicts_are_told(tmp_path, results, undrawn):
    results['judge']['settings']['without_verdict'] = 3
    assert '3 answers have no verdict yet' in samples.page(tmp_path, results).text


def test_the_worst_answers_come_first(results):
    judged, failed = results['judge'], results['failures']
    section = report_judged.judge(judged, failed, samples.NAMES)
    found = section.questions
    assert len(found) == report_judged.MOST_QUESTIONS == 40
    below = 'Below: 40 of 60 questions, the worst answers of the pruned model first.'
    assert section.questions_note == below
    rows = [row for row in judged['answers'] if row['model'] == 'pruned']
    dense = {
        (row['group'], row['question']): row
        for row in judged['answers']
        if row['model'] == 'dense'
    }
    # The one that refused, then by score; the one without a verdict is none of 40.
    scored = [row for row in rows if row['roleplay_score'] is not None]
    want = [rows[7], *sorted(scored, key=lambda row: row['roleplay_score'])][:40]
    for item, row in zip(found, want, strict=True):
        assert (item.group, item.question) == (row['group'], row['question'])
        (first, before), (last, after) = item.answers
        assert (first, last) == samples.NAMES
        assert after.text == row['answer']
        other = dense[row['group'], row['question']]
        assert before.text == other['answer']
        assert before.score == f'{other["roleplay_score"]:.1f}'
    assert found[0].answers[1][1].score == 'no score'
    assert 'refusal' in found[0].answers[1][1].remarks
    plain = report_judged.judge(judged, {}, samples.NAMES)
    assert plain is not None
    assert 'refusal 90\N{NO-BREAK SPACE}%' in plain.questions[0].answers[1][1].remarks


def test_an_answer_without_verdict_comes_last(results):
    judged = results['judge']
    judged['answers'] = [row for row in judged['answers'] if row['group'] == 'Bram']
    section = report_judged.judge(judged, {}, samples.NAMES)
    assert len(section.questions) == samples.EACH
    assert section.questions[-1].question == 'What is 8?'
    assert 'no verdict' in section.questions[-1].answers[1][1].remarks


def test_failure_types_are_beside_the_answers(results):
    section = report_judged.judge(results['judge'], results['failures'], samples.NAMES)
    types = {
        (row['model'], row['group'], row['question']): row['type']
        for row in results['failures']['answers']
    }
    seen = set()
    for item in section.questions:
        for name, answer in item.answers:
            kind = types.get((name, item.group, item.question))
            label = kind.replace('_', '-') if kind else None
            assert (label in answer.remarks) == bool(kind)
            seen.add(kind)
            if answer.text == samples.LOOP:
                assert 'stopped at the limit' in answer.remarks
    assert {'repetition', 'refusal', 'assistant_like', None} <= seen


def test_equal_questions_are_paired_in_their_order(results):
    rows = [
        {'model': name, 'group': 'g', 'question': 'Same?', 'answer': f'{name} {i}'}
        | {'roleplay_score': score}
        for name, scores in (('dense', (90, 80)), ('pruned', (50, 20)))
        for i, score in enumerate(scores)
    ]
    rows.append({'question': 'x', 'answer': 'of no model'})
    section = report_judged.judge({'answers': rows}, {}, samples.NAMES)
    texts = [[one.text for _, one in item.answers] for item in section.questions]
    assert texts == [['dense 1', 'pruned 1'], ['dense 0', 'pruned 0']]


def test_equal_scores_are_ordered_by_what_was_lost():
    rows = [
        {'model': name, 'group': 'g', 'question': q, 'answer': q}
        | {'roleplay_score': score}
        for q, dense in (('kept', 12), ('lost', 95))
        for name, score in (('dense', dense), ('pruned', 10))
    ]
    section = report_judged.judge({'answers': rows}, {}, samples.NAMES)
    assert [item.question for item in section.questions] == ['lost', 'kept']


def test_failure_figures(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    models = results['failures']['models']
    header, *rows = page.tables['failures']
    assert header[1:] == [
        'Low-scored',
        'assistant-like',
        'repetition',
        'refusal',
        'incomplete',
    ]
    for name, row in zip(samples.NAMES, rows, strict=True):
        own = models[name]
        assert row[1] == f'{own["n"]} | of 60'
        assert row[2:] == [
            f'{own["counts"][kind]} | {100 * own["shares"][kind]:.1f} %'
            for kind in ('assistant_like', 'repetition', 'refusal', 'incomplete')
        ]
    assert models['pruned']['counts']['repetition'] > 0


def test_multi_turn_figures(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    models = results['multiturn']['models']
    for key, label, digits in (
        ('slope', 'Slope, points a turn', 3),
        ('change', 'Last turn less the first', 2),
    ):
        shown = page.row('multiturn', label)[1]
        value = models['pruned'][key]['value']
        assert value < 0
        assert shown.startswith(f'−{-value:.{digits}f} | −')
    assert page.row('multiturn', 'Dialogues') == ['9', '9']
    for turn in range(1, samples.TURNS + 1):
        cells = page.row('multiturn-turns', str(turn))
        for name, cell in zip(samples.NAMES, cells, strict=True):
            own = models[name]['turns'][turn - 1]
            assert cell == f'{own["mean"]:.2f} | SD {own["std"]:.2f}, 9 scored'
    slope = f'{-models["pruned"]["slope"]["value"]:.3f}'
    assert f'Pruned, −{slope} points a turn' in page.text
    assert 'Dialogues with partner-8; judge-3 gave' in page.text


def test_speed_figures(tmp_path, results, undrawn):
    page = samples.page(tmp_path, results)
    closed = results['measured_efficiency']['closed_form']
    assert page.tables['speed'][0][1:] == [
        'Dense',
        'Pruned',
        'Pruned / dense',
        'By the shape',
    ]

    def ratio(key: str) -> str:
        return f'{closed["pruned"][key] / closed["dense"][key]:.3f}'

    assert page.row('speed', 'Prefill of 256 tokens, s') == [
        '2 | 1.8 to 2.2',
        '1.6 | 1.5 to 1.9',
        '0.800',
        f'{ratio("prefill_flops")} | FLOPs',
    ]
    assert page.row('speed', 'Decoding of 128 tokens, ms a token') == [
        '20 | 19 to 21',
        '17 | 16 to 30',
        '0.850',
        f'{ratio("decode_flops")} | FLOPs; weights read {ratio("decode_weight_bytes")}',
    ]
    assert page.row('speed', "XLA's count for the prefill") == [
        '3.000 GFLOP',
        '2.400 GFLOP',
        '0.800',
        f'{ratio("prefill_flops")} | FLOPs',
    ]
    assert page.row('speed', 'Files of the weights, as stored')[2:] == ['1.000', '–']
    assert 'in float32 on cpu x 1' in page.text


def test_a_masked_model_saves_no_work(tmp_path, results, undrawn):
    models = results['measured_efficiency']['models']
    work = models['dense']['prefill_flops']
    models['masked'] = models.pop('pruned') | {'prefill_flops': work}
    page = samples.page(tmp_path, results)
    assert page.row('speed', 'Prefill of 256 tokens, s')[3] == '1.000 | FLOPs'


def test_without_timing_only_counts_are_shown(tmp_path, results, undrawn):
    for own in results['measured_efficiency']['models'].values():
        for key in ('prefill_seconds', 'decode_seconds_per_token'):
            del own[key]
    labels = [row[0] for row in samples.page(tmp_path, results).tables['speed']]
    assert labels == [
        '',
        "XLA's count for the prefill",
        'Files of the weights, as stored',
    ]


@pytest.mark.parametrize('kept', [('dense',), ('pruned',), ('masked',)])
def test_single_models(tmp_path, results, kept, undrawn):
    for result in results.values():
        models = result['models']
        models['masked'] = models['pruned']
        result['models'] = {name: models[name] for name in kept}
        if 'answers' in result:
            result['answers'] = [
                row for row in result['answers'] if row['model'] in kept
            ]
    page = samples.page(tmp_path, results)
    assert set(samples.TITLES.values()) <= set(page.headings)
    assert page.tables['speed'][0] == ['', kept[0].capitalize()]
    assert 'Pruned less dense' not in page.text


def test_any_models_in_the_order_of_the_result(tmp_path, results):
    names = ['dense', 'slicegpt', samples.HOSTILE, 'pruned']
    for result in results.values():
        kept = result['models']
        result['models'] = {name: kept.get(name, kept['pruned']) for name in names}
    rows = results['judge']['answers']
    rows += [row | {'model': 'slicegpt'} for row in rows if row['model'] == 'pruned']
    speed = results['measured_efficiency']['models']
    speed['slicegpt'] = speed['slicegpt'] | {'prefill_flops': 7}
    # One result of fewer models: colours are of the page, not of the section.
    del results['multiturn']['models']['slicegpt']
    page = samples.page(tmp_path, results)
    columns = page.tables['persona-likelihood'][0][1:]
    hostile = columns[2]
    assert columns == ['Dense', 'slicegpt', hostile, 'Pruned']
    assert hostile == '<script>alert(1)</script…'
    assert [row[0] for row in page.tables['failures'][1:]] == columns
    assert page.tables['benchmarks'][0][5:] == [
        *(f'{name} less dense' for name in columns[1:]),
        'Guessing',
        'Questions',
    ]
    # The difference of each other model to the first, all copies of one here.
    for table, label, first in (
        ('persona-likelihood', 'NLL less that of dense', 1),
        ('judge-roleplay', 'Less that of dense', 1),
        ('judge-personas', 'Bram', 4),
        ('benchmarks', 'PIQA, acc', 4),
    ):
        (change,) = set(page.row(table, label)[first : first + 3])
        assert change[0] in '+−'
    assert page.tables['speed'][0][5:7] == ['slicegpt / dense', 'By the shape']
    cells = page.row('speed', 'Prefill of 256 tokens, s')
    assert cells[4:6] == ['0.800', '–']  # No closed form is of its shape.
    assert cells[8] == '0.800'
    assert cells[9].endswith('| FLOPs')
    drawn = (tmp_path / 'report.html').read_text('utf-8')
    course = drawn[drawn.index('Consistency by turn') :]
    legend = course[: course.index('</ul>')]
    assert re.findall(r'color: var\(--(\w+)\)', legend) == [
        report_views.look(name, names)[0] for name in names if name != 'slicegpt'
    ]
    section = report_judged.judge(results['judge'], {}, names)
    shown = [name for name, _ in section.questions[0].answers]
    assert shown == ['dense', 'pruned', 'slicegpt']  # As their answers come.


def test_a_reference_of_any_name(tmp_path, results):
    speed = results['measured_efficiency']
    dense, pruned = speed['models'].values()
    speed['models'] = {samples.HOSTILE: dense, 'pruned': pruned}
    results['piqa']['models'] = {'pruned': results['piqa']['models']['pruned']}
    kept = ('measured_efficiency', 'piqa', 'mmlu')
    page = samples.page(tmp_path, {name: results[name] for name in kept})
    header = page.tables['speed'][0]
    assert header[3].startswith('Pruned / <script>alert(1)</script>')
    assert page.row('speed', 'Prefill of 256 tokens, s')[2] == '0.800'
    # An earlier result of fewer models changes no order.
    assert page.tables['benchmarks'][0][1:4] == ['Dense', 'Pruned', 'Pruned less dense']


def test_colours_and_lines_go_by_order():
    names = [f'model {i}' for i in range(20)]
    looks = [report_views.look(name, names) for name in names]
    assert len(set(looks)) == 20
    assert [paint for paint, _ in looks[:3]] == ['dense', 'learned', 'heldout']
    assert {paint for paint, _ in looks} <= set(drawing.PAINTS)
