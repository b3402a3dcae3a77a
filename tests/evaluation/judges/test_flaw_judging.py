"""Lists of flaws from a judge: logged, asked for once, malformed ones again."""

import json

import pytest

from ppjax.base import errors
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import flaw_judging, flaws

_ONE = '{"flaws": [{"instance": "a", "type": "knowledge", "severity": 3}]}'


class _Critic:
    """Says what `say` makes of a conversation, the last first."""

    identity = 'critic'

    def __init__(self, say):
        self.say, self.asked = say, []

    def speak(self, conversations):
        for index, own in reversed(list(enumerate(conversations))):
            self.asked.append(list(own))
            said = self.say(own)
            if isinstance(said, str):
                said = speakers.Said(said, 0, True)
            yield index, said


def _judged(critic, prompts, path):
    return flaw_judging.judge_all(critic, prompts, log_path=path / 'flaws.jsonl')


def test_each_is_asked_once_and_never_again(tmp_path):
    critic = _Critic(lambda own: _ONE if 'b' in own[0]['content'] else '{"flaws": []}')
    found = _judged(critic, ['a', 'b', 'a'], tmp_path)
    assert [x.score for x in found] == pytest.approx([100, 86.5, 100])
    assert [x.replies for x in found] == [1, 1, 1]
    assert len(critic.asked) == 2
    assert _judged(critic, ['b', 'a'], tmp_path) == [found[1], found[0]]
    assert len(critic.asked) == 2
    critic.identity = 'another'
    _judged(critic, ['a'], tmp_path)
    assert len(critic.asked) == 3


def test_a_malformed_reply_is_answered_by_the_demand_for_another(tmp_path):
    critic = _Critic(
        lambda own: 'Not bad.' if len(own) < 3 and own[0]['content'] == 'a' else _ONE
    )
    found = _judged(critic, ['a', 'b'], tmp_path)
    assert [x.replies for x in found] == [2, 1]
    assert [x.score for x in found] == pytest.approx([86.5, 86.5])
    assert critic.asked[-1] == [
        {'role': 'user', 'content': 'a'},
        {'role': 'assistant', 'content': 'Not bad.'},
        {'role': 'user', 'content': flaws.AGAIN},
    ]
    assert _judged(critic, ['a', 'b'], tmp_path) == found
    assert len(critic.asked) == 3


def test_after_three_there_is_no_score_and_nobody_is_asked_again(tmp_path):
    critic = _Critic(lambda own: f'No. {len(own)}')
    (found,) = _judged(critic, ['a'], tmp_path)
    assert found == flaw_judging.FlawVerdict(None, 3, 'No. 5')
    assert found.score is None and not found.failure
    assert [len(own) for own in critic.asked] == [1, 3, 5]
    _judged(critic, ['a'], tmp_path)
    assert len(critic.asked) == 3
    with pytest.raises(errors.InputError, match=r"none of 1 answers .* 'No\. 5'"):
        flaw_judging.refuse_unscored('tiny', [found])
    flaw_judging.refuse_unscored('tiny', [])


def test_failures_are_asked_again_from_where_they_came(tmp_path):
    critic = _Critic(
        lambda own: speakers.failed('HTTP 500') if len(own) > 1 else 'Not bad.'
    )
    (found,) = _judged(critic, ['a'], tmp_path)
    assert (found.score, found.failure) == (None, 'HTTP 500')
    with pytest.raises(errors.InputError, match=r'no verdict on any of 1 .* HTTP 500'):
        flaw_judging.refuse_unscored('tiny', [found])
    critic.say = lambda own: _ONE
    (found,) = _judged(critic, ['a'], tmp_path)
    assert found.replies == 2 and found.score == pytest.approx(86.5)
    # The first reply was in the log.
    assert [len(own) for own in critic.asked] == [1, 3, 3]


def test_where_there_is_no_room_to_ask_again_the_first_reply_was_the_last(tmp_path):
    """The demand alone, without what it is about, would get a list as well."""
    critic = _Critic(
        lambda own: (
            speakers.Said('{"flaws": []}', 0, True, forgotten=1)
            if len(own) > 1
            else 'x' * 5000
        )
    )
    (found,) = _judged(critic, ['a'], tmp_path)
    assert found == flaw_judging.FlawVerdict(None, 1, 'x' * 5000)
    # Nor is all of a long reply shown again.
    assert [len(x['content']) for x in critic.asked[1]][:2] == [1, 1000]


def test_a_run_that_is_killed_loses_what_was_on_its_way(tmp_path):
    def say(own):
        if own[0]['content'] == 'a':
            raise KeyboardInterrupt
        return _ONE

    with pytest.raises(KeyboardInterrupt):
        _judged(_Critic(say), ['a', 'b', 'c'], tmp_path)
    (tmp_path / 'flaws.jsonl').open('a').write('{"torn')
    critic = _Critic(lambda own: _ONE)
    assert len(_judged(critic, ['a', 'b', 'c'], tmp_path)) == 3
    assert [own[0]['content'] for own in critic.asked] == ['a']


def test_another_log_is_refused(tmp_path):
    (tmp_path / 'flaws.jsonl').write_text(json.dumps({'key': 'a', 'score': 1}) + '\n')
    with pytest.raises(errors.InputError, match='a log of flaws'):
        _judged(_Critic(lambda own: _ONE), ['a'], tmp_path)
