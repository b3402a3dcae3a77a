"""Character fidelity of answers, by a scripted server and by a local model."""

import csv
import dataclasses
import json
from typing import Any

import pytest

from ppjax import evaluate
from ppjax.base import errors
from ppjax.evaluation import candidates, config, helper_models
from ppjax.evaluation.answers import fidelity, judged_answers
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import flaw_judging, flaws


def _flaws(*severities: int) -> str:
    listed = [
        {'instance': 'said "okay"', 'type': 'language', 'severity': severity}
        for severity in severities
    ]
    return json.dumps({'flaws': listed})


def _config(run: Any, **changes: Any) -> config.EvaluateConfig:
    settings = {
        'output_dir': str(run.path),
        'tasks': 'fidelity',
        'judge_model': 'tiny-judge',
        'judge_url': 'http://127.0.0.1:1',
        'max_new_tokens': 6,
        'questions': 2,
    }
    return config.EvaluateConfig(**(settings | changes))


def _judge(cfg: config.EvaluateConfig) -> dict[str, Any]:
    return fidelity.judge(cfg, candidates.find(cfg))


def _stored(run: Any) -> dict[str, Any]:
    return json.loads((run.path / 'results' / 'fidelity.json').read_text('utf-8'))


def test_flaws_of_a_server_end_in_json_and_csv(
    make_run, eval_sets, spoken, judge_server
):
    judge_server.say = lambda told: (
        _flaws() if 'dense: ' in told[0]['content'] else _flaws(3, 1)
    )
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    found = _judge(cfg)
    assert spoken == [('dense', 3), ('pruned', 3)]
    assert not judge_server.asked and len(judge_server.told) == 6
    text = flaws.prompt(
        'The keeper of the old harbour speaks slowly.',
        'Who lights the lamp?',
        'dense: Who lights the lamp?',
    )
    assert [{'role': 'user', 'content': text}] in judge_server.told
    stored = _stored(run)
    assert json.loads(json.dumps(found)) == stored
    dense, pruned = (stored['models'][x]['fidelity'] for x in ('dense', 'pruned'))
    assert dense['mean_over_personas'] == 100
    assert dense['severity'] is None and dense['flaws_per_answer']['all'] == 0
    assert pruned['persona_means'] == {'keeper': 81.5, 'smith': 81.5}
    assert pruned['interval'] == [81.5, 81.5]
    assert pruned['to_dense'] == {'n': 3, 'mean': -18.5, 'interval': [-18.5, -18.5]}
    assert (pruned['severity'], pruned['flaws_per_answer']['language']) == (2, 2)
    assert pruned['flaws_per_answer']['knowledge'] == 0
    assert 'to_dense' not in dense and 'mean_with_zeros' not in dense
    assert stored['settings']['judge_model'] == 'tiny-judge'
    with (run.path / 'results' / 'fidelity.csv').open(
        newline='', encoding='utf-8'
    ) as file:
        rows = list(csv.DictReader(file))
    assert [row['model'] for row in rows] == ['dense'] * 3 + ['pruned'] * 3
    for row, kept in zip(rows, stored['answers'], strict=True):
        assert json.loads(row.pop('fidelity_flaws')) == kept.pop('fidelity_flaws')
        assert row == {
            name: '' if value is None else str(value) for name, value in kept.items()
        }
    # Nobody is asked again, also where the figures are made anew.
    _judge(cfg)
    _judge(dataclasses.replace(cfg, overwrite=True))
    assert len(judge_server.told) == 6
    # And another judge is asked for all.
    _judge(dataclasses.replace(cfg, judge_model='another'))
    assert len(judge_server.told) == 12


def test_malformed_and_missing_verdicts_are_counted(
    make_run, eval_sets, spoken, judge_server, capsys
):
    """No list, a list at the second attempt, and none since the server declined."""

    def say(told):
        if 'fog' in told[0]['content']:
            return 'Flawless!'
        if 'pruned: What is iron' in told[0]['content']:
            return '413'
        return _flaws(1) if len(told) == 3 else '{"flaws": [{"severity": 1}]}'

    judge_server.say = say
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    _judge(cfg)
    own = _stored(run)['models']['pruned']['fidelity']
    counts = ('n', 'n_scored', 'n_malformed', 'n_retried', 'n_failed')
    assert [own[key] for key in counts] == [3, 1, 1, 2, 1]
    assert own['mean'] == own['mean_over_personas'] == 96.5
    assert own['to_dense']['n'] == 1
    rows = [x for x in _stored(run)['answers'] if x['model'] == 'pruned']
    assert [x['fidelity_replies'] for x in rows] == [2, 3, 0]
    assert [x['fidelity_score'] for x in rows] == [96.5, None, None]
    assert rows[1]['fidelity_flaws'] is None and not rows[1]['fidelity_failure']
    assert 'HTTP 413' in rows[2]['fidelity_failure']
    assert _stored(run)['settings']['without_verdict'] == 1
    said = capsys.readouterr().err
    assert '1 answers have no verdict yet, the first because: HTTP 413' in said
    assert 'Judging, fidelity, attempt 3 2/2' in said
    judge_server.told.clear()
    judge_server.say = lambda told: _flaws(2)
    _judge(cfg)
    assert len(judge_server.told) == 1
    assert 'without_verdict' not in _stored(run)['settings']


def test_a_judge_that_never_lists_is_refused(make_run, eval_sets, spoken, judge_server):
    judge_server.say = lambda told: 'Lovely.'
    run = make_run()
    cfg = _config(run, eval_sets=str(eval_sets), judge_url=judge_server.url)
    with pytest.raises(errors.InputError, match=r"none of 6 answers .*'Lovely"):
        _judge(cfg)
    assert not (run.path / 'results').exists()
    assert len(judge_server.told) == 18


def test_a_question_that_cannot_be_asked_is_not_judged(
    make_run, eval_sets, judge_server, monkeypatch
):
    monkeypatch.setattr(
        judged_answers,
        'answer',
        lambda cfg, model, asked: [
            speakers.failed('no room'),
            *[speakers.Said('Aye.', 4, True)] * (len(asked) - 1),
        ],
    )
    run = make_run()
    _judge(_config(run, eval_sets=str(eval_sets), judge_url=judge_server.url))
    stored = _stored(run)
    assert stored['models']['dense']['fidelity']['n_failed'] == 1
    assert stored['answers'][0]['fidelity_failure'] == 'no answer: no room'
    assert 'without_verdict' not in stored['settings']


def test_the_verb_shares_answers_with_judge(make_run, eval_sets, judge_server, capsys):
    """What models said to be scored is what their flaws are found in."""
    judge_server.say = lambda told: _flaws(3)
    run = make_run()
    cfg = _config(
        run,
        eval_sets=str(eval_sets),
        judge_url=judge_server.url,
        tasks='judge,fidelity',
    )
    assert evaluate.main(cfg) == 0
    printed = capsys.readouterr().out
    assert printed.index('Judged answers') < printed.index('Character fidelity')
    assert '86.50 (86.50 to 86.50)' in printed
    assert 'Character fidelity' in (run.path / 'report.html').read_text('utf-8')
    lines = (run.path / 'evaluation' / 'answers.jsonl').read_text().splitlines()
    judged = json.loads((run.path / 'results' / 'judge.json').read_text())
    for one, other in zip(judged['answers'], _stored(run)['answers'], strict=True):
        assert one['answer'] == other['answer']
    assert len(lines) == len(set(lines)) == 6


def test_a_local_judge_writes_lists_or_is_refused(
    make_run, eval_sets, spoken, chatty_model, monkeypatch
):
    """A random model writes none, and is refused."""
    monkeypatch.setattr(helper_models, 'CRITIC_TOKENS', 4)
    monkeypatch.setattr(flaw_judging, 'ATTEMPTS', 1)
    run = make_run()
    cfg = _config(
        run,
        eval_sets=str(eval_sets / 'smith.json'),
        judge='local',
        judge_model=str(chatty_model),
        judge_url=None,
    )
    with pytest.raises(errors.InputError, match='none of 2 answers as JSON'):
        _judge(cfg)
    log = (run.path / 'evaluation' / 'flaws.jsonl').read_text().splitlines()
    assert len(log) == 2
