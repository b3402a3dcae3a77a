"""The server on a port: OpenAI's client, clients that leave, and its end."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

from tests.serving import fakes
from tests.serving.api import conftest

_ROOT = pathlib.Path(__file__).parents[3]
_KEY = 'a-key-of-ours'


@pytest.fixture
def url(made):
    with fakes.served(made) as found:
        yield found


@pytest.fixture
def asks(url):
    with openai.OpenAI(
        base_url=f'{url}/v1', api_key='none', max_retries=0, timeout=20
    ) as found:
        yield found


def test_openais_client(asks, chat):
    found = asks.chat.completions.create(
        **chat, n=2, logprobs=True, top_logprobs=2, seed=1, stop=['never']
    )
    assert [choice.message.content for choice in found.choices] == [conftest.SAID] * 2
    assert found.choices[0].logprobs.content[0].top_logprobs[0].logprob == -0.5
    assert found.usage.prompt_tokens_details.cached_tokens > 0
    text = asks.completions.create(
        model='ida', prompt=['Hi', 'Yes'], logprobs=1, max_tokens=50
    )
    assert [choice.text for choice in text.choices] == [conftest.SAID] * 2
    assert text.choices[0].logprobs.token_logprobs[0] == -0.5
    assert [model.id for model in asks.models.list()] == ['tiny', 'jack', 'ida']
    assert asks.models.retrieve('ida').id == 'ida'


def test_openais_client_streams(asks, chat):
    with asks.chat.completions.create(
        **chat,
        stream=True,
        stream_options={'include_usage': True},
        logprobs=True,
    ) as stream:
        *chunks, last = list(stream)
    pieces = [chunk.choices[0].delta.content or '' for chunk in chunks]
    assert ''.join(pieces) == conftest.SAID
    assert len(pieces) > 5
    assert chunks[-1].choices[0].finish_reason == 'stop'
    assert last.usage.completion_tokens > 5
    spelled = b''.join(
        bytes(entry.bytes)
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    )
    assert spelled.decode() == conftest.SAID
    with asks.completions.create(
        model='ida', prompt='Hi', stream=True, max_tokens=50
    ) as stream:
        assert ''.join(c.choices[0].text for c in stream) == conftest.SAID


def test_openais_errors(asks, chat, engine, made, own):
    with pytest.raises(openai.BadRequestError) as wrong:
        asks.chat.completions.create(**chat, temperature=-1)
    assert (wrong.value.param, wrong.value.status_code) == ('temperature', 400)
    with pytest.raises(openai.NotFoundError) as absent:
        asks.chat.completions.create(**(chat | {'model': 'walt'}))
    assert absent.value.code == 'model_not_found'
    engine.script = lambda job: [fakes.jobs.Ended('error', error='It broke.')]
    with pytest.raises(openai.InternalServerError, match=r'It broke\.'):
        asks.chat.completions.create(**chat)
    with (
        pytest.raises(openai.APIError, match=r'It broke\.'),
        asks.chat.completions.create(**chat, stream=True) as stream,
    ):
        list(stream)
    made.draining = True
    with pytest.raises(openai.InternalServerError) as ending:
        asks.chat.completions.create(**chat)
    assert ending.value.status_code == 503


def test_openais_client_and_the_key(made, chat):
    with fakes.served(made, key=_KEY) as url:
        base = f'{url}/v1'
        with openai.OpenAI(base_url=base, api_key=_KEY) as right:
            assert right.chat.completions.create(**chat).choices
        with (
            openai.OpenAI(base_url=base, api_key='another') as wrong,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            wrong.chat.completions.create(**chat)
        assert refused.value.code == 'invalid_api_key'


def test_too_many_are_told_when_to_come_again(own, chat):
    engine = fakes.Engine(fakes.saying(own, conftest.SAID), slots=1, queue=1)
    engine.delay = 0.03
    made = fakes.make_service(own, engine)
    with fakes.served(made) as url:

        def ask(_: int) -> httpx.Response:
            return httpx.post(f'{url}/v1/chat/completions', json=chat, timeout=20)

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            found = list(pool.map(ask, range(6)))
        refused = [one for one in found if one.status_code == 429]
        assert 1 <= len(refused) <= 5
        assert {one.headers['retry-after'] for one in refused} == {'1'}
        assert {one.json()['error']['code'] for one in refused} == {
            'rate_limit_exceeded'
        }
        # Of one that has no room for all its answers, none is begun.
        engine.wait_idle()
        before = len(engine.asked)
        body = chat | {'n': 3}
        assert httpx.post(f'{url}/v1/chat/completions', json=body).status_code == 429
        engine.wait_idle()
        assert set(engine.ends[before:]) <= {'cancelled'}
        assert ask(0).status_code == 200


def test_long_bodies_are_cut_off(url):
    host, _, port = url.removeprefix('http://').partition(':')
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            f'POST /completion HTTP/1.1\r\nHost: {host}\r\n'
            'Content-Length: 99999999\r\n\r\n'.encode()
        )
        sent = 0
        # Whoever goes on sending is not listened to.
        with contextlib.suppress(ConnectionError):
            while sent < 99_999_999:
                sent += client.send(b' ' * 65_536)
        assert sent < 50_000_000


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('path', ['/v1/chat/completions', '/v1/completions'])
def test_a_client_that_leaves_frees_its_rows(url, made, engine, chat, path, stream):
    engine.delay = 0.05
    body = json.dumps(chat | {'prompt': 'Hi', 'n': 2, 'stream': stream}).encode()
    host, _, port = url.removeprefix('http://').partition(':')
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f'POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}'
            '\r\n\r\n'.encode()
            + body
        )
        while engine.figures().running < 2:
            time.sleep(0.005)
        if stream:
            assert client.recv(100).startswith(b'HTTP/1.1 200')
    engine.wait_idle()
    assert engine.ends == ['cancelled'] * 2
    assert not made.running
    assert b'ppjax_answers_total{end="gone",persona="jack"} 2.0' in made.metrics.text()


def test_one_that_fails_and_one_that_leaves_beside_many(url, engine, own, chat):
    """Many answers at a time, whatever others do."""
    engine.widen(40)
    engine.delay = 0.002
    said = fakes.saying(own, conftest.SAID)

    def script(job):
        if job.max_tokens == 7:
            yield fakes.jobs.Ended('error', error='It broke.')
        yield from said(job)

    engine.script = script

    def ask(number: int) -> str | int:
        body = chat | {'stream': number % 2 == 0}
        if number % 5 == 1:
            body['max_tokens'] = 7
        with httpx.stream(
            'POST', f'{url}/v1/chat/completions', json=body, timeout=20
        ) as found:
            if number % 5 == 2:  # It leaves.
                return 'left'
            content = found.read().decode()
        if number % 5 == 1:
            return 'It broke.' in content
        if not body['stream']:
            return json.loads(content)['choices'][0]['message']['content']
        events = [x.removeprefix('data: ') for x in content.split('\n\n') if x]
        assert events.pop() == '[DONE]'
        deltas = [json.loads(event)['choices'][0]['delta'] for event in events]
        return ''.join(delta.get('content', '') for delta in deltas)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        found = list(pool.map(ask, range(40)))
    for number, answer in enumerate(found):
        wanted = {1: True, 2: 'left'}.get(number % 5, conftest.SAID)
        assert answer == wanted, number
    engine.wait_idle()


def test_what_was_measured_holds_nobody_up(made, monkeypatch):
    asked, go = threading.Event(), threading.Event()
    text = made.metrics.text

    def slow():
        asked.set()
        assert go.wait(10)
        return text()

    monkeypatch.setattr(made.metrics, 'text', slow)
    with (
        fakes.served(made) as url,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        measured = pool.submit(httpx.get, f'{url}/metrics', timeout=20)
        assert asked.wait(10)
        try:
            assert httpx.get(f'{url}/health', timeout=2).status_code == 200
        finally:
            go.set()
        assert 'ppjax_slots 4.0' in measured.result().text


class _Program:
    """A server in a process of its own."""

    def __init__(self, delay: float, drain: float):
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'tests.serving.api.program', str(delay), str(drain)],
            env=os.environ | {'PYTHONPATH': str(_ROOT)},
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith('Serving 2 personas of models/tiny: http://127.'), line
        self.url = line.split()[-1].rstrip('/')

    def end(self, sign: signal.Signals) -> None:
        self.process.send_signal(sign)

    def said(self) -> tuple[int, str, str]:
        """(exit code, what it said at last, its errors)."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def _events(lines: list[str]) -> list:
    found = [line.removeprefix('data: ') for line in lines if line]
    return [x if x == '[DONE]' else json.loads(x) for x in found]


def test_what_is_under_way_is_finished(chat):
    program = _Program(0.01, 30)
    try:
        body = chat | {'stream': True, 'max_tokens': 60}
        address = f'{program.url}/v1/chat/completions'
        with httpx.stream('POST', address, json=body, timeout=20) as found:
            lines = found.iter_lines()
            first = [next(lines) for _ in range(9)]
            program.end(signal.SIGTERM)
            end = time.monotonic() + 10
            while (late := httpx.post(address, json=chat)).status_code != 503:
                assert time.monotonic() < end
            assert int(late.headers['retry-after']) > 0
            *events, done = _events([*first, *lines])
        assert done == '[DONE]'
        assert events[-1]['choices'][0]['finish_reason'] == 'length'
        code, out, _ = program.said()
        assert code == 0
        assert 'length' in out
    finally:
        program.process.kill()


def test_what_takes_too_long_is_given_up(chat):
    program = _Program(0.3, 0.5)
    try:
        address = f'{program.url}/v1/chat/completions'
        with (
            concurrent.futures.ThreadPoolExecutor(1) as pool,
            httpx.stream(
                'POST', address, json=chat | {'stream': True}, timeout=20
            ) as found,
        ):
            whole = pool.submit(httpx.post, address, json=chat, timeout=20)
            lines = found.iter_lines()
            first = [next(lines) for _ in range(3)]
            time.sleep(0.2)
            program.end(signal.SIGINT)
            *_, error, done = _events([*first, *lines])
            assert whole.result().status_code == 503
        assert done == '[DONE]'
        assert error['error']['code'] == 'service_unavailable'
        code, out, err = program.said()
        assert code == 0
        assert out.split() == ['ends:', 'cancelled', 'cancelled']
        assert 'Requests given up after 0.5 s: 2.' in err
        assert 'Traceback' not in err
    finally:
        program.process.kill()


def test_a_second_signal_ends_it_at_once(chat):
    program = _Program(0.3, 60)
    try:
        with httpx.stream(
            'POST',
            f'{program.url}/v1/chat/completions',
            json=chat | {'stream': True},
            timeout=20,
        ) as found:
            lines = found.iter_lines()
            next(lines)
            program.end(signal.SIGTERM)
            time.sleep(0.3)
            assert program.process.poll() is None
            program.end(signal.SIGTERM)
            code, _, err = program.said()
        assert (code, err.splitlines()[-1]) == (143, 'Interrupted.')
    finally:
        program.process.kill()
