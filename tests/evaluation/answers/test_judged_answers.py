"""Answers judged by a scripted server, and by a local model; and their failures."""

import collections
import csv
import dataclasses
import io
import json
import shutil
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.evaluation import candidates, config, helper_models
from ppjax.evaluation.answers import answers, judged_answers
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import judge_scoring, judging
from ppjax.personas import prompts
from tests.evaluation.answers import sets

_NEW_TOKENS = 6


def _config(run: Any, **changes: Any) -> config.EvaluateConfig:
    settings = {
        'output_dir': str(run.path),
        'tasks': 'judge',
        'judge_model': 'tiny-judge',
        'judge_url': 'http://127.0.0.1:1',
        'max_new_tokens': _NEW_TOKENS,
        'questions': 2,
    }
    return config.EvaluateConfig(**(settings | changes))


def _judge(cfg: config.EvaluateConfig) -> dict[str, Any]:
    return judged_answers.judge(cfg, candidates.find(cfg))


def _stored(run: Any, name: str = 'judge') -> dict[str, Any]:
    return json.loads((run.path / 'results' / f'{name}.json').read_text('utf-8'))


# --- Questions ----------------------------------------------------------------


def _questions(cfg: config.EvaluateConfig) -> list[answers.Question]:
    return judged_answers.questions(cfg, candidates.find(cfg))


def test_questions_of_sets(make_run, eval_sets):
    run = make_run()
    found = _questions(_config(run, eval_sets=str(eval_sets), questions=None))
    assert [(one.group, one.question) for one in found] == [
        (name, question) for name, own in sets.QUESTIONS.items() for question in own
    ]
    assert found[0].persona == 'The keeper of the old harbour speaks slowly.'
    found = _questions(_config(run, eval_sets=str(eval_sets), questions=1))
    assert [one.question for one in found] == [
        own[0] for own in sets.QUESTIONS.values()
    ]
    found = _questions(_config(run, eval_sets=f' {eval_sets / "smith.json"} ,'))
    assert [one.group for one in found] == ['smith']


def test_questions_of_heldout_rows(make_run):
    run = make_run()
    found = _questions(_config(run, questions=4))
    rows = [json.loads(line) for line in run.heldout.read_text('utf-8').splitlines()]
    assert [one.question for one in found] == [
        row['messages'][1]['content'] for row in rows[:4]
    ]
    assert {one.system_prompt for one in found} == {rows[0]['messages'][0]['content']}
    assert {one.group for one in found} == {'run-heldout'}
    named = _questions(_config(run, heldout='demo:ferryman', questions=1))
    assert [one.group for one in named] == ['demo:ferryman']


@pytest.mark.parametrize('eval_sets', [',', ' , '])
def test_no_questions_at_all(make_run, eval_sets):
    with pytest.raises(errors.InputError, match='names no file'):
        _questions(_config(make_run(), eval_sets=eval_sets))


# --- Judging ------------------------------------------------------------------


def test_scores_of_a_server_end_in_json_and_csv(
    make_run, eval_sets, spoken, judge_server
):
    judge_server.score = lambda prompt: 80 if 'dense: ' in prompt else 50
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    found = _judge(cfg)
    assert spoken == [('dense', 3), ('pruned', 3)]
    assert len(judge_server.asked) == 6
    one = 'dense: Who lights the lamp?'
    persona = 'The keeper of the old harbour speaks slowly.'
    assert (
        prompts.judge_prompt(persona, 'Who lights the lamp?', one) in judge_server.asked
    )
    stored = _stored(run)
    assert json.loads(json.dumps(found)) == stored
    dense, pruned = (stored['models'][name] for name in ('dense', 'pruned'))
    assert dense['roleplay']['mean_over_personas'] == 80
    assert dense['roleplay']['persona_means'] == {'keeper': 80, 'smith': 80}
    assert 'to_dense' not in dense['roleplay']
    assert pruned['roleplay']['to_dense'] == {
        'n': 3,
        'mean': -30,
        'interval': [-30, -30],
    }
    assert dense['mean_answer_tokens'] == 5
    assert dense['at_limit'] == 0
    assert 'first token' in stored['judge']
    assert stored['settings']['judge_model'] == 'tiny-judge'
    assert 'without_verdict' not in stored['settings']
    with (run.path / 'results' / 'judge.csv').open(
        newline='', encoding='utf-8'
    ) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(stored['answers']) == 6
    for row, kept in zip(rows, stored['answers'], strict=True):
        assert row == {
            name: '' if value is None else str(value) for name, value in kept.items()
        }
    assert [row['model'] for row in rows] == ['dense'] * 3 + ['pruned'] * 3
    assert rows[0]['roleplay_mass'] == '0.75'


def test_the_csv_holds_any_text(make_run, eval_sets, judge_server, monkeypatch):
    said = 'a,"b"\r\nc\rd\ne\x00 ;\t=1+1 渡し守 \u2028'
    monkeypatch.setattr(
        judged_answers,
        'answer',
        lambda cfg, model, asked: [speakers.Said(said, 1, False) for _ in asked],
    )
    run = make_run()
    _judge(_config(run, eval_sets=str(eval_sets), judge_url=judge_server.url))
    text = (run.path / 'results' / 'judge.csv').read_bytes().decode('utf-8')
    rows = list(csv.DictReader(io.StringIO(text, newline='')))
    assert [row['answer'] for row in rows] == [said] * 6
    assert _stored(run)['models']['dense']['at_limit'] == 1


def test_the_same_settings_ask_nobody(make_run, eval_sets, spoken, judge_server):
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    first = json.loads(json.dumps(_judge(cfg)))
    del spoken[:], judge_server.asked[:]
    assert _judge(cfg) == first
    # Another address of the same judge is no other judge.
    elsewhere = dataclasses.replace(cfg, judge_url='http://127.0.0.1:1')
    assert _judge(elsewhere) == first
    assert not spoken
    assert not judge_server.asked
    _judge(dataclasses.replace(cfg, overwrite=True))
    assert spoken == [('dense', 3), ('pruned', 3)]
    assert not judge_server.asked  # All verdicts are in the log.


@pytest.mark.parametrize(
    'changes, asked',
    [
        ({'questions': 3}, 2),
        ({'judge_model': 'another'}, 6),
        ({'coherence': True}, 6),
        ({'max_new_tokens': 7}, 0),
        ({'dtype': 'bfloat16'}, 0),
        ({'date': '2026-02-02'}, 0),
    ],
)
def test_other_settings_ask_for_what_is_new(
    make_run, eval_sets, spoken, judge_server, changes, asked
):
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    _judge(cfg)
    del spoken[:], judge_server.asked[:]
    _judge(dataclasses.replace(cfg, **changes))
    assert len(spoken) == 2
    assert len(judge_server.asked) == asked


def test_coherence_is_judged_by_its_own_prompt(
    make_run, eval_sets, spoken, judge_server
):
    judge_server.score = lambda prompt: 20 if 'makes sense' in prompt else 90
    run = make_run()
    _judge(
        _config(
            run, eval_sets=str(eval_sets), judge_url=judge_server.url, coherence=True
        )
    )
    own = _stored(run)['models']['pruned']
    assert own['roleplay']['mean'] == 90
    assert own['coherence']['mean'] == 20
    assert own['coherence']['to_dense']['mean'] == 0
    assert {row['coherence_score'] for row in _stored(run)['answers']} == {20}


def test_what_got_no_verdict_is_asked_again(
    make_run, eval_sets, spoken, judge_server, capsys
):
    """A server that declines some rows: no whole result, and they alone next time."""
    judge_server.score = lambda prompt: '413' if 'fog' in prompt else 70
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    _judge(cfg)
    assert '2 answers have no verdict yet, the first because: HTTP 413' in (
        capsys.readouterr().err
    )
    stored = _stored(run)
    assert stored['settings']['without_verdict'] == 2
    assert stored['models']['dense']['roleplay']['n_failed'] == 1
    failures = [row['roleplay_failure'] for row in stored['answers']]
    assert [bool(failure) for failure in failures] == [False, True, False] * 2
    judge_server.asked.clear()
    judge_server.score = lambda prompt: 70
    _judge(cfg)
    assert len(judge_server.asked) == 2
    assert all('fog' in prompt for prompt in judge_server.asked)
    assert 'without_verdict' not in _stored(run)['settings']


def test_refusals_have_no_score(make_run, eval_sets, spoken, judge_server):
    judge_server.score = lambda prompt: None if 'fog' in prompt else 70
    run = make_run()
    _judge(_config(run, eval_sets=str(eval_sets), judge_url=judge_server.url))
    own = _stored(run)['models']['dense']['roleplay']
    assert (own['n'], own['n_scored'], own['n_refused'], own['n_failed']) == (
        3,
        2,
        1,
        0,
    )
    assert own['mean'] == 70
    assert own['mean_with_zeros'] == pytest.approx(140 / 3)


def test_a_question_that_cannot_be_asked_is_not_judged(
    make_run, eval_sets, judge_server, monkeypatch, capsys
):
    """An empty text would get a score that no model has earned."""

    def answer(cfg, model, asked):
        others = asked[1:]
        return [
            speakers.failed('no room'),
            *[speakers.Said('Aye.', 4, True)] * len(others),
        ]

    monkeypatch.setattr(judged_answers, 'answer', answer)
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    _judge(cfg)
    asked = ' '.join(judge_server.asked)
    assert 'fog' in asked and 'lights the lamp' not in asked
    stored = _stored(run)
    own = stored['models']['dense']
    assert own['roleplay']['n_failed'] == 1
    assert own['roleplay']['n_scored'] == 2
    assert own['mean_answer_tokens'] == 4
    assert own['at_limit'] == 0
    assert stored['answers'][0]['roleplay_failure'] == 'no answer: no room'
    # It will fail the next time as well: the result is whole.
    assert 'without_verdict' not in stored['settings']
    assert 'no verdict yet' not in capsys.readouterr().err
    found = judged_answers.failures(cfg, stored)
    assert found['models']['dense']['n'] <= 2


def test_a_judge_that_is_not_there(make_run, eval_sets, monkeypatch):
    run = make_run()
    monkeypatch.setattr(judged_answers, 'answer', pytest.fail)
    with pytest.raises(errors.InputError, match='--judge_url must look like http'):
        _config(run, eval_sets=str(eval_sets), judge_url='harbour:80')
    cfg = _config(run, eval_sets=str(eval_sets), judge='local', judge_url=None)
    with pytest.raises(errors.InputError, match="'tiny-judge' is neither"):
        _judge(cfg)
    assert not (run.path / 'results').exists()


# --- A local judge ------------------------------------------------------------


class _Scripted:
    """Stands in for a local judge: prompts by group, as they came."""

    identity = 'scripted'

    def __init__(self) -> None:
        self.groups: dict[str, list[str]] = {}

    def judge(self, requests):
        for request in requests:
            self.groups.setdefault(request.group, []).append(request.prompt)
        for request in reversed(requests):
            yield judge_scoring.Verdict(request.key, 30.0, 0.9, 0.0, '30')


def test_a_local_judge_gets_one_persona_at_a_time(
    make_run, eval_sets, spoken, monkeypatch, chatty_model, capsys
):
    scripted = _Scripted()
    monkeypatch.setattr(helper_models.HelperModels, 'judge', lambda _: scripted)
    run = make_run()
    cfg = _config(
        run, eval_sets=str(eval_sets), judge='local', judge_model=str(chatty_model)
    )
    _judge(cfg)
    assert [len(group) for group in scripted.groups.values()] == [4, 2]
    keeper, smith = scripted.groups.values()
    assert all('The keeper' in prompt for prompt in keeper)
    assert all('The smith' in prompt for prompt in smith)
    by_question = collections.Counter(
        (row['model'], row['group']) for row in _stored(run)['answers']
    )
    assert by_question[('pruned', 'keeper')] == 2
    assert 'Judging, roleplay 6/6' in capsys.readouterr().err


def test_a_local_judge_of_other_weights_is_another_judge(
    make_run, eval_sets, spoken, monkeypatch, tiny_models, tmp_path
):
    """Under the same name: retraining it must not leave old scores standing."""
    monkeypatch.setattr(helper_models.HelperModels, 'judge', lambda _: _Scripted())
    run = make_run()
    place = tmp_path / 'judge'
    shutil.copytree(tiny_models('llama').path, place)
    cfg = _config(run, eval_sets=str(eval_sets), judge='local', judge_model=str(place))
    _judge(cfg)
    _judge(cfg)
    assert len(spoken) == 2
    shutil.rmtree(place)
    shutil.copytree(tiny_models('llama-tied').path, place)
    _judge(cfg)
    assert len(spoken) == 4


# --- Types of failure ---------------------------------------------------------


def _row(model: str, score: float | None, refusal: float = 0.0, **changes: Any) -> Any:
    row = {
        'model': model,
        'group': 'keeper',
        'question': 'Who lights the lamp?',
        'answer': 'I light it every evening, when the gulls come home.',
        'answer_tokens': 9,
        'finished': True,
        'roleplay_score': score,
        'roleplay_mass': 0.9,
        'roleplay_refusal': refusal,
        'roleplay_failure': '',
    }
    return row | changes


def test_low_scored_answers_are_sorted(make_run):
    run = make_run()
    loop = 'The lamp, the lamp, the lamp, ' * 30
    rows = [
        _row('dense', 60.0),
        _row('dense', 59.9),
        _row('pruned', 10.0, answer=loop, finished=False),
        _row('pruned', 20.0, finished=False),
        _row('pruned', None, refusal=0.9, answer='Not a word from me about it.'),
        _row('pruned', None, roleplay_failure='no answer'),
        _row('pruned', None),
        _row('pruned', 95.0),
    ]
    judged = {
        'settings': {'some': ['thing']},
        'models': {
            name: {'roleplay': {'n': sum(row['model'] == name for row in rows)}}
            for name in ('dense', 'pruned')
        },
        'answers': rows,
    }
    cfg = _config(run)
    found = judged_answers.failures(cfg, judged)
    assert found['threshold'] == 60.0
    assert found['models']['dense']['counts'] == {
        'assistant_like': 1,
        'repetition': 0,
        'refusal': 0,
        'incomplete': 0,
    }
    pruned = found['models']['pruned']
    assert (pruned['n'], pruned['answers']) == (3, 6)
    assert pruned['counts'] == {
        'assistant_like': 0,
        'repetition': 1,
        'refusal': 1,
        'incomplete': 1,
    }
    assert [(one['score'], one['type']) for one in found['answers']] == [
        (59.9, 'assistant_like'),
        (10.0, 'repetition'),
        (20.0, 'incomplete'),
        (None, 'refusal'),
    ]
    assert _stored(run, 'failures')['answers'] == found['answers']


def test_failures_follow_the_judgement(make_run):
    run = make_run()
    judged = {
        'settings': {'questions': [('keeper', 1)]},
        'models': {'dense': {'roleplay': {'n': 1}}},
        'answers': [_row('dense', 10.0)],
    }
    cfg = _config(run)
    assert judged_answers.failures(cfg, judged)['models']['dense']['n'] == 1
    judged['answers'] = []
    assert judged_answers.failures(cfg, judged)['models']['dense']['n'] == 1
    judged['settings'] = {'questions': [('keeper', 2)]}
    assert judged_answers.failures(cfg, judged)['models']['dense']['n'] == 0


def test_the_threshold_of_a_refusal_is_the_judges(make_run):
    rows = [_row('dense', None, refusal=judging.REFUSED), _row('dense', None, 0.49)]
    judged = {
        'settings': {},
        'models': {'dense': {'roleplay': {'n': 2}}},
        'answers': rows,
    }
    found = judged_answers.failures(_config(make_run()), judged)
    assert found['models']['dense']['counts']['refusal'] == 1
    assert found['models']['dense']['n'] == 1
