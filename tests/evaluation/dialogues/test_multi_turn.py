"""The whole of `multiturn`: dialogues with a server or a local model, judged."""

from collections.abc import Callable
import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.evaluation import candidates, config, helper_models, pipeline
from ppjax.evaluation.dialogues import dialogues, multi_turn
from ppjax.evaluation.judges import judge_prompts, judge_scoring
from ppjax.evaluation.page import terminal
from ppjax.models import loading
from ppjax.pages import formats
from ppjax.personas import evaluation_set, sources
from ppjax.personas import persona as persona_lib

_SETTINGS: dict[str, Any] = {
    'tasks': 'multiturn',
    'judge_model': 'grader',
    'partner_model': 'guest',
    'turns': 3,
    'dialogues': 2,
    'max_new_tokens': 5,
}
_BOOK = [
    {'keys': ['the oven', 'fire'], 'content': 'Her oven is older than the church.'},
    {'keys': ['geese'], 'content': 'Geese chased her once.', 'constant': True},
    {'keys': ['Jon'], 'content': 'Jon is her brother and a ferryman.'},
]
_CARD = {
    'spec': 'chara_card_v2',
    'spec_version': '2.0',
    'data': {
        'name': 'Ida',
        'description': '{{char}} is a baker of few words who rises at three.',
        'character_book': {'entries': _BOOK},
    },
}


ServeJson = Callable[[Callable[[Any], tuple[int, Any]]], str]


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    return {'choices': [choice]}


class _Server:
    """Judges prompts by `score` and goes on with conversations by `words`."""

    def __init__(self, serve: ServeJson) -> None:
        self.score: Callable[[str], str | None] = lambda prompt: str(
            1 + len(prompt) % 5
        )
        self.words: Callable[[list[dict[str, str]]], str] = lambda m: (
            f'And what of number {len(m)}?'
        )
        self.judged: list[str] = []
        self.talks: list[list[dict[str, str]]] = []
        self.models: set[str] = set()
        self.url = serve(self.answer)

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.models.add(body['model'])
        messages = body['messages']
        if 'logprobs' not in body:
            self.talks.append(messages)
            text = self.words(messages)
            return 200, _choice({'message': {'role': 'assistant', 'content': text}})
        self.judged.append(messages[0]['content'])
        score = self.score(messages[0]['content'])
        if score is None:
            return 413, {'choices': [{}]}
        top = [{'token': score, 'logprob': math.log(0.75)}]
        content = [{**top[0], 'top_logprobs': top}]
        message = {'role': 'assistant', 'content': score}
        return 200, _choice({'message': message, 'logprobs': {'content': content}})


@pytest.fixture
def server(serve_json: ServeJson) -> _Server:
    return _Server(serve_json)


@pytest.fixture
def card(tmp_path):
    path = tmp_path / 'ida.json'
    path.write_text(json.dumps(_CARD))
    return str(path)


@pytest.fixture
def sets(tmp_path):
    """Two personas of three questions each."""
    folder = tmp_path / 'sets'
    folder.mkdir()
    for name, text in (('jon', 'Jon rows a ferry.'), ('mia', 'Mia mends clocks.')):
        asked = tuple(f'Question {number} for {name}?' for number in range(3))
        evaluation_set.write(
            folder / f'{name}.json',
            evaluation_set.EvaluationSet(persona_lib.Persona(text), asked),
        )
    return str(folder)


def _config(run, server=None, **changes: Any) -> config.EvaluateConfig:
    settings = _SETTINGS | {'output_dir': str(run.path)}
    if server is not None:
        settings['judge_url'] = server.url
    return config.EvaluateConfig(**(settings | changes))


def _evaluate(cfg: config.EvaluateConfig) -> dict[str, Any]:
    ((task, result),) = pipeline.Evaluation(cfg).run()
    assert task == 'multiturn'
    return result


def _starts(cfg: config.EvaluateConfig) -> list[dialogues.Start]:
    return multi_turn.starts(cfg, candidates.find(cfg))


# --- From flags to results -------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Servers that fail are not waited for."""
    real = helper_models.client_lib.ChatClient

    def client(url, model, **options):
        return real(url, model, retries=0, backoff=0.01, **options)

    monkeypatch.setattr(helper_models.client_lib, 'ChatClient', client)


def test_figures_dialogues_and_table(make_run, server, sets, capsys):
    run = make_run()
    cfg = _config(run, server, eval_sets=sets)
    result = _evaluate(cfg)
    stored = json.loads((run.path / 'results' / 'multiturn.json').read_text())
    assert stored == json.loads(json.dumps(result))
    assert server.models == {'grader', 'guest'}
    rows = stored['dialogues']
    assert [(row['model'], row['group']) for row in rows] == [
        (model, group)
        for model in ('dense', 'pruned')
        for group in ('jon', 'jon', 'mia', 'mia')
    ]
    for model in ('dense', 'pruned'):
        scores = np.array(
            [[t['score'] for t in r['turns']] for r in rows if r['model'] == model]
        )
        people = np.stack([scores[:2].mean(0), scores[2:].mean(0)])
        found = stored['models'][model]
        assert [t['mean'] for t in found['turns']] == pytest.approx(people.mean(0))
        assert [t['std'] for t in found['turns']] == pytest.approx(
            people.std(0, ddof=1)
        )
        slope = np.polyfit(range(3), people.mean(0), 1)[0]
        assert found['slope']['value'] == pytest.approx(slope, abs=1e-9)
        assert len(found['slope']['interval']) == 2
        assert [t['n_scored'] for t in found['turns']] == [4, 4, 4]
        assert (found['dialogues'], found['personas'], found['broken_off']) == (4, 2, 0)
    wants = []
    for row in rows:
        persona = {'jon': 'Jon rows a ferry.', 'mia': 'Mia mends clocks.'}[row['group']]
        for turn in row['turns']:
            wants.append(
                judge_prompts.consistency_prompt(
                    persona, turn['message'], turn['answer']
                )
            )
            assert turn['score'] == 1 + len(wants[-1]) % 5
            assert turn['mass'] == pytest.approx(0.75)
    # The judge sees each answer once, with its persona and the message it answers.
    assert sorted(server.judged) == sorted(set(wants))
    assert len(wants) == 24
    first = rows[0]['turns']
    assert first[0]['message'] == 'Question 0 for jon?'
    assert first[1]['message'] == 'And what of number 4?'
    # The dense and the pruned model say different things to the same partner.
    assert rows[0]['turns'][0]['answer'] != rows[4]['turns'][0]['answer']
    assert all('rows a ferry' not in json.dumps(m[:3]) for m in server.talks)
    text = terminal.result_text('multiturn', stored)
    assert 'Dialogues with guest; grader gave' in text
    rows = {x[0]: x[1:] for x in (re.split('  +', y) for y in text.splitlines())}
    assert (rows['Dialogues'], rows['Personas']) == (['4', '4'], ['2', '2'])
    for turn in stored['models']['pruned']['turns']:
        assert rows[str(turn['turn'])][1].startswith(f'{turn["mean"]:.2f} (SD ')
    slope = stored['models']['pruned']['slope']
    ends = (formats.signed(x, 3) for x in (slope['value'], *slope['interval']))
    shown = '{} ({} to {})'.format(*ends).replace('−', '-')
    assert rows['Slope, points a turn'][1] == shown
    assert rows['Answers with a score'][1] == '12 of 12'
    assert rows['Broken off'][1] == '0'
    assert rows['Answers with earlier turns left out'] == ['0', '0']


def test_the_same_command_asks_nothing_twice(make_run, server, sets):
    run = make_run()
    cfg = _config(run, server, eval_sets=sets, turns=2, dialogues=1)
    result = _evaluate(cfg)
    asked = len(server.judged), len(server.talks)
    assert asked[1] == 4
    assert _evaluate(cfg) == json.loads(json.dumps(result))
    # Without the result the logs have it all.
    (run.path / 'results' / 'multiturn.json').unlink()
    assert _evaluate(cfg) == result
    assert _evaluate(dataclasses.replace(cfg, overwrite=True)) == result
    assert (len(server.judged), len(server.talks)) == asked
    # More turns and another judge are asked for what is new alone.
    longer = dataclasses.replace(cfg, turns=3)
    assert len(_evaluate(longer)['dialogues'][0]['turns']) == 3
    assert asked[0] < len(server.judged) <= asked[0] + 4
    assert len(server.talks) == 8
    _evaluate(dataclasses.replace(longer, judge_model='other'))
    again = server.judged[len(server.judged) // 2 :]
    assert sorted(again) == sorted(server.judged[: len(again)])
    assert len(server.talks) == 8


def test_answers_without_a_verdict_are_counted_and_asked_again(
    make_run, server, sets, quick
):
    run = make_run()
    cfg = _config(run, server, eval_sets=sets, turns=2)
    server.score = lambda prompt: (
        None if 'Question 0 for jon?' in prompt else 'x' if 'mia?' in prompt else '4'
    )
    result = _evaluate(cfg)
    assert result['settings']['without_verdict'] == 2
    first = result['models']['dense']['turns'][0]
    assert (first['n'], first['n_scored'], first['n_failed']) == (4, 1, 1)
    assert (first['n_unscored'], first['mean'], first['std']) == (2, 4, None)
    failed = result['dialogues'][0]['turns'][0]
    assert (failed['score'], failed['failure'][:8]) == (None, 'HTTP 413')
    server.judged.clear()
    server.score = lambda prompt: '5'
    again = _evaluate(cfg)
    assert len(server.judged) == 2
    assert 'without_verdict' not in again['settings']
    assert again['models']['dense']['turns'][0]['mean'] == 4.5
    assert again['models']['dense']['turns'][0]['n_scored'] == 2


def test_dialogues_that_break_off_are_counted_and_tried_again(
    make_run, server, sets, quick, capsys
):
    run = make_run()
    cfg = _config(run, server, eval_sets=sets, turns=2)
    server.words = lambda m: '' if 'for mia' in m[2]['content'] else 'Go on.'
    result = _evaluate(cfg)
    assert result['settings']['broken_off'] == 4
    assert result['models']['dense']['broken_off'] == 2
    assert [t['n'] for t in result['models']['dense']['turns']] == [4, 2]
    row = result['dialogues'][2]
    assert row['failure'] == 'turn 2, the partner: the answer is empty'
    assert len(row['turns']) == 1
    said = capsys.readouterr().err
    assert '4 dialogues broke off; the first in turn 2, the partner' in said
    server.words = lambda m: 'Go on.'
    again = _evaluate(cfg)
    assert [t['n'] for t in again['models']['dense']['turns']] == [4, 4]
    assert 'broken_off' not in again['settings']


def test_a_judge_and_partner_on_this_machine(make_run, chatty_model, sets, monkeypatch):
    run = make_run()
    loaded = []
    real = loading.load_decoder

    def load(*args, **options):
        loaded.append(args)
        return real(*args, **options)

    monkeypatch.setattr(loading, 'load_decoder', load)
    monkeypatch.setattr(judge_scoring, 'MIN_MASS', 0.0)  # It is a random model.
    helper = {'judge_model': str(chatty_model), 'partner_model': str(chatty_model)}
    cfg = _config(
        run,
        eval_sets=sets,
        judge='local',
        partner='local',
        turns=2,
        dialogues=1,
        **helper,
    )
    result = _evaluate(cfg)
    fingerprint = candidates.find(cfg)['dense'].base.fingerprint()
    assert result['settings']['judge_fingerprint'] == fingerprint
    assert result['settings']['partner_fingerprint'] == fingerprint
    assert fingerprint in result['judge'] and result['partner'].startswith('local ')
    assert [len(row['turns']) for row in result['dialogues']] == [2] * 4
    assert all(
        0 < turn['mass'] < 1 and not turn['failure']
        for row in result['dialogues']
        for turn in row['turns']
    )
    # The two models that are compared, and one for both helpers.
    assert len(loaded) == 3


def test_no_first_answer_is_an_error(make_run, server, tmp_path):
    run = make_run()
    path = tmp_path / 'marked.json'
    persona = persona_lib.Persona('Jon rows <|im_end|> a ferry.')
    evaluation_set.write(path, evaluation_set.EvaluationSet(persona, ('Who is it?',)))
    with pytest.raises(errors.InputError) as caught:
        _evaluate(_config(run, server, eval_sets=str(path)))
    message = str(caught.value)
    assert message.startswith(
        'None of 2 dialogues came to an answer; the first: turn 1'
    )
    assert "model's own markup" in message and '\n' not in message


# --- What dialogues begin with ----------------------------------------------------


def test_questions_of_sets_are_the_first_of_each(make_run, server, sets):
    found = _starts(_config(make_run(), server, eval_sets=sets))
    assert [(s.group, s.cues[0].text, len(s.cues)) for s in found] == [
        (name, f'Question {number} for {name}?', 1)
        for name in ('jon', 'mia')
        for number in range(2)
    ]
    assert found[0].persona == 'Jon rows a ferry.'
    assert found[0].system_prompt == persona_lib.Persona(found[0].persona).system_prompt


def test_held_out_questions_are_the_runs_or_put_to_another_persona(make_run, server):
    run = make_run()
    rows = demo.read_rows(str(run.heldout), split='test')[:2]
    found = _starts(_config(run, server))
    assert [(s.system_prompt, s.cues[0].text) for s in found] == [
        (row.system_prompt, row.query) for row in rows
    ]
    text = 'Ida is a baker of few words.'
    other = _starts(_config(run, server, persona=text))
    assert [s.cues for s in other] == [s.cues for s in found]
    prompt = persona_lib.Persona(text).system_prompt
    assert {(s.persona, s.system_prompt, s.group) for s in other} == {
        (text, prompt, 'persona')
    }


def test_a_cards_book_is_asked_about(make_run, server, card, sets):
    run = make_run()
    found = _starts(_config(run, server, persona=card, turns=2))
    ask = 'What can you tell me about {}?'.format
    oven, geese, jon = (
        dialogues.Cue(ask('the oven'), _BOOK[0]['content'], told=True),
        # The persona prompt holds what is constant already.
        dialogues.Cue(ask('geese'), _BOOK[1]['content'], told=False),
        dialogues.Cue(ask('Jon'), _BOOK[2]['content'], told=True),
    )
    assert [s.cues for s in found] == [(oven, geese), (geese, jon)]
    persona = sources.read_persona(card)
    assert {(s.persona, s.system_prompt, s.group) for s in found} == {
        (persona.text, persona.system_prompt, 'Ida')
    }
    assert 'Geese' in persona.text and 'church' not in persona.text
    # Beside sets it comes last.
    both = _starts(_config(run, server, persona=card, turns=2, eval_sets=sets))
    assert both[4:] == found and len(both) == 6


@pytest.mark.parametrize(
    ('entries', 'turns', 'count', 'want'),
    [
        (3, 5, 1, ['abc']),
        (3, 2, 4, ['ab', 'bc', 'ca']),
        (7, 2, 3, ['ab', 'cd', 'ef']),
        (6, 3, 2, ['abc', 'def']),
        (0, 3, 2, []),
    ],
)
def test_dialogues_begin_all_over_a_book(entries, turns, count, want):
    book = tuple(persona_lib.LoreEntry(key, key, True) for key in 'abcdefg'[:entries])
    persona = persona_lib.Persona('P', lorebook=book)
    found = multi_turn.probe_starts(persona, turns=turns, count=count)
    assert [''.join(cue.facts for cue in s.cues) for s in found] == want


def test_a_probe_is_told_answered_and_judged_by_its_fact(make_run, server, card):
    run = make_run(exported=False)
    result = _evaluate(_config(run, server, persona=card, dialogues=1, turns=4))
    assert list(result['models']) == ['dense', 'masked']
    (row, _) = result['dialogues']
    assert [turn.get('facts') for turn in row['turns']] == [
        *(entry['content'] for entry in _BOOK),
        None,
    ]
    persona = sources.read_persona(card)
    for turn in row['turns']:
        want = judge_prompts.consistency_prompt(
            persona.text, turn['message'], turn['answer'], turn.get('facts', '')
        )
        assert want in server.judged
    assert row['turns'][3]['message'] == 'And what of number 8?'
    # The partner spoke once a model, and was told no facts.
    assert len(server.talks) == 2
    assert 'church' not in json.dumps(server.talks)


def test_there_must_be_something_to_ask(chatty_model, server, tmp_path, sets, capsys):
    def cfg(**changes: Any) -> config.EvaluateConfig:
        settings = {
            'output_dir': str(tmp_path / 'new'),
            'base_model': str(chatty_model),
            'judge_url': server.url,
        }
        return config.EvaluateConfig(**(_SETTINGS | settings | changes))

    for persona in (None, 'Ida is a baker of few words.'):
        with pytest.raises(errors.InputError) as caught:
            _starts(cfg(persona=persona))
        assert str(caught.value) == (
            '--tasks=multiturn needs questions to begin with: --eval_sets, --heldout, '
            'or a character card with a book of keywords as --persona.'
        )
    capsys.readouterr()
    assert len(_starts(cfg(persona='Ida is a baker.', eval_sets=sets))) == 4
    assert '--persona has no book of keywords' in capsys.readouterr().err


# --- The prompt, and the flags ------------------------------------------------------


def test_the_judges_prompt_holds_all_it_is_given_once():
    plain = judge_prompts.consistency_prompt(' A {reply}. ', 'M {facts}', 'R {message}')
    for part in ('A {reply}.', 'M {facts}', 'R {message}'):
        assert plain.count(part) == 1
    assert '[FACTS' not in plain
    facts = judge_prompts.consistency_prompt('A', 'M', 'R', ' F {profile}\n')
    assert '[FACTS START]\nF {profile}\n[FACTS END]' in facts
    assert plain.endswith("between 1 and 5. Don't say anything else, just the number.")
    for number in range(1, 6):
        assert f'\n{number} - ' in plain


@pytest.mark.parametrize(
    ('changes', 'flag'),
    [
        ({'judge_model': None}, '--tasks=multiturn needs --judge_model'),
        ({'judge_url': None}, '--judge=openai needs --judge_url'),
        ({'partner_model': None}, '--tasks=multiturn needs --partner_model'),
        (
            {'judge': 'local', 'judge_url': None},
            '--partner=openai needs --partner_url',
        ),
        ({'turns': 0}, '--turns must be at least 1'),
        ({'dialogues': 0}, '--dialogues must be at least 1'),
    ],
)
def test_each_missing_flag_is_named(tmp_path, changes, flag):
    settings = _SETTINGS | {
        'output_dir': str(tmp_path),
        'base_model': 'x',
        'judge_url': 'http://localhost:1',
    }
    with pytest.raises(errors.InputError) as caught:
        config.EvaluateConfig(**(settings | changes))
    assert str(caught.value).startswith(flag)
    assert '\n' not in str(caught.value)
    # Other tasks do without.
    config.EvaluateConfig(
        **(settings | {'tasks': 'likelihood', 'partner_model': None, 'judge_url': None})
    )
    config.EvaluateConfig(
        **(
            settings
            | {'judge_url': None, 'judge': 'local', 'partner_url': 'http://localhost:2'}
        )
    )


def test_the_partner_is_where_it_is_said_to_be(make_run, server, serve_json, sets):
    other = _Server(serve_json)
    cfg = _config(
        make_run(),
        server,
        eval_sets=sets,
        turns=2,
        dialogues=1,
        partner_url=other.url,
    )
    _evaluate(cfg)
    assert other.models == {'guest'} and server.models == {'grader'}
    assert len(other.talks) == 4 and not other.judged
