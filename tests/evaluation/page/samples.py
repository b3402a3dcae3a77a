"""The results of an evaluation as they stand in files, and a page's reader."""

import dataclasses
from html import parser as html_parser
import json
import pathlib
from typing import Any

import numpy as np

from ppjax.evaluation import config, efficiency, likelihood, timing
from ppjax.evaluation.answers import fidelity, judged_answers
from ppjax.evaluation.dialogues import dialogues, multi_turn
from ppjax.evaluation.judges import flaw_judging, flaws, judge_scoring, judging
from ppjax.evaluation.multiple_choice import benchmarks, choice_tasks
from ppjax.evaluation.page import (
    report,
)
from ppjax.models import config as config_lib

NAMES = ('dense', 'pruned')


PERSONAS = ('Bram', 'Jix', 'Mira')


EACH = 20  # Questions of each persona.


TURNS = 6


TITLES = {
    'persona_likelihood': 'Persona likelihood, model by model',
    'plain_likelihood': 'Likelihood of plain answers, without the persona',
    'answers': 'Answers, by rule',
    'judge': 'Judged answers',
    'failures': 'What goes wrong',
    'fidelity': 'Character fidelity',
    'multiturn': 'Over many turns',
    'piqa': 'Benchmarks',
    'openbookqa': 'Benchmarks',
    'mmlu': 'Benchmarks',
    'measured_efficiency': 'Measured speed',
}


LOOP = 'The river is deep and the river is cold, and the river is deep and cold. ' * 9


HOSTILE = (
    '<script>alert(1)</script>"\'><img src=x onerror=y> ]]> $\\frac$ {{ 7*7 }} \x1b'
)


VERSIONS = {'jax': '0.10.2', 'device': 'cpu x 1'}


SHAPE = config_lib.from_hf_config(
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


def likelihood_result() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 90, 12)
    hard = rng.normal(0, 0.4, 12)

    def one(nll: float, kl: float, agreement: float) -> likelihood.ModelLikelihood:
        return likelihood.ModelLikelihood(
            tokens * (nll + hard + rng.normal(0, 0.05, 12)),
            tokens * kl * rng.uniform(0.8, 1.2, 12),
            np.round(tokens * agreement),
            tokens,
        )

    found = [one(2.5, 0.0, 1.0), one(2.4, 0.3, 0.7)]
    size = {'rows': 12, 'answer_tokens': int(tokens.sum())}
    ids = [f'q{i}' for i in range(12)]
    return {'heldout': size} | likelihood.as_json(NAMES, found, ids)


def benchmark_result(task: str, choices: int, groups: tuple[str, ...] = ('',)) -> Any:
    rng = np.random.default_rng(len(task))
    count = 60
    questions = [
        benchmarks.ChoiceQuestion(
            where=f'{task}.jsonl:{i + 1}',
            context='Why?',
            choices=tuple('s' * (n + 20) for n in range(choices)),
            gold=int(rng.integers(choices)),
            group=groups[i % len(groups)],
        )
        for i in range(count)
    ]
    models = {}
    for name, skill in zip(NAMES, (3.0, 1.5), strict=True):
        scores = rng.normal(-20, 2, (count, choices))
        scores[np.arange(count), [q.gold for q in questions]] += skill
        models[name] = choice_tasks.summarise(questions, scores.tolist())
    settings = {'questions': count, 'shots': 5 if task == 'mmlu' else 0}
    return {'models': models, 'settings': settings}


def one_verdict(key: str, score: float | None) -> judge_scoring.Verdict:
    refusal = 0.9 if score is None else 0.0
    return judge_scoring.Verdict(key, score, 1 - refusal, refusal, '')


def judge_result() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    groups = [name for name in PERSONAS for _ in range(EACH)]
    result: dict[str, Any] = {'judge': 'judge-3 abc', 'models': {}, 'answers': []}
    verdicts: dict[str, dict[str, list[judge_scoring.Verdict]]] = {}
    for name, centre in zip(NAMES, (80, 65), strict=True):
        verdicts[name], own = {}, {}
        for kind, shift in (('roleplay', 0), ('coherence', 8)):
            scores = np.clip(rng.normal(centre + shift, 15, len(groups)), 1, 99)
            found = [one_verdict(str(i), float(x)) for i, x in enumerate(scores)]
            if name == 'pruned' and kind == 'roleplay':
                found[7] = one_verdict('7', None)
                found[8] = judge_scoring.failed('8', 'timeout')
            verdicts[name][kind] = found
            own[kind] = judging.summarise(found, groups)
            if name != 'dense':
                own[kind]['to_dense'] = judging.paired_difference(
                    verdicts['dense'][kind], found, groups
                )
        own |= {'mean_answer_tokens': 91.2, 'at_limit': 0.125}
        own |= {'distinct_2': 0.875, 'repeat_rate': 0.0625}
        result['models'][name] = own
        for i, group in enumerate(groups):
            text = f'{name} {i}: The crossing takes as long as it takes, traveller.'
            row = {'model': name, 'group': group, 'question': f'What is {i}?'}
            row |= {'answer': text, 'answer_tokens': 30, 'finished': True}
            if name == 'pruned' and i % 9 == 0:
                row |= {'answer': LOOP, 'finished': False}
            for kind in ('roleplay', 'coherence'):
                verdict = verdicts[name][kind][i]
                for key in ('score', 'mass', 'refusal', 'failure'):
                    row[f'{kind}_{key}'] = getattr(verdict, key)
            result['answers'].append(row)
    settings = {'judge_model': 'judge-3', 'max_new_tokens': 64, 'questions': [['P']]}
    return result | {'settings': settings | {'models': {'dense': 'd880 no mask'}}}


def answers_result() -> dict[str, Any]:
    counts = {'repetition': 3, 'refusal': 1, 'incomplete': 2}
    models = {
        name: {
            'n': 60,
            'counts': counts,
            'shares': {kind: count / 60 for kind, count in counts.items()},
            'mean_answer_tokens': 71.5,
            'at_limit': 0.2,
            'distinct_2': 0.9,
            'repeat_rate': 0.05,
        }
        for name in NAMES
    }
    settings = {'max_new_tokens': 64, 'models': {'dense': 'd880 no mask'}}
    return {'models': models, 'answers': [], 'settings': settings}


def fidelity_result() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    groups = [name for name in PERSONAS for _ in range(2)]
    result: dict[str, Any] = {'judge': 'judge-3 abc', 'models': {}, 'answers': []}
    verdicts = {}
    for name, most in zip(NAMES, (2, 5), strict=True):
        found = []
        for _ in groups:
            own = tuple(
                flaws.Flaw('"Okay" is no word of his', str(kind), int(severity))
                for kind, severity in zip(
                    rng.choice(flaws.KINDS, most),
                    rng.integers(1, most + 1, most),
                    strict=True,
                )
            )
            found.append(flaw_judging.FlawVerdict(own, 1, ''))
        if name == 'pruned':
            found[1] = flaw_judging.FlawVerdict(None, 3, 'None!')
            found[3] = flaw_judging.failed('timeout')
            found[4] = flaw_judging.FlawVerdict((), 2, '')
        verdicts[name] = found
        figures = fidelity.summarise(found, groups)
        if name != 'dense':
            scored = [list(map(fidelity.as_scored, own)) for own in verdicts.values()]
            figures['to_dense'] = judging.paired_difference(*scored, groups)
        result['models'][name] = {'fidelity': figures}
        for i, (group, verdict) in enumerate(zip(groups, found, strict=True)):
            row = {'model': name, 'group': group, 'question': f'What is {i}?'}
            row |= {'answer': f'{name} {i}', 'answer_tokens': 3, 'finished': True}
            result['answers'].append(row | fidelity.row_of(verdict))
    settings = {'judge_model': 'judge-3', 'max_new_tokens': 64}
    return result | {'settings': settings}


def failures_result(judged: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    settings = config.EvaluateConfig(
        output_dir=str(folder), tasks='efficiency', base_model='smollm2-135m'
    )
    return judged_answers.failures(settings, judged)


def multiturn_result() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    models = {}
    for name, drift in zip(NAMES, (0.0, -0.4), strict=True):
        held, verdicts = [], []
        for number in range(9):
            cue = dialogues.Cue('Who?')
            start = dialogues.Start('P', '', (cue,), PERSONAS[number % 3])
            turn = dialogues.HeldTurn(cue, 'Aye.', 3, True, 0, 0)
            held.append(dialogues.Dialogue(start, [turn] * TURNS))
            scores = np.clip(4.2 + drift * np.arange(TURNS), 1, 5)
            scores = np.clip(scores + rng.normal(0, 0.4, TURNS), 1, 5)
            verdicts.append([one_verdict('', float(x)) for x in scores])
        models[name] = multi_turn.summary(held, verdicts, turns=TURNS)
    settings = {'judge_model': 'judge-3', 'partner_model': 'partner-8', 'turns': TURNS}
    return {'models': models, 'dialogues': [], 'settings': settings}


def efficiency_result() -> dict[str, Any]:
    figures = efficiency.measure(
        SHAPE, 39, dtype='float32', prompt_length=256, answer_length=128
    )
    times = {
        'dense': timing.Times([2.0, 2.2, 1.8], [0.02, 0.021, 0.019]),
        'pruned': timing.Times([1.6, 1.9, 1.5], [0.017, 0.03, 0.016]),
    }
    models = {
        name: times[name].as_json()
        | {
            'stored_bytes': 9e6,
            'prefill_flops': getattr(figures, name).prefill_flops,
            'xla_prefill_flops': flops,
        }
        for name, flops in zip(NAMES, (3e9, 2.4e9), strict=True)
    }
    return {
        'closed_form': dataclasses.asdict(figures),
        'models': models,
        'settings': {'dtype': 'float32', 'timing': True},
    }


class Page(html_parser.HTMLParser):
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


def page_text(folder: pathlib.Path, results: dict[str, Any]) -> str:
    (folder / 'results').mkdir(exist_ok=True)
    for name, result in results.items():
        file = folder / 'results' / f'{name}.json'
        file.write_text(json.dumps(result), encoding='utf-8')
    return report.write_report(folder).read_text('utf-8')


def page(folder: pathlib.Path, results: dict[str, Any]) -> Page:
    text = page_text(folder, results)
    page = Page(text)
    assert not page.tags & {'script', 'img', 'link', 'iframe', 'object'}
    assert not [name for name, _ in page.attributes if name.startswith('on')]
    ids = [value for name, value in page.attributes if name == 'id']
    assert len(set(ids)) == len(ids)
    assert 'could not be read' not in page.text
    return page
