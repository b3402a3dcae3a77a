"""Evaluation results in report.html: as in their files, worst first, safe, optional."""

import copy
import dataclasses
from html import parser as html_parser
import json
import math
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from ppjax.evaluation import config, efficiency, likelihood, timing
from ppjax.evaluation.answers import judged_answers
from ppjax.evaluation.dialogues import dialogues, multi_turn
from ppjax.evaluation.judges import judge_scoring, judging
from ppjax.evaluation.multiple_choice import benchmarks, choice_tasks
from ppjax.evaluation.page import (
    plots,
    report,
    report_evaluation,
    report_judged,
    report_views,
    run_results,
)
from ppjax.models import config as config_lib
from ppjax.pages import charts

_NAMES = ('dense', 'pruned')
_PERSONAS = ('Bram', 'Jix', 'Mira')
_EACH = 20  # Questions of each persona.
_TURNS = 6
_TITLES = {
    'persona_likelihood': 'Persona likelihood, model by model',
    'judge': 'Judged answers',
    'failures': 'What goes wrong',
    'multiturn': 'Over many turns',
    'piqa': 'Benchmarks',
    'openbookqa': 'Benchmarks',
    'mmlu': 'Benchmarks',
    'measured_efficiency': 'Measured speed',
}
_JOINT = ('judge', 'failures')
_LOOP = 'The river is deep and the river is cold, and the river is deep and cold. ' * 9
_HOSTILE = (
    '<script>alert(1)</script>"\'><img src=x onerror=y> ]]> $\\frac$ {{ 7*7 }} \x1b'
)
_VERSIONS = {'jax': '0.10.2', 'device': 'cpu x 1'}
_SHAPE = config_lib.from_hf_config(
    {
        'model_type': 'llama',
        'vocab_size': 97,
        'hidden_size': 24,
        'intermediate_size': 52,
        'num_hidden_layers': 3,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'rms_norm_eps': 1e-3,
        'rope_theta': 777.0,
        'tie_word_embeddings': True,
    }
)


def _likelihood() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 90, 12)
    hard = rng.normal(0, 0.4, 12)

    def one(nll: float, kl: float, agreement: float) -> likelihood.Likelihood:
        return likelihood.Likelihood(
            tokens * (nll + hard + rng.normal(0, 0.05, 12)),
            tokens * kl * rng.uniform(0.8, 1.2, 12),
            np.round(tokens * agreement),
            tokens,
        )

    found = [one(2.5, 0.0, 1.0), one(2.4, 0.3, 0.7)]
    size = {'rows': 12, 'answer_tokens': int(tokens.sum())}
    ids = [f'q{i}' for i in range(12)]
    return {'heldout': size} | likelihood.as_json(_NAMES, found, ids)


def _benchmark(task: str, choices: int, groups: tuple[str, ...] = ('',)) -> Any:
    rng = np.random.default_rng(len(task))
    count = 60
    questions = [
        benchmarks.Question(
            where=f'{task}.jsonl:{i + 1}',
            context='Why?',
            choices=tuple('s' * (n + 20) for n in range(choices)),
            gold=int(rng.integers(choices)),
            group=groups[i % len(groups)],
        )
        for i in range(count)
    ]
    models = {}
    for name, skill in zip(_NAMES, (3.0, 1.5), strict=True):
        scores = rng.normal(-20, 2, (count, choices))
        scores[np.arange(count), [q.gold for q in questions]] += skill
        summary = choice_tasks.summarise(questions, scores.tolist())
        models[name] = choice_tasks.as_json(questions, summary)
    settings = {'questions': count, 'shots': 5 if task == 'mmlu' else 0}
    return {'models': models, 'settings': settings}


def _verdict(key: str, score: float | None) -> judge_scoring.Verdict:
    refusal = 0.9 if score is None else 0.0
    return judge_scoring.Verdict(key, score, 1 - refusal, refusal, '')


def _judge() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    groups = [name for name in _PERSONAS for _ in range(_EACH)]
    result: dict[str, Any] = {'judge': 'judge-3 abc', 'models': {}, 'answers': []}
    verdicts: dict[str, dict[str, list[judge_scoring.Verdict]]] = {}
    for name, centre in zip(_NAMES, (80, 65), strict=True):
        verdicts[name], own = {}, {}
        for kind, shift in (('roleplay', 0), ('coherence', 8)):
            scores = np.clip(rng.normal(centre + shift, 15, len(groups)), 1, 99)
            found = [_verdict(str(i), float(x)) for i, x in enumerate(scores)]
            if name == 'pruned' and kind == 'roleplay':
                found[7] = _verdict('7', None)
                found[8] = judge_scoring.failed('8', 'timeout')
            verdicts[name][kind] = found
            own[kind] = dataclasses.asdict(judging.summarise(found, groups))
            if name != 'dense':
                change = judging.paired_difference(
                    verdicts['dense'][kind], found, groups
                )
                own[kind]['to_dense'] = dataclasses.asdict(change)
        own |= {'mean_answer_tokens': 91.2, 'at_limit': 0.125}
        own |= {'distinct_2': 0.875, 'repeat_rate': 0.0625}
        result['models'][name] = own
        for i, group in enumerate(groups):
            text = f'{name} {i}: The crossing takes as long as it takes, traveller.'
            row = {'model': name, 'group': group, 'question': f'What is {i}?'}
            row |= {'answer': text, 'answer_tokens': 30, 'finished': True}
            if name == 'pruned' and i % 9 == 0:
                row |= {'answer': _LOOP, 'finished': False}
            for kind in ('roleplay', 'coherence'):
                verdict = verdicts[name][kind][i]
                for key in ('score', 'mass', 'refusal', 'failure'):
                    row[f'{kind}_{key}'] = getattr(verdict, key)
            result['answers'].append(row)
    settings = {'judge_model': 'judge-3', 'max_new_tokens': 64, 'questions': [['P']]}
    return result | {'settings': settings | {'models': {'dense': 'd880 no mask'}}}


def _failures(judged: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    settings = config.EvaluateConfig(
        output_dir=str(folder), tasks='efficiency', base_model='smollm2-135m'
    )
    return judged_answers.failures(settings, judged)


def _multiturn() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    models = {}
    for name, drift in zip(_NAMES, (0.0, -0.4), strict=True):
        held, verdicts = [], []
        for number in range(9):
            cue = dialogues.Cue('Who?')
            start = dialogues.Start('P', '', (cue,), _PERSONAS[number % 3])
            turn = dialogues.Turn(cue, 'Aye.', 3, True, 0, 0)
            held.append(dialogues.Dialogue(start, (turn,) * _TURNS))
            scores = np.clip(4.2 + drift * np.arange(_TURNS), 1, 5)
            scores = np.clip(scores + rng.normal(0, 0.4, _TURNS), 1, 5)
            verdicts.append([_verdict('', float(x)) for x in scores])
        models[name] = multi_turn.summary(held, verdicts, turns=_TURNS)
    settings = {'judge_model': 'judge-3', 'partner_model': 'partner-8', 'turns': _TURNS}
    return {'models': models, 'dialogues': [], 'settings': settings}


def _efficiency() -> dict[str, Any]:
    figures = efficiency.measure(
        _SHAPE, 39, dtype='float32', prompt_length=256, answer_length=128
    )
    times = {
        'dense': timing.Times([2.0, 2.2, 1.8], [0.02, 0.021, 0.019]),
        'pruned': timing.Times([1.6, 1.9, 1.5], [0.017, 0.03, 0.016]),
    }
    models = {
        name: {'stored_bytes': 9e6, 'prefill_flops': 1, 'xla_prefill_flops': flops}
        | times[name].as_json()
        for name, flops in zip(_NAMES, (3e9, 2.4e9), strict=True)
    }
    return {
        'closed_form': dataclasses.asdict(figures),
        'models': models,
        'settings': {'dtype': 'float32', 'timing': True},
    }


@pytest.fixture(scope='module')
def _made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    judged = _judge()
    found = {
        'persona_likelihood': _likelihood(),
        'judge': judged,
        'failures': _failures(judged, tmp_path_factory.mktemp('failures')),
        'multiturn': _multiturn(),
        'piqa': _benchmark('piqa', 2),
        'openbookqa': _benchmark('openbookqa', 4),
        'mmlu': _benchmark('mmlu', 4, ('college_physics', 'virology')),
        'measured_efficiency': _efficiency(),
    }
    # As JSON keeps them: tuples come back as lists.
    return json.loads(
        json.dumps({name: own | {'versions': _VERSIONS} for name, own in found.items()})
    )


@pytest.fixture
def results(_made: dict[str, Any]) -> dict[str, Any]:
    """Every result of an evaluation of a dense and a pruned model."""
    return copy.deepcopy(_made)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawings, which take nearly all of a page's time."""
    monkeypatch.setattr(plots, '_svg', lambda paint, label, height=0: '')


class _Page(html_parser.HTMLParser):
    """Collects tags, texts, headings and, by their tables' ids, the cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ''
        self._table, self._within = '', ''
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or '') for name, value in attrs]
        if tag == 'table':
            self._table = dict(attrs).get('id') or ''
            self.tables.setdefault(self._table, [])
        elif tag == 'tr':
            self.tables[self._table].append([])
        elif tag in ('td', 'th'):
            self.tables[self._table][-1].append('')
        elif tag == 'small':
            self.tables[self._table][-1][-1] += ' | '
        elif tag == 'h2':
            self.headings.append('')
        self._within = tag if tag in ('td', 'th', 'h2', 'small') else self._within

    def handle_endtag(self, tag: str) -> None:
        if tag in ('td', 'th', 'h2'):
            self._within = ''

    def handle_data(self, data: str) -> None:
        data = data.replace('\N{NO-BREAK SPACE}', ' ')
        self.text += data
        if self._within == 'h2':
            self.headings[-1] += data
        elif self._within:
            self.tables[self._table][-1][-1] += data

    def row(self, table: str, label: str) -> list[str]:
        (found,) = (row[1:] for row in self.tables[table] if row[0] == label)
        return found


def _text(folder: pathlib.Path, results: dict[str, Any]) -> str:
    (folder / 'results').mkdir(exist_ok=True)
    for name, result in results.items():
        file = folder / 'results' / f'{name}.json'
        file.write_text(json.dumps(result), encoding='utf-8')
    return report.write_report(folder).read_text('utf-8')


def _page(folder: pathlib.Path, results: dict[str, Any]) -> _Page:
    text = _text(folder, results)
    page = _Page(text)
    assert not page.tags & {'script', 'img', 'link', 'iframe', 'object'}
    assert not [name for name, _ in page.attributes if name.startswith('on')]
    ids = [value for name, value in page.attributes if name == 'id']
    assert len(set(ids)) == len(ids)
    assert 'could not be read' not in page.text
    return page


def test_the_whole_page(tmp_path, results):
    page = _page(tmp_path, results)
    order = [
        'Persona likelihood, model by model',
        'Judged answers',
        'What goes wrong',
        'Over many turns',
        'Benchmarks',
        'Measured speed',
    ]
    assert [x for x in page.headings if x in order] == order
    labels = {value for name, value in page.attributes if name == 'aria-label'}
    assert labels == {
        'NLL of held-out answers',
        'Scores by the judge',
        'Low-scored answers by type',
        'Consistency by turn',
        'Benchmark accuracy',
        'Time against the dense model',
    }
    text = (tmp_path / 'report.html').read_text('utf-8')
    for svg in re.findall(r'<svg.*?</svg>', text, flags=re.DOTALL):
        assert not re.search(r'(fill|stroke): #', svg)
    for said in ('0.10.2', 'd880 no mask', 'judge-3 abc', 'partner-8'):
        assert said in page.text
    assert text == _text(tmp_path, results)  # The same inputs give the same bytes.


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
def test_a_section_comes_with_its_file(tmp_path, results, name, undrawn):
    page = _page(tmp_path, {name: results[name]})
    assert set(page.headings) & set(_TITLES.values()) == {_TITLES[name]}


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
def test_a_section_goes_with_its_file(tmp_path, results, name, undrawn):
    del results[name]
    page = _page(tmp_path, results)
    want = {_TITLES[other] for other in results}
    assert set(page.headings) & set(_TITLES.values()) == want


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
@pytest.mark.parametrize('content', ['{"models": ', '[' * 100_000, '[1]', '"x"'])
def test_damaged_files_are_named(tmp_path, results, name, content, undrawn):
    _text(tmp_path, results)
    (tmp_path / 'results' / f'{name}.json').write_text(content, encoding='utf-8')
    page = _Page(report.write_report(tmp_path).read_text('utf-8'))
    assert f'could not be read: results/{name}.json' in page.text
    others = {_TITLES[other] for other in results if other != name}
    assert others <= set(page.headings)


def test_likelihood_figures(tmp_path, results, undrawn):
    page = _page(tmp_path, results)
    models = results['persona_likelihood']['models']
    assert page.tables['persona-likelihood'][0] == ['', 'Dense', 'Pruned']

    def shown(figure: dict[str, Any]) -> str:
        low, high = figure['interval']
        return f'{figure["mean"]:.4f} | {low:.4f} to {high:.4f}'

    assert page.row('persona-likelihood', 'NLL, nats per token') == [
        shown(models[name]['nll']) for name in _NAMES
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


def test_settings_are_told_but_not_whole_lists(tmp_path, results, undrawn):
    results['judge']['settings']['judge_model'] = 'j' * 5000
    page = _page(tmp_path, {'judge': results['judge']})
    pairs = dict(page.tables[''])
    assert pairs['max_new_tokens'] == '64'
    assert pairs['models.dense'] == 'd880 no mask'
    assert len(pairs['judge_model']) == 300
    assert 'questions' not in pairs


def test_an_interval_is_two_numbers():
    for value in (None, 'ab', [1], [1, 2, 3], [1, None], [1, math.nan]):
        assert report_views.interval(value) is None
    assert report_views.interval([1, 2.5]) == (1.0, 2.5)


def test_benchmark_figures(tmp_path, results, undrawn):
    page = _page(tmp_path, results)
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
            for name in _NAMES
        ]
        dense, pruned = (
            np.array([q['gold'] == q[key] for q in models[name]['questions']], float)
            for name in _NAMES
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
    page = _page(tmp_path, results)
    assert page.row('benchmarks', 'PIQA, acc')[2] == '–'
    assert page.row('benchmarks', 'OpenBookQA, acc')[2] == '–'
    assert page.row('benchmarks', 'MMLU, acc, 5-shot')[2] != '–'


def test_judge_figures(tmp_path, results, undrawn):
    page = _page(tmp_path, results)
    models = results['judge']['models']
    for kind in ('roleplay', 'coherence'):
        table = f'judge-{kind}'
        dense, pruned = (models[name][kind] for name in _NAMES)
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
    assert page.row('judge-roleplay', 'Answers with a score')[1] == '58 of 60'
    assert page.row('judge-roleplay', 'Refusals') == ['0', '1']
    assert page.row('judge-roleplay', 'Without a verdict') == ['0', '1']
    assert page.row('judge-text', 'Answers stopped at the limit') == ['12.5 %'] * 2
    means = models['pruned']['roleplay']['persona_means']
    rows = page.tables['judge-personas'][1:]
    assert [row[0] for row in rows] == sorted(_PERSONAS, key=means.get)
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
    assert '3 answers have no verdict yet' in _page(tmp_path, results).text


def test_the_worst_answers_come_first(results):
    judged, failed = results['judge'], results['failures']
    section = report_judged.judge(judged, failed)
    assert section is not None
    found = section.questions
    assert len(found) == report_judged.MOST_QUESTIONS == 40
    assert 'Below: 40 of 60 questions, the worst answers of the pruned' in section.note
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
        assert (first, last) == _NAMES
        assert after.text == row['answer']
        other = dense[row['group'], row['question']]
        assert before.text == other['answer']
        assert before.score == f'{other["roleplay_score"]:.1f}'
    assert found[0].answers[1][1].score == 'no score'
    assert 'refusal' in found[0].answers[1][1].remarks
    plain = report_judged.judge(judged, {})
    assert plain is not None
    assert 'refusal 90\N{NO-BREAK SPACE}%' in plain.questions[0].answers[1][1].remarks


def test_an_answer_without_verdict_comes_last(results):
    judged = results['judge']
    judged['answers'] = [row for row in judged['answers'] if row['group'] == 'Bram']
    section = report_judged.judge(judged, {})
    assert section is not None
    assert len(section.questions) == _EACH
    assert section.questions[-1].question == 'What is 8?'
    assert 'no verdict' in section.questions[-1].answers[1][1].remarks


def test_failure_types_are_beside_the_answers(results):
    section = report_judged.judge(results['judge'], results['failures'])
    assert section is not None
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
            if answer.text == _LOOP:
                assert 'stopped at the limit' in answer.remarks
    assert {'repetition', 'refusal', 'assistant_like', None} <= seen


def test_equal_questions_are_paired_in_their_order(results):
    rows = [
        {'model': name, 'group': 'g', 'question': 'Same?', 'answer': f'{name} {i}'}
        | {'roleplay_score': score}
        for name, scores in (('pruned', (50, 20)), ('dense', (90, 80)))
        for i, score in enumerate(scores)
    ]
    rows.append({'model': 'other', 'question': 'x', 'answer': 'y'})
    section = report_judged.judge({'answers': rows}, {})
    assert section is not None
    texts = [[one.text for _, one in item.answers] for item in section.questions]
    assert texts == [['dense 1', 'pruned 1'], ['dense 0', 'pruned 0']]


def test_equal_scores_are_ordered_by_what_was_lost():
    rows = [
        {'model': name, 'group': 'g', 'question': q, 'answer': q}
        | {'roleplay_score': score}
        for q, dense in (('kept', 12), ('lost', 95))
        for name, score in (('dense', dense), ('pruned', 10))
    ]
    section = report_judged.judge({'answers': rows}, {})
    assert section is not None
    assert [item.question for item in section.questions] == ['lost', 'kept']


def test_failure_figures(tmp_path, results, undrawn):
    page = _page(tmp_path, results)
    models = results['failures']['models']
    header, *rows = page.tables['failures']
    assert header[1:] == [
        'Low-scored',
        'assistant-like',
        'repetition',
        'refusal',
        'incomplete',
    ]
    for name, row in zip(_NAMES, rows, strict=True):
        own = models[name]
        assert row[1] == f'{own["n"]} | of 60'
        assert row[2:] == [
            f'{own["counts"][kind]} | {100 * own["shares"][kind]:.1f} %'
            for kind in ('assistant_like', 'repetition', 'refusal', 'incomplete')
        ]
    assert models['pruned']['counts']['repetition'] > 0


def test_multi_turn_figures(tmp_path, results, undrawn):
    page = _page(tmp_path, results)
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
    for turn in range(1, _TURNS + 1):
        cells = page.row('multiturn-turns', str(turn))
        for name, cell in zip(_NAMES, cells, strict=True):
            own = models[name]['turns'][turn - 1]
            assert cell == f'{own["mean"]:.2f} | SD {own["std"]:.2f}, 9 scored'
    slope = f'{-models["pruned"]["slope"]["value"]:.3f}'
    assert f'Pruned, −{slope} points a turn' in page.text
    assert 'Dialogues with partner-8; judge-3 gave' in page.text


def test_speed_figures(tmp_path, results, undrawn):
    page = _page(tmp_path, results)
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
    assert page.row('speed', 'Files of the weights, as stored')[2:] == ['–', '–']
    assert 'in float32 on cpu x 1' in page.text


def test_a_masked_model_saves_no_work(tmp_path, results, undrawn):
    models = results['measured_efficiency']['models']
    models['masked'] = models.pop('pruned')
    page = _page(tmp_path, results)
    assert page.row('speed', 'Prefill of 256 tokens, s')[3] == '1.000 | FLOPs'


def test_without_timing_only_counts_are_shown(tmp_path, results, undrawn):
    for own in results['measured_efficiency']['models'].values():
        for key in ('prefill_seconds', 'decode_seconds_per_token'):
            del own[key]
    labels = [row[0] for row in _page(tmp_path, results).tables['speed']]
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
    page = _page(tmp_path, results)
    assert set(_TITLES.values()) <= set(page.headings)
    assert page.tables['speed'][0] == ['', kept[0].capitalize()]
    assert 'Pruned less dense' not in page.text


def test_models_come_in_our_order_and_others_not(tmp_path, results):
    for result in results.values():
        models = result['models']
        result['models'] = {
            _HOSTILE: models['dense'],
            'pruned': models['pruned'],
            'masked': models['pruned'],
            'dense': models['dense'],
        }
    page = _page(tmp_path, results)
    columns = page.tables['persona-likelihood'][0][1:]
    assert columns == ['Dense', 'Masked', 'Pruned']
    assert [row[0] for row in page.tables['failures'][1:]] == columns


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value sits; of lists the first entry alone."""
    found = [path] if path else []
    parts = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        parts = list(enumerate(value))[:1]
    for key, part in parts:
        found += _paths(part, (*path, key))
    return found


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.copy(value)
    first, *rest = path
    if rest:
        value[first] = _replaced(value[first], tuple(rest), new)
    elif new is None:
        del value[first]
    else:
        value[first] = new
    return value


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
def test_any_key_may_be_missing_or_nonsense(results, name, undrawn):
    own = results[name]
    # These two are read together.
    others = {x: results[x] for x in _JOINT} if name in _JOINT else {}
    paths = _paths(own)
    assert len(paths) > 10
    empty = run_results.Run(
        path=pathlib.Path('run'),
        settings=None,
        status={},
        inputs={},
        metrics=[],
        mask=None,
        start_mask=None,
        synthesis={},
        likelihood={},
        efficiency={},
        samples=[],
        export={},
        evaluation={},
        exported=False,
        is_staged=False,
        problems=[],
    )
    nonsense: tuple[Any, ...] = (None, [], 'text', math.nan, -3, [None, 'x'], {'a': 1})
    for path in paths:
        for new in nonsense:
            broken = others | {name: _replaced(own, path, new)}
            report_evaluation.sections(broken)
            report_evaluation.headline(broken)
            if new is None:
                run = dataclasses.replace(
                    empty, evaluation={name: _replaced(own, path, new)}
                )
                _Page(report.render(run))


def test_hostile_text_is_only_text(tmp_path, results):
    judged = results['judge']
    for row in judged['answers']:
        row |= dict.fromkeys(('group', 'question', 'answer'), _HOSTILE)
    for own in judged['models'].values():
        own['roleplay']['persona_means'] = {_HOSTILE: 50.0, 'Jix': 60.0}
    for result in results.values():
        result['versions'] = {_HOSTILE: _HOSTILE}
        result['settings'] = result.get('settings', {}) | dict.fromkeys(
            ('judge_model', 'partner_model', 'dtype'), _HOSTILE
        )
    for own in results['mmlu']['models'].values():
        own['groups'] = {_HOSTILE: own['groups']['virology']}
    text = _text(tmp_path, results)
    page = _page(tmp_path, results)
    assert page.text.count('<script>alert(1)</script>"\'><img src=x') > 150
    assert '49' not in page.tables['judge-personas'][1][0]
    assert not re.search('[\x00-\x08\x0b\x0c\x0e-\x1f]', text)
    # What of them stands in a drawing is the models' names, which are ours.
    for svg in re.findall(r'<svg.*?</svg>', text, flags=re.DOTALL):
        assert 'alert' not in svg


def test_labels_in_drawings_are_no_formulas():
    plot = charts.stacked_plot('Types', [('$\\frac$ <b>', [('ink', 1.0)], '$x$')], [])
    assert plot is not None
    assert '$\\frac$ &lt;b&gt;' in plot['svg']
    assert '$x$' in plot['svg']


def test_ten_thousand_answers_make_a_small_page(tmp_path, results, undrawn):
    judged = results['judge']
    long = '"<&>" ' * 400
    judged['answers'] = [
        {'model': name, 'group': f'persona {i}', 'question': f'{i}?'}
        | {'answer': long, 'finished': True}
        | {'roleplay_score': 50.0 + i / 100, 'coherence_score': None}
        for name in _NAMES
        for i in range(5000)
    ]
    for own in judged['models'].values():
        own['roleplay']['persona_means'] = {
            f'persona {i}': 50.0 + i / 100 for i in range(5000)
        }
    judged['settings']['questions'] = [[f'P {i}', 'q'] for i in range(5000)]
    results['failures']['answers'] = [
        {
            'model': 'pruned',
            'group': f'persona {i}',
            'question': long,
            'type': 'refusal',
        }
        for i in range(5000)
    ]
    text = _text(tmp_path, results)
    assert len(text.encode()) < 3_000_000
    page = _Page(text)
    assert page.text.count(f'({len(long) - 2000} more characters)') == 80
    assert '32 more' in page.text
    assert len(page.tables['judge-personas']) == report_views.MOST_ROWS + 1
    assert page.tables['judge-personas'][1][0] == 'persona 0'
    assert 'the lowest 100 of 5000' in page.text


def _spans(svg: str, colour: str) -> list[tuple[float, float]]:
    """From where to where each path of a colour goes."""
    found = []
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg):
        if f'var(--{colour})' in style:
            xs = [float(x) for x in re.findall(r'[ML] (\S+) \S+', path)]
            found.append((min(xs), max(xs)))
    return found


def test_bars_are_as_long_as_their_values():
    groups = [
        charts.BarGroup(
            'A',
            [
                charts.Bar('dense', 50.0, (40.0, 60.0), '50'),
                charts.Bar('learned', 25.0, None, '25'),
            ],
            reference=30.0,
        )
    ]
    plot = charts.bar_groups_plot('Bars', groups)
    assert plot is not None

    (dense,), (learned,) = (_spans(plot['svg'], x) for x in ('dense', 'learned'))
    assert dense[0] == pytest.approx(learned[0])
    length = dense[1] - dense[0]
    assert learned[1] - learned[0] == pytest.approx(length / 2, rel=1e-3)
    inks = _spans(plot['svg'], 'ink')
    inked = [(x - dense[0]) / length * 50 for span in inks for x in span]
    for end in (40.0, 60.0, 30.0):
        assert any(x == pytest.approx(end, abs=0.1) for x in inked), end


def test_stacked_parts_follow_each_other():
    rows = [('A', [('dense', 2.0), ('learned', 1.0), ('heldout', 3.0)], '')]
    plot = charts.stacked_plot('Parts', rows, [])
    assert plot is not None
    assert charts.stacked_plot('Parts', [], []) is None
    (first,), (second,) = (_spans(plot['svg'], x) for x in ('learned', 'heldout'))
    assert second[0] == pytest.approx(first[1])
    assert second[1] - second[0] == pytest.approx(3 * (first[1] - first[0]), rel=1e-3)


def _drawn(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(charts, name, lambda title, rows, legend: seen.append(rows))
    return seen


def test_failure_bars_are_of_all_answers(results, monkeypatch):
    seen = _drawn(monkeypatch, 'stacked_plot')
    report_judged.failure_types(results['failures'])
    (((_, _, _), (label, parts, text)),) = seen
    own = results['failures']['models']['pruned']
    assert label == 'Pruned'
    assert sum(length for _, length in parts) == pytest.approx(own['n'] / 60)
    assert text == f'{100 * own["n"] / 60:.1f} % of 60'


def test_bars_of_accuracy_and_time(results, monkeypatch):
    seen = _drawn(monkeypatch, 'bar_groups_plot')
    report_evaluation.sections({x: results[x] for x in ('piqa', 'measured_efficiency')})
    accuracy, time = seen
    (bar, _), figure = accuracy[0].bars, results['piqa']['models']['dense']['acc']
    ends = figure['value'] - figure['stderr'], figure['value'] + figure['stderr']
    assert (bar.value, bar.interval) == (figure['value'], pytest.approx(ends))
    assert accuracy[0].reference == 0.5
    dense, pruned = time[0].bars
    assert (dense.value, pruned.value) == pytest.approx((100, 80))
    assert pruned.interval == pytest.approx((75, 95))
    closed = results['measured_efficiency']['closed_form']
    flops = [closed[side]['prefill_flops'] for side in ('dense', 'pruned')]
    assert time[0].reference == pytest.approx(100 * flops[1] / flops[0])


def test_the_band_is_one_deviation_within_the_scale():
    turns = np.arange(1.0, 4.0)
    means, stds = np.array([3.0, 4.8, 2.0]), np.array([0.5, 0.5, 0.25])
    assert charts.turns_plot('Turns', [], []) is None
    course = charts.Course('learned', 'solid', turns, means, stds)
    plot = charts.turns_plot('Turns', [course], [])
    assert plot is not None
    (line,) = re.findall(
        r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--learned\)',
        plot['svg'],
    )
    # Of the marks that are defined apart the band alone has straight sides only.
    (band,) = re.findall(r'<path id="[^"]*" d="([^"C]*z\s*)"/>', plot['svg'])
    line, band = (
        [float(y) for y in re.findall(r'[ML] \S+ (\S+)', path)] for path in (line, band)
    )
    unit = line[2] - line[0]  # From 3 down to 2.
    height = float(re.findall(r'viewBox="0 0 \S+ ([\d.]+)"', plot['svg'])[0])
    found = {round(3 - (y + height - line[0]) / unit, 3) for y in band}
    assert found == {2.5, 3.5, 4.3, 5.0, 1.75, 2.25}
    assert 3 - (line[1] - line[0]) / unit == pytest.approx(4.8, abs=1e-3)


def test_a_turn_without_deviation_has_no_band(results, monkeypatch):
    for own in results['multiturn']['models'].values():
        own['turns'][0]['std'] = None
    seen = _drawn(monkeypatch, 'turns_plot')
    report_judged.multi_turn(results['multiturn'])
    for course in seen[0]:
        assert list(np.isnan(course.stds)) == [True] + [False] * (_TURNS - 1)
    assert len(seen[0]) == 2
