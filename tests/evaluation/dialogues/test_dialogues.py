"""Dialogues: by scripted speakers, by a model against transformers, by a server."""

from collections.abc import Callable, Iterator
import json
import random

import pytest

from ppjax.base import errors
from ppjax.evaluation.dialogues import dialogues, speakers

_PERSONA = 'Ida bakes RYE bread and fears geese.'


def _start(
    question: str, *more: dialogues.Cue, system_prompt: str = f'Be this: {_PERSONA}'
) -> dialogues.Start:
    cues = (dialogues.Cue(question), *more)
    return dialogues.Start(_PERSONA, system_prompt, cues, 'ida')


class _Scripted:
    """Says what a rule makes of the conversation, the last one first."""

    def __init__(
        self,
        rule: Callable[[list[dict[str, str]]], str | speakers.Said],
        identity: str = 'scripted',
    ):
        self.rule, self.identity = rule, identity
        self.heard: list[list[dict[str, str]]] = []
        self.calls: list[int] = []
        self.closed = 0

    def speak(self, conversations) -> Iterator[tuple[int, speakers.Said]]:
        self.calls.append(len(conversations))
        try:
            for index in reversed(range(len(conversations))):
                messages = [dict(message) for message in conversations[index]]
                self.heard.append(messages)
                said = self.rule(messages)
                if isinstance(said, str):
                    said = speakers.Said(said, len(said), True)
                yield index, said
        finally:
            self.closed += 1


def _echo(messages: list[dict[str, str]]) -> str:
    return f'I heard {messages[-1]["content"]!r} as number {len(messages)}.'


def _ask(messages: list[dict[str, str]]) -> str:
    return f' After {len(messages) // 2}: {messages[-1]["content"][-12:]} \n'


def _model(rule=_echo) -> _Scripted:
    return _Scripted(rule, 'model')


def _partner(rule=_ask) -> _Scripted:
    return _Scripted(rule, 'partner')


_STARTS = [
    _start('Is it "early"?'),
    _start('What is in the oven, é?', dialogues.Cue('Geese?', 'She fears geese.')),
    _start('Who taught you?', system_prompt=''),
]


def _hold(model, partner, log, starts=_STARTS, turns=3, **options):
    return dialogues.hold_all(
        model, partner, starts, turns=turns, log_path=log, **options
    )


# --- Who says what, and when ---------------------------------------------------


def test_turns_alternate_and_each_side_sees_the_conversation_from_its_own(log):
    model, partner = _model(), _partner()
    held = _hold(model, partner, log)
    assert [one.start for one in held] == _STARTS
    assert all(len(one.turns) == 3 and not one.failure for one in held)
    # All dialogues are asked at once, turn by turn; the second cue is given.
    assert model.calls == [3, 3, 3]
    assert partner.calls == [2, 3]
    first = held[0].turns
    assert first[0].cue.text == 'Is it "early"?'
    want = [
        {'role': 'system', 'content': f'Be this: {_PERSONA}'},
        {'role': 'user', 'content': first[0].cue.text},
        {'role': 'assistant', 'content': first[0].answer},
        {'role': 'user', 'content': first[1].cue.text},
        {'role': 'assistant', 'content': first[1].answer},
        {'role': 'user', 'content': first[2].cue.text},
    ]
    for length in (2, 4, 6):
        assert want[:length] in model.heard
    assert first[2].answer == _echo(want)
    theirs = [
        {'role': 'system', 'content': dialogues.PARTNER_PROMPT},
        {'role': 'user', 'content': 'Hello! You may begin.'},
        {'role': 'assistant', 'content': first[0].cue.text},
        {'role': 'user', 'content': first[0].answer},
        {'role': 'assistant', 'content': first[1].cue.text},
        {'role': 'user', 'content': first[1].answer},
    ]
    assert theirs[:4] in partner.heard and theirs in partner.heard
    assert first[2].cue.text == _ask(theirs).strip()
    # A given cue is no words of the partner's, and no persona means no system turn.
    assert held[1].turns[1].cue == dialogues.Cue('Geese?', 'She fears geese.')
    assert [{'role': 'user', 'content': 'Who taught you?'}] in model.heard


def test_the_partner_never_sees_the_persona(log):
    told = dialogues.Cue('Tell me of geese.', 'Geese BIT her.', told=True)
    model, partner = _model(lambda m: 'Well.'), _partner()
    _hold(model, partner, log, [_start('Hello?', told)], turns=4)
    heard = json.dumps(partner.heard)
    assert len(partner.heard) == 2
    assert 'RYE' not in heard and 'BIT' not in heard and 'Be this' not in heard
    assert 'Tell me of geese.' in heard


@pytest.mark.parametrize(
    ('told', 'system', 'want'),
    [
        (True, 'Be Ida.', 'Be Ida.\n\nGeese bit her.'),
        (True, '', 'Geese bit her.'),
        (False, 'Be Ida.', 'Be Ida.'),
    ],
)
def test_a_fact_is_told_at_its_own_turn_alone(log, told, system, want):
    cue = dialogues.Cue('Tell me of geese.', 'Geese bit her.', told=told)
    start = _start('Hello?', cue, dialogues.Cue('Go on.'), system_prompt=system)
    model = _model()
    _hold(model, _partner(), log, [start])
    heard = [dict(x[0]) for x in sorted(model.heard, key=len)]
    plain = {'role': 'system', 'content': system}
    if not system:
        plain = {'role': 'user', 'content': 'Hello?'}
    assert heard == [plain, {'role': 'system', 'content': want}, plain]


def test_equal_conversations_are_asked_once(log):
    model, partner = _model(), _partner()
    held = _hold(model, partner, log, [_STARTS[0], _STARTS[1], _STARTS[0]])
    assert model.calls == [2, 2, 2]
    assert held[0] == held[2]
    assert len(log.read_text().splitlines()) == 2 * 3 + 1 + 2


def test_what_is_forgotten_and_cut_off_is_told(log):
    model = _model(lambda m: speakers.Said(f'A{len(m)}', 7, False, forgotten=len(m)))
    partner = _partner(lambda m: speakers.Said(f'Q{len(m)}', 5, True, forgotten=9))
    (held,) = _hold(model, partner, log, _STARTS[:1], turns=2)
    assert held.turns == [
        dialogues.HeldTurn(_STARTS[0].cues[0], 'A2', 7, False, 2, 0),
        dialogues.HeldTurn(dialogues.Cue('Q4'), 'A4', 7, False, 4, 9),
    ]
    silent = _model(lambda m: pytest.fail('asked again'))
    assert _hold(silent, partner, log, _STARTS[:1], turns=2) == [held]


# --- The log --------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(dialogues, bytes of the log) of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp('whole') / 'log.jsonl'
    return _hold(_model(), _partner(), path), path.read_bytes()


def test_a_run_killed_at_any_byte_goes_on_from_there(whole, log):
    held, data = whole
    log.parent.mkdir()
    rng = random.Random(0)
    cuts = {0, 1, len(data) - 1, len(data)}
    cuts |= {rng.randrange(len(data)) for _ in range(60)}
    for cut in sorted(cuts):
        log.write_bytes(data[:cut])
        model, partner = _model(), _partner()
        assert _hold(model, partner, log) == held
        lines = data[:cut].count(b'\n')
        assert len(model.heard) + len(partner.heard) == 14 - lines
        assert sorted(log.read_bytes().splitlines()) == sorted(data.splitlines())


def test_what_is_said_is_on_disk_before_the_next_is_taken(whole, log):
    seen = 0

    def dies(messages: list[dict[str, str]]) -> str:
        nonlocal seen
        seen += 1
        if seen == 6:
            raise KeyboardInterrupt
        return _echo(messages)

    model = _model(dies)
    with pytest.raises(KeyboardInterrupt):
        _hold(model, _partner(), log)
    # Three answers, two of the partner's, and two of the three that follow.
    assert len(log.read_text().splitlines()) == 7
    again = _model()
    assert _hold(again, _partner(), log) == whole[0]
    assert again.calls == [1, 3]


def test_a_caller_that_gives_up_closes_the_speaker(log):
    model = _model()

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        _hold(model, _partner(), log, progress=stop)
    assert model.closed == 1 and len(model.heard) == 2
    del caught  # Which kept the speaker from being collected.


def test_another_word_model_or_partner_is_said_anew(whole, log):
    log.parent.mkdir()
    for model, partner, asked in (
        (_Scripted(_echo, 'other'), _partner(), (9, 0)),
        (_model(), _Scripted(_ask, 'other'), (0, 5)),
        (_model(), _partner(), (0, 0)),
    ):
        log.write_bytes(whole[1])
        assert _hold(model, partner, log) == whole[0]
        assert (len(model.heard), len(partner.heard)) == asked
    # A changed answer is followed by other words; what came before it stays.
    log.write_bytes(whole[1].replace(b'as number 4.', b'as number 99.', 1))
    model, partner = _model(), _partner()
    assert _hold(model, partner, log) != whole[0]
    assert (len(model.heard), len(partner.heard)) == (1, 1)


def test_more_turns_and_dialogues_use_what_is_there(whole, log):
    log.parent.mkdir()
    log.write_bytes(whole[1])
    model, partner = _model(), _partner()
    held = _hold(model, partner, log, [*_STARTS, _start('New?')], turns=4)
    assert [one.turns[:3] for one in held[:3]] == [one.turns for one in whole[0]]
    assert len(model.heard) == 3 + 4 and len(partner.heard) == 3 + 3


def test_progress_counts_answers_and_fills_once(whole, log):
    seen = []
    _hold(_model(), _partner(), log, progress=lambda *step: seen.append(step))
    assert seen == [(n, 9) for n in range(10)]
    seen.clear()
    _hold(_model(), _partner(), log, progress=lambda *step: seen.append(step))
    assert seen == [(0, 9), (3, 9), (6, 9), (9, 9)]


@pytest.mark.parametrize(
    'change',
    [{'key': 3}, {'text': None}, {'tokens': True}, {'finished': 1}, {'forgotten': '0'}],
    ids=str,
)
def test_another_file_is_no_log(whole, log, change):
    log.parent.mkdir()
    row = json.loads(whole[1].splitlines()[1]) | change
    log.write_bytes(whole[1].splitlines(keepends=True)[0] + json.dumps(row).encode())
    _hold(_model(), _partner(), log)  # A torn last line is no line.
    log.write_text(json.dumps(row) + '\n')
    with pytest.raises(errors.InputError, match=r'jsonl:1: no row of a dialogue log'):
        _hold(_model(), _partner(), log)


def test_words_that_no_file_takes_are_kept_readable(log):
    model = _model(lambda m: 'a\ud800b \U0001f956')
    (held,) = _hold(model, _partner(lambda m: 'Go on.'), log, _STARTS[:1], turns=2)
    assert [turn.answer for turn in held.turns] == ['a\ufffdb \U0001f956'] * 2
    assert (
        _hold(_model(), _partner(), log, _STARTS[:1], turns=1)[0].turns
        == (held.turns[:1])
    )


# --- What goes wrong -------------------------------------------------------------


def test_a_dialogue_that_fails_ends_and_is_tried_again(log):
    def fails(messages):
        if messages[-1]['content'] == 'Geese?':
            return speakers.failed('HTTP 500')
        return _echo(messages)

    seen = []
    held = _hold(
        _model(fails), _partner(), log, progress=lambda *step: seen.append(step)
    )
    assert held[1].failure == 'turn 2: HTTP 500'
    assert [len(one.turns) for one in held] == [3, 1, 3]
    assert seen[-1] == (9, 9) and seen == sorted(set(seen))
    model, partner = _model(), _partner()
    again = _hold(model, partner, log)
    assert [len(one.turns) for one in again] == [3, 3, 3]
    assert (len(model.heard), len(partner.heard)) == (2, 1)


@pytest.mark.parametrize(
    ('said', 'why'),
    [
        (speakers.failed('HTTP 500'), 'turn 2, the partner: HTTP 500'),
        ('\n ', 'turn 2, the partner: it said nothing'),
    ],
)
def test_a_silent_partner_ends_its_dialogue_alone(log, said, why):
    def silent(messages):
        return said if 'early' in messages[2]['content'] else 'Go on.'

    held = _hold(_model(), _partner(silent), log)
    assert [one.failure for one in held] == [why, '', '']
    assert [len(one.turns) for one in held] == [1, 3, 3]
    assert held[2].turns[1].cue.text == 'Go on.'


def test_a_speaker_that_leaves_a_conversation_out_has_failed_there(log):
    model = _model()
    model.speak = lambda conversations: iter([(0, speakers.Said('Yes.', 1, True))])
    held = _hold(model, _partner(), log, turns=1)
    assert [one.failure for one in held] == [
        '',
        *['turn 1: no answer came'] * 2,
    ]


def test_what_cannot_be_held(log):
    with pytest.raises(ValueError, match='turns must be at least 1, got 0'):
        _hold(_model(), _partner(), log, turns=0)
    with pytest.raises(ValueError, match='one cue'):
        _hold(_model(), _partner(), log, [dialogues.Start('P', 'S', (), 'g')])
    assert _hold(_model(), _partner(), log, []) == []


def test_a_server_takes_part_in_dialogues(server, log):
    held = _hold(_model(), server.speaker(), log)
    assert [len(one.turns) for one in held] == [3, 3, 3]
    assert held[0].turns[2].cue.text == f'6: {held[0].turns[1].answer}'
    assert all(
        body['messages'][0]['content'] == dialogues.PARTNER_PROMPT
        for body in server.bodies
    )
    count = len(server.bodies)
    assert _hold(_model(), server.speaker(), log) == held
    assert len(server.bodies) == count == 5
