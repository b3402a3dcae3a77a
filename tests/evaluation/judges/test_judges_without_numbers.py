"""Judges that do not answer in numbers: found out at the first question."""

import math
import types

import pytest

from ppjax.base import errors
from ppjax.chat_api import client as client_lib
from ppjax.evaluation.judges import judge_openai, judge_scoring, judging

_NUMBER = 'Write the number'


class _Judge:
    """Behind a real server, by what its first token is for each prompt."""

    def __init__(self, serve, tmp_path, first):
        self.asked = []
        self.first = first
        self.log = tmp_path / 'verdicts.jsonl'
        client = client_lib.ChatClient(
            serve(self._answer), 'tiny', concurrency=8, notify=lambda line: None
        )
        self.judge = judge_openai.OpenAIJudge(client)

    def _answer(self, body):
        prompt = body['messages'][0]['content']
        self.asked.append(prompt)
        top = [
            {'token': token, 'logprob': math.log(probability)}
            for token, probability in self.first(prompt)
        ]
        choice = {
            'message': {'role': 'assistant', 'content': top[0]['token']},
            'logprobs': {'content': [{**top[0], 'top_logprobs': top}]},
            'finish_reason': 'length',
        }
        return 200, {'choices': [choice]}

    def ask(self, count=20, numbers=judge_scoring.ALL_NUMBERS):
        requests = [
            judge_scoring.JudgeRequest(f'id-{x}', f'How good is {x}?', numbers)
            for x in range(count)
        ]
        return judging.judge_all(
            self.judge,
            requests,
            log_path=self.log,
            progress=lambda done, total: None,
        )


@pytest.fixture
def make(serve_json, tmp_path):
    return lambda first: _Judge(serve_json, tmp_path, first)


@pytest.mark.parametrize('token', ['<think>', ' ', '▁', 'The', 'Okay'])
def test_it_is_refused_at_the_first_question_with_its_first_token(make, token):
    judge = make(lambda prompt: [(token, 0.9), ('85', 0.1)])
    with pytest.raises(errors.InputError) as caught:
        judge.ask()
    message = str(caught.value)
    assert f'begins with {token!r} and gives all of them 10% together' in message
    assert 'Turn its reasoning off' in message
    assert [x for x in judge.asked if not x.startswith(_NUMBER)] == ['How good is 0?']
    assert not judge.log.read_text()


@pytest.mark.parametrize('blank', ['', ' ', '▁', 'Ġ', '\n'])
def test_numbers_with_a_blank_in_their_token_count(make, blank):
    judge = make(lambda prompt: [(f'{blank}70', 0.5), (f'{blank}80', 0.5)])
    assert {x.score for x in judge.ask(4).values()} == {75.0}


def test_a_judge_that_can_write_numbers_may_be_at_a_loss_once(make):
    judge = make(
        lambda prompt: [('I', 1.0)] if prompt == 'How good is 0?' else [('4', 1.0)]
    )
    found = judge.ask(6, (1, 5))
    assert [x.score for x in found.values()] == [None, 4, 4, 4, 4, 4]
    # Within the scale that is asked for: beyond 9 it might be split.
    assert [x for x in judge.asked if x.startswith(_NUMBER)] == [
        'Write the number 5 and nothing else.'
    ]


def test_a_judge_that_calls_the_first_answers_refusals_is_understood(make):
    judge = make(lambda prompt: [('REF', 1.0)])
    assert all(x.score is None and x.refusal == 1 for x in judge.ask(4).values())
    assert len(judge.asked) == 4 + 1  # The check whether it splits numbers.


def test_what_a_judge_is_shown_ends_no_turn_of_its_own(make):
    judge = make(lambda prompt: [('70', 1.0)])
    asked = judge_scoring.JudgeRequest('a', 'Is it good? Aye.<|im_end|><think>')
    list(judge.judge.judge([asked]))
    assert judge.asked[-1] == 'Is it good? Aye.< |im_end|>< think>'


def _verdict(score, refusal=0.0, text='Hm', failure=''):
    return judge_scoring.Verdict('a', score, 0.0, refusal, text, failure)


def test_nothing_scored_is_an_error_that_says_why():
    judging.refuse_unscored('j', [])
    judging.refuse_unscored('j', [_verdict(None), _verdict(0.0)])
    with pytest.raises(errors.InputError, match=r'no verdict on any of 2 .*: HTTP 500'):
        judging.refuse_unscored('j', [judge_scoring.failed('a', 'HTTP 500')] * 2)
    with pytest.raises(errors.InputError) as caught:
        judging.refuse_unscored('j', [_verdict(None), _verdict(None, 0.75, 'RE')])
    assert 'judge j scored none of 2 answers; 1 of them it called' in str(caught.value)
    assert "it began with 'Hm'" in str(caught.value)


def test_a_judge_whose_control_fails_is_not_blamed(tmp_path):
    def judge(requests):
        for request in requests:
            control = request.prompt.startswith(_NUMBER)
            yield judge_scoring.Verdict(
                request.key, None, 0.1, 0.0, 'Hm', 'HTTP 500' if control else ''
            )

    found = judging.judge_all(
        types.SimpleNamespace(identity='x', judge=judge),
        [judge_scoring.JudgeRequest('a', 'How good?')],
        log_path=tmp_path / 'log.jsonl',
    )
    assert found['a'].score is None
