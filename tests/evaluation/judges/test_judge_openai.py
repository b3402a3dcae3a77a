"""Judging through servers: one that follows a plan, and a real one of llama.cpp."""

from collections.abc import Callable, Iterator
import math
import pathlib
import subprocess
import sys
import threading
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.chat_api import client as client_lib
from ppjax.data import chat
from ppjax.evaluation.judges import judge_openai, judge_scoring
from ppjax.models import attention, base_model
from ppjax.models import masks as masks_lib

_Body = dict[str, Any]
_CHECK = 'Write the number 85 and nothing else.'
_SETTINGS: _Body = {
    'model': 'tiny',
    'temperature': 0,
    'logprobs': True,
    'top_logprobs': 20,
    'seed': 0,
    'stream': False,
}


def _completion(
    *positions: list[tuple[str, float]], finish: str = 'length', **message: Any
) -> _Body:
    """A reply whose positions have these (token, probability), likeliest first."""
    content = []
    for position in positions:
        top = [{'token': x, 'logprob': math.log(p), 'bytes': []} for x, p in position]
        content.append({**top[0], 'top_logprobs': top})
    text = ''.join(position[0][0] for position in positions)
    return {
        'choices': [
            {
                'message': {'role': 'assistant', 'content': text, **message},
                'logprobs': {'content': content},
                'finish_reason': finish,
            }
        ]
    }


def _written(*tokens: str) -> _Body:
    return _completion(*([(token, 1.0)] for token in tokens))


def _error(message: str, **more: Any) -> _Body:
    return {'error': {'message': message, **more}}


_GOOD = _completion([('70', 0.6), ('90', 0.4)])


ServeJson = Callable[[Callable[[Any], tuple[int, Any]]], str]


class _Server:
    """Answers (status, JSON) by a plan of the prompt; the check gets a good reply."""

    def __init__(self, serve: ServeJson) -> None:
        self.plan: Callable[[str], tuple[int, Any] | None] = lambda prompt: None
        self.check: tuple[int, Any] = (200, _written('85'))
        self.bodies: list[_Body] = []
        self.url = serve(self._answer)

    def _answer(self, body: _Body) -> tuple[int, Any]:
        self.bodies.append(body)
        prompt = body['messages'][0]['content']
        planned = self.check if prompt == _CHECK else self.plan(prompt)
        return planned or (200, _GOOD)

    @property
    def prompts(self) -> list[str]:
        return [body['messages'][0]['content'] for body in self.bodies]


@pytest.fixture
def server(serve_json: ServeJson) -> _Server:
    return _Server(serve_json)


def _judge(
    server: _Server, model: str = 'tiny', **settings: Any
) -> judge_openai.OpenAIJudge:
    quick = {
        'api_key_env': 'PPJAX_TEST_NO_KEY',
        'backoff': 0.01,
        'longest_wait': 0.05,
        'timeout': 10.0,
        'retries': 1,
        'notify': lambda line: None,
    }
    return judge_openai.OpenAIJudge(
        client_lib.ChatClient(server.url, model, **(quick | settings))
    )


def _requests(*prompts: str) -> list[judge_scoring.JudgeRequest]:
    return [judge_scoring.JudgeRequest(f'id-{x}', x) for x in prompts]


def _refused(judge: judge_openai.OpenAIJudge, *prompts: str) -> str:
    with pytest.raises(errors.InputError) as caught:
        list(judge.judge(_requests(*prompts)))
    message = str(caught.value)
    assert '\n' not in message
    return message


# --- A server in order --------------------------------------------------------


def test_what_is_sent(server):
    list(_judge(server).judge(_requests('How good is\n"é"?')))
    check, request = server.bodies
    assert request == _SETTINGS | {
        'messages': [{'role': 'user', 'content': 'How good is\n"é"?'}],
        'max_tokens': 1,
    }
    assert check.pop('max_tokens') > 2  # A number and more has room.
    assert check == _SETTINGS | {'messages': [{'role': 'user', 'content': _CHECK}]}


def test_a_score_is_the_mean_of_the_numbers_by_probability(server):
    replies = {
        'a': _completion([('85', 0.6), ('80', 0.2), ('90', 0.1), ('The', 0.1)]),
        'b': _completion([('RE', 0.9), ('50', 0.1)]),
        # Several tokens, and of them the first, decide.
        'c': _completion([('30', 1.0)], [('99', 1.0)]),
    }
    server.plan = lambda prompt: (200, replies[prompt])
    verdicts = list(_judge(server).judge(_requests('a', 'b', 'c')))
    found = {verdict.key: verdict for verdict in verdicts}
    assert len(verdicts) == len(found) == 3
    assert found['id-a'].score == pytest.approx((51 + 16 + 9) / 0.9)
    assert found['id-a'].mass == pytest.approx(0.9)
    assert found['id-a'].text == '85'
    assert found['id-b'].score is None
    assert found['id-b'].refusal == pytest.approx(0.9)
    assert found['id-c'].score == pytest.approx(30.0)
    assert not any(verdict.failure for verdict in verdicts)


@pytest.fixture
def read(monkeypatch):
    """Sees the (text, probability) pairs that verdicts are made of."""
    seen = mock.Mock(wraps=judge_scoring.from_top_tokens)
    monkeypatch.setattr(judge_scoring, 'from_top_tokens', seen)
    return seen


def test_the_candidates_are_probabilities(server, read):
    over = _completion([('85', 1.0)])
    top = over['choices'][0]['logprobs']['content'][0]['top_logprobs']
    top[0]['logprob'] = 1e-6  # As rounding may leave it.
    top.append({'token': '', 'logprob': -9999.0})
    top.append({'token': '9', 'logprob': -math.inf})
    top.append({'token': '8', 'logprob': 1e6})
    server.plan = lambda prompt: (200, over)
    (found,) = _judge(server).judge(_requests('a'))
    assert found.key == 'id-a'
    assert read.call_args.args[1] == [('85', 1.0), ('', 0.0), ('9', 0.0), ('8', 1.0)]


def test_the_identity_is_the_models_wherever_it_runs():
    def identity(url: str, model: str) -> str:
        return judge_openai.OpenAIJudge(client_lib.ChatClient(url, model)).identity

    assert identity('http://a:1', 'tiny') == identity('http://b:2/v1', 'tiny')
    assert identity('http://a:1', 'tiny') != identity('http://a:1', 'large')


def test_no_more_is_asked_once_the_caller_stops(server):
    verdicts = _judge(server, concurrency=1).judge(_requests(*map(str, range(500))))
    next(verdicts)
    verdicts.close()
    assert len(server.bodies) < 500
    assert not [x for x in threading.enumerate() if x.name == 'chat_api']


# --- Models that write numbers digit by digit ---------------------------------


@pytest.mark.parametrize(
    'tokens', [('8', '5'), (' 8', '5'), ('\n', '8', '5'), ('It is', ' ', '8', '5', '.')]
)
def test_a_model_that_splits_numbers_is_refused_before_it_judges(server, tokens):
    server.check = (200, _written(*tokens))
    message = _refused(_judge(server), 'a', 'b')
    assert "digit by digit ('8', '5')" in message
    assert "'tiny'" in message
    assert server.prompts == [_CHECK]


@pytest.mark.parametrize(
    'tokens',
    [
        *(('85',), (' 85',), ('85', '5'), ('100', '0'), ('8', ' 5'), ('8', '.', '5')),
        *(('The', ' number'), ('²', '³'), ('8',), ('5', '85')),
    ],
)
def test_other_replies_prove_nothing(server, tokens):
    server.check = (200, _written(*tokens))
    (verdict,) = _judge(server).judge(_requests('a'))
    assert verdict.score == pytest.approx(78.0)


def test_a_judge_is_checked_once_and_only_if_it_is_asked(server):
    judge = _judge(server)
    assert list(judge.judge([])) == []
    assert server.prompts == []
    for prompt in ('a', 'b'):
        list(judge.judge(_requests(prompt)))
    assert server.prompts == [_CHECK, 'a', 'b']


def test_a_scale_of_digits_needs_no_check_and_no_whole_numbers(server):
    server.check = (200, _written('8', '5'))
    server.plan = lambda prompt: (
        200,
        _completion([('4', 0.6), ('2', 0.2), ('8', 0.2)]),
    )
    judge = _judge(server)
    digits = judge_scoring.JudgeRequest('digits', 'a', (1, 5))
    (verdict,) = judge.judge([digits])
    assert server.prompts == ['a']
    assert verdict.score == pytest.approx((2.4 + 0.4) / 0.8)
    assert verdict.mass == pytest.approx(0.8)
    # One that goes beyond is checked for, in whatever company.
    with pytest.raises(errors.InputError, match='digit by digit'):
        list(judge.judge([digits, judge_scoring.JudgeRequest('ten', 'b', (1, 10))]))
    with pytest.raises(errors.InputError, match='digit by digit'):
        list(judge.judge(_requests('b')))
    nine = judge_scoring.JudgeRequest('nine', 'c', (0, 9))
    assert [x.key for x in judge.judge([nine])] == ['nine']


def test_ranges_are_not_mixed_up(server):
    server.plan = lambda prompt: (200, _completion([('5', 0.5), ('50', 0.5)]))
    requests = [
        judge_scoring.JudgeRequest('low', 'a', (1, 5)),
        judge_scoring.JudgeRequest('all', 'b'),
    ]
    found = {x.key: x.score for x in _judge(server).judge(requests)}
    assert found == {'low': pytest.approx(5), 'all': pytest.approx(27.5)}


def test_a_check_that_failed_is_made_again(server):
    judge = _judge(server)
    server.check = (500, {})
    (verdict,) = judge.judge(_requests('a'))
    assert verdict.score == pytest.approx(78.0)
    server.check = (200, _written('8', '5'))
    assert 'digit by digit' in _refused(judge, 'b')


# --- Servers that are no judges -----------------------------------------------

_WITHOUT = [
    {},
    {'logprobs': None},
    {'logprobs': {'content': None}},
    {'logprobs': {'content': []}},
    {'logprobs': {'content': [{'token': '8', 'logprob': 0.0, 'top_logprobs': []}]}},
]


def _without(more: Any, finish: str = 'length', **message: Any) -> _Body:
    text = {'role': 'assistant', 'content': '85', **message}
    return {'choices': [{'message': text, 'finish_reason': finish, **more}]}


@pytest.mark.parametrize('more', _WITHOUT)
def test_a_server_without_logprobs_is_refused(server, more):
    server.check = (200, _without(more))
    message = _refused(_judge(server), 'a', 'b')
    assert f'{server.url}/v1/chat/completions answered without logprobs' in message
    assert "'tiny'" in message
    assert 'llama.cpp' in message
    assert server.prompts == [_CHECK]


@pytest.mark.parametrize('more', _WITHOUT)
def test_one_reply_without_logprobs_fails_alone(server, more):
    server.plan = lambda prompt: (200, _without(more)) if prompt == 'b' else None
    found = {x.key: x for x in _judge(server).judge(_requests('a', 'b', 'c'))}
    assert found.pop('id-b') == judge_scoring.failed(
        'id-b', 'the reply holds no logprobs'
    )
    assert all(x.score == pytest.approx(78.0) for x in found.values())


_EXTRA = {'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Not permitted.'}


@pytest.mark.parametrize(
    ('status', 'value', 'said'),
    [
        (400, _error('top_logprobs must be at most 5.'), 'must be at most 5'),
        (400, _error("'logprobs' is not supported."), 'is not supported'),
        (422, {'detail': [_EXTRA]}, 'Not permitted.'),
        (403, _error('You may not request logprobs from this model.'), 'may not'),
        (400, _error("'temperature' does not support 0."), 'does not support 0'),
    ],
)
def test_settings_that_a_server_rejects(server, status, value, said):
    server.check = (status, value)
    message = _refused(_judge(server), 'a')
    assert f'HTTP {status}' in message
    assert said in message
    assert 'top_logprobs=20' in message
    assert 'seed=0' in message
    assert '--max-logprobs 20' in message


@pytest.mark.parametrize(
    ('status', 'said'),
    [
        (401, 'No key, no logprobs.'),
        (404, 'No model for logprobs.'),
        (403, 'Not your model.'),
        (400, 'No model ByteDance-Seed/Seed-OSS.'),
        (400, 'Unseeded.'),
    ],
)
def test_other_refusals_are_not_blamed_on_the_settings(server, status, said):
    server.check = (status, _error(said))
    message = _refused(_judge(server, model='seed'), 'a')
    assert said in message
    assert 'top_logprobs' not in message


def test_a_setting_rejected_while_judging(server):
    server.plan = lambda prompt: (400, _error('seed is not supported.'))
    assert 'seed=0' in _refused(_judge(server), 'a')
    # Only the server's own words say what it dislikes, and not the row's name.
    server.plan = lambda prompt: (400, _error('Bad.'))
    assert 'seed=0' not in _refused(_judge(server), 'a seed')


def test_the_newer_name_of_the_limit_is_taken_up(server):
    def answer(good: _Body) -> tuple[int, Any]:
        if 'max_tokens' in server.bodies[-1]:
            return 400, _error("'max_tokens': use 'max_completion_tokens' instead.")
        return 200, good

    server.plan = lambda prompt: answer(_GOOD)
    (verdict,) = _judge(server).judge(_requests('a'))
    assert verdict.score == pytest.approx(78.0)
    assert server.bodies[-1]['max_completion_tokens'] == 1


# --- Rows that fail alone -----------------------------------------------------


def test_rows_that_the_server_does_not_answer_are_failures(server):
    long = _error('Too many.', code='context_length_exceeded')
    plans = {'b': (400, long), 'c': (500, _error('crashed')), 'd': (200, {})}
    server.plan = plans.get
    found = {x.key: x for x in _judge(server).judge(_requests('a', 'b', 'c', 'd'))}
    assert found['id-a'].score == pytest.approx(78.0)
    assert found['id-b'] == judge_scoring.failed('id-b', 'HTTP 400: Too many.')
    assert found['id-c'] == judge_scoring.failed('id-c', 'HTTP 500: crashed')
    assert 'no chat completion' in found['id-d'].failure
    assert server.prompts.count('b') == 1
    assert server.prompts.count('c') == 2


@pytest.mark.parametrize(
    'reply', [_without({}, 'content_filter'), _without({}, refusal='I will not.')]
)
def test_what_the_server_filters_is_a_refusal(server, reply):
    server.plan = lambda prompt: (200, reply)
    (verdict,) = _judge(server).judge(_requests('a'))
    assert (verdict.score, verdict.mass, verdict.refusal) == (None, 0.0, 1.0)
    assert not verdict.failure


def test_a_server_that_stays_away_stops_the_judging(server):
    server.check = (503, _error('loading'))
    server.plan = lambda prompt: (503, _error('loading'))
    assert 'stays away' in _refused(_judge(server), *map(str, range(50)))
    assert len(server.bodies) < 100
    # The plain question has the same settings, for they may be what it fails at.
    hello = server.bodies[server.prompts.index('Hello.')]
    assert hello.pop('messages')
    assert hello == _SETTINGS | {'max_tokens': 1}


# --- A real server ------------------------------------------------------------

_SERVE = """
import sys
import xllamacpp

settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.port = 0
settings.n_ctx = 512
settings.n_parallel = 1
settings.warmup = False
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(settings)
print('At', server.listening_address, flush=True)
sys.stdin.read()
"""
# Of all prompts tried, the one where this small model is surest of a number.
_PROMPT = 'What is 9 times 9? Write only the number, in digits.'


@pytest.fixture(scope='module')
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's server with the real model."""
    pytest.importorskip('xllamacpp', reason="llama.cpp's server is in its wheel")
    log = tmp_path_factory.mktemp('log') / 'server.log'
    with log.open('wb') as err:
        server = subprocess.Popen(
            [sys.executable, '-c', _SERVE, str(base_model.smollm2_gguf())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    assert server.stdin and server.stdout
    try:
        yield _address(server, log)
    finally:
        server.stdin.close()  # It ends by itself then.
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(server: 'subprocess.Popen[str]', log: pathlib.Path) -> str:
    assert server.stdout
    for line in server.stdout:
        if line.startswith('At '):
            return line.split()[1]
    raise AssertionError(log.read_text())


def _real(url: str) -> judge_openai.OpenAIJudge:
    return judge_openai.OpenAIJudge(
        client_lib.ChatClient(url, 'smollm2', api_key_env='PPJAX_TEST_NO_KEY')
    )


def test_llama_cpps_candidates_are_our_models(llama_cpp, smollm2, read):
    # Of digits alone: its model has no tokens for whole numbers.
    list(_real(llama_cpp).judge([judge_scoring.JudgeRequest('a', _PROMPT, (0, 9))]))
    found = read.call_args.args[1]
    renderer = chat.ChatRenderer(smollm2.tokenizer, date='2024-01-01')
    tokens = np.array([renderer.prompt([{'role': 'user', 'content': _PROMPT}])])

    @jax.jit
    def distribution(decoder, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        attend = attention.causal(*tokens.shape)
        hidden = decoder(tokens, positions, masks_lib.DENSE, attend)[0]
        return jax.nn.softmax(decoder.unembed(hidden[:, -1:])[0, 0])

    exact = np.asarray(distribution(smollm2.decoder, tokens))
    ours = {smollm2.tokenizer.decode([i]): float(exact[i]) for i in exact.argsort()}

    assert len(found) == 20
    assert found[0][0] == '9'
    # Both have the same 4-bit weights; llama.cpp rounds activations to 8 bits too.
    # That moves the score of this prompt by 0.06, and no probability of any prompt
    # that was tried by more than 0.016.
    whole = [(text, p) for text, p in found if '\ufffd' not in text and text]
    assert len(whole) >= 18
    for text, probability in whole:
        assert probability == pytest.approx(ours[text], abs=0.02), text
    likeliest = sorted(ours, key=ours.__getitem__)[-20:]
    assert len({text for text, _ in whole} & set(likeliest)) >= 16
    got = judge_scoring.from_top_tokens('a', found)
    want = judge_scoring.from_top_tokens('a', [(x, ours[x]) for x in likeliest])
    assert want.score is not None
    assert got.score == pytest.approx(want.score, abs=0.3)
    assert got.mass == pytest.approx(want.mass, abs=0.03)


def test_llama_cpps_model_of_split_numbers_is_found_out(llama_cpp):
    with pytest.raises(errors.InputError, match=r"digit by digit \('8', '5'\)"):
        list(_real(llama_cpp).judge(_requests('a')))
