"""Rewriting through a server that fails in every way that servers fail."""

import asyncio
import collections
from collections.abc import Callable, Iterator
import email.utils
import http.server
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.synthesis import rewrite_log, rewrite_openai, rewriting

_KEY = 'sk-odd-4711-SeCrEt'
_ENV = 'PPJAX_TEST_KEY'
_PLAIN = '{"detail": "said so"}'


def _completion(text: Any, finish: str | None = 'stop', **message: Any) -> str:
    content = {'role': 'assistant', 'content': text, **message}
    return json.dumps(
        {
            'object': 'chat.completion',
            'choices': [{'index': 0, 'message': content, 'finish_reason': finish}],
        }
    )


class _Answer:
    """What the server does with one request."""

    def __init__(
        self, body: str = '', status: int = 200, delay: float = 0.0, **headers: str
    ):
        self.body, self.status, self.delay, self.headers = body, status, delay, headers


_HANG, _DROP, _TRICKLE = _Answer(), _Answer(), _Answer()
# (query, number of the try, from 1) -> what to do; None is a good reply.
_Plan = Callable[[str, int], _Answer | None]


class _Server:
    """A chat server on loopback that follows a plan and keeps count."""

    def __init__(self, plan: _Plan = lambda query, number: None):
        self.plan = plan
        self.asked: collections.Counter[str] = collections.Counter()
        self.answered: collections.Counter[str] = collections.Counter()
        self.times: dict[str, list[float]] = collections.defaultdict(list)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: set[str] = set()
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.dead = threading.Event()
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        self._http: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.port}'

    def start(self) -> None:
        self.dead = dead = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                size = int(self.headers['content-length'])
                body = json.loads(self.rfile.read(size))
                if dead.is_set():
                    self.close_connection = True
                else:
                    server.serve(self, body, dead)

        class Http(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # Clients hang up on purpose.
                pass

        self._http = Http(('127.0.0.1', self.port), Handler)
        threading.Thread(
            target=self._http.serve_forever, args=(0.01,), daemon=True
        ).start()

    def stop(self) -> None:
        """As a killed process does: requests on their way get no answer."""
        self.dead.set()
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def serve(
        self,
        handler: http.server.BaseHTTPRequestHandler,
        body: dict[str, Any],
        dead: threading.Event,
    ) -> None:
        query = body['messages'][-1]['content']
        with self.lock:
            self.asked[query] += 1
            number = self.asked[query]
            self.times[query].append(time.monotonic())
            self.bodies.append(body)
            self.headers.append(dict(handler.headers.items()))
            self.paths.add(handler.path)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            answer = self.plan(query, number)
            good = answer is None
            answer = answer or _Answer(_completion(f'Arr, {query}'))
            if answer.delay:
                dead.wait(answer.delay)
            if answer is _HANG:
                dead.wait(60)
            if answer is _TRICKLE:
                handler.send_response(200)
                handler.send_header('content-length', '1000')
                handler.end_headers()
                for _ in range(100):
                    handler.wfile.write(b' ')
                    if dead.wait(0.05):
                        break
            if answer in (_HANG, _DROP, _TRICKLE) or dead.is_set():
                handler.close_connection = True
                return
            data = answer.body.encode('utf-8', 'surrogatepass')
            with self.lock:
                # Before the write: the client may be quicker than this thread.
                self.busy -= 1
                self.answered[query] += good
            handler.send_response(answer.status)
            for name, value in answer.headers.items():
                handler.send_header(name.replace('_', '-'), value)
            handler.send_header('content-length', str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        finally:
            with self.lock:
                self.busy = max(0, self.busy - (answer in (_HANG, _DROP, _TRICKLE)))


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server()
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_ENV, _KEY)


def _rewriter(server: _Server, **settings: Any) -> rewrite_openai.OpenAIRewriter:
    quick = {
        'api_key_env': _ENV,
        'backoff': 0.01,
        'longest_wait': 0.05,
        'timeout': 10.0,
        'retries': 4,
        'notify': lambda line: None,
    }
    return rewrite_openai.OpenAIRewriter(server.url, 'tiny', **(quick | settings))


def _requests(*queries: str | int) -> list[rewriting.Request]:
    return [
        rewriting.Request(f'id-{x}', str(x), ({'role': 'user', 'content': str(x)},))
        for x in queries
    ]


def _texts(replies: Iterator[rewriting.Reply]) -> dict[str, str]:
    found: dict[str, str] = {}
    for reply in replies:
        assert reply.query_id not in found
        found[reply.query_id] = (
            f'failed: {reply.failure}' if reply.failure else reply.text
        )
    return found


def _good(*queries: str | int) -> dict[str, str]:
    return {f'id-{x}': f'Arr, {x}' for x in queries}


def _refused(rewriter: rewrite_openai.OpenAIRewriter, *queries: str | int) -> str:
    with pytest.raises(errors.InputError) as caught:
        list(rewriter.rewrite(_requests(*queries)))
    message = str(caught.value)
    assert '\n' not in message
    assert _KEY not in message
    return message


def _logged(path: pathlib.Path) -> list[str]:
    if not path.exists():
        return []
    return [
        json.loads(line)['query_id']
        for line in path.read_bytes().split(b'\n')[:-1]
        if line.endswith(b'}')
    ]


# --- A server in order --------------------------------------------------------


@pytest.mark.parametrize(
    ('suffix', 'path'),
    [
        ('', '/v1/chat/completions'),
        ('/', '/v1/chat/completions'),
        ('/v1', '/v1/chat/completions'),
        ('/v1/', '/v1/chat/completions'),
        ('/v1/chat/completions', '/v1/chat/completions'),
        ('/gateway', '/gateway/v1/chat/completions'),
        ('/api/v4', '/api/v4/chat/completions'),
        ('/v1beta/openai', '/v1beta/openai/chat/completions'),
    ],
)
def test_addresses_with_and_without_version(server, suffix, path):
    rewriter = rewrite_openai.OpenAIRewriter(server.url + suffix, 'tiny')
    assert _texts(rewriter.rewrite(_requests(1))) == _good(1)
    assert server.paths == {path}


def test_what_is_sent(server):
    messages = ({'role': 'system', 'content': 'Be.'}, {'role': 'user', 'content': 'é?'})
    rewriter = _rewriter(server, max_tokens=77, temperature=0.3)
    replies = list(rewriter.rewrite([rewriting.Request('a', 'é?', messages)]))
    assert replies == [rewriting.Reply('a', 'Arr, é?', True)]
    assert server.bodies == [
        {
            'model': 'tiny',
            'messages': list(messages),
            'max_tokens': 77,
            'temperature': 0.3,
            'stream': False,
        }
    ]
    assert server.headers[0]['Authorization'] == f'Bearer {_KEY}'


def test_nothing_is_sent_that_was_not_given(server, monkeypatch):
    monkeypatch.delenv(_ENV)
    list(_rewriter(server, temperature=None).rewrite(_requests(1)))
    assert 'temperature' not in server.bodies[0]
    assert 'Authorization' not in server.headers[0]


def test_requests_run_side_by_side_up_to_the_bound(server):
    meeting = threading.Barrier(3)

    def together(query, number):
        meeting.wait(timeout=20)
        time.sleep(0.05)  # For a fourth to be seen.

    server.plan = together
    replies = _texts(_rewriter(server, concurrency=3).rewrite(_requests(*range(15))))
    assert replies == _good(*range(15))
    assert server.busiest == 3


def test_replies_come_as_they_are_done(server):
    server.plan = lambda query, number: _HANG if query == 'slow' else None
    rewriter = _rewriter(server, concurrency=2, timeout=300.0)
    replies = rewriter.rewrite(_requests('slow', 1, 2, 3))
    start = time.monotonic()
    assert [next(replies).query_id for _ in range(3)] == ['id-1', 'id-2', 'id-3']
    replies.close()
    assert time.monotonic() - start < 15


def test_no_more_is_asked_once_the_caller_stops(server):
    server.plan = lambda query, number: _Answer(_completion('Arr'), delay=0.02)
    replies = _rewriter(server, concurrency=1).rewrite(_requests(*range(1000)))
    next(replies)
    replies.close()
    asked = server.asked.total()
    assert asked < 1000
    assert not [x for x in threading.enumerate() if x.name == 'chat_api']
    time.sleep(0.1)
    assert server.asked.total() <= asked + 1  # One may have been on its way.


def test_it_runs_inside_an_event_loop_as_in_a_notebook(server):
    async def cell() -> dict[str, str]:
        return _texts(_rewriter(server).rewrite(_requests(1, 2)))

    assert asyncio.run(cell()) == _good(1, 2)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    assert _texts(_rewriter(server).rewrite(_requests(1))) == _good(1)


@pytest.mark.parametrize(
    ('body', 'text', 'finished', 'refused'),
    [
        (_completion('So.'), 'So.', True, False),
        (_completion('So.', None), 'So.', True, False),
        (_completion('So', 'length'), 'So', False, False),
        (_completion(None), '', True, False),
        (_completion(None, 'length'), '', False, False),
        (_completion('So', 'content_filter'), 'So', True, True),
        (_completion(None, 'content_filter'), '', True, True),
        (_completion(None, refusal='I will not.'), '', True, True),
        (
            _completion([{'type': 'text', 'text': 'S'}, {'text': 'o.'}, 3]),
            'So.',
            True,
            False,
        ),
        (_completion(7), '', True, False),
        (_completion('So', 'max_tokens'), 'So', False, False),
        (_completion('So', 'MAX_TOKENS'), 'So', False, False),
        (_completion('', reasoning_content='Hm.'), '<think>', True, False),
        (_completion(None, 'length', reasoning='Hm.'), '<think>', False, False),
        (_completion('So.', reasoning_content='Hm.'), 'So.', True, False),
        (_completion([{'type': 'reasoning', 'text': 'Hm.'}]), '<think>', True, False),
        (
            _completion([{'type': 'thinking', 'text': 'Hm.'}, {'text': 'So.'}]),
            'So.',
            True,
            False,
        ),
    ],
)
def test_replies_of_all_forms(server, body, text, finished, refused):
    server.plan = lambda query, number: _Answer(body)
    assert list(_rewriter(server).rewrite(_requests(1))) == [
        rewriting.Reply('id-1', text, finished, refused)
    ]


# --- Faults that pass ---------------------------------------------------------


@pytest.mark.parametrize(
    'fault',
    [
        *(
            _Answer(_PLAIN, status)
            for status in (408, 409, 425, 429, 500, 502, 503, 529)
        ),
        _Answer(_PLAIN, 429, Retry_After='soon'),
        _Answer('{"choices": [', 200),
        _Answer('<html>Bad gateway</html>', 200),
        _Answer('', 200),
        _Answer('[]', 200),
        _Answer('{}', 200),
        _Answer('{"choices": []}', 200),
        _Answer('{"choices": null}', 200),
        _Answer('{"choices": [{"message": null}]}', 200),
        _Answer('{"error": {"message": "overloaded", "code": 529}}', 200),
        _Answer('[' * 50_000, 200),
        _DROP,
    ],
)
def test_a_fault_that_passes_is_asked_again(server, fault):
    server.plan = lambda query, number: fault if number == 1 else None
    assert _texts(_rewriter(server).rewrite(_requests(1, 2, 3))) == _good(1, 2, 3)
    assert server.asked == {'1': 2, '2': 2, '3': 2}


@pytest.mark.parametrize('fault', [_HANG, _TRICKLE])
def test_a_request_that_hangs_is_given_up_and_asked_again(server, fault):
    server.plan = lambda query, number: fault if number == 1 else None
    start = time.monotonic()
    rewriter = _rewriter(server, timeout=0.4, retries=20)
    assert _texts(rewriter.rewrite(_requests(1))) == _good(1)
    assert 0.4 <= time.monotonic() - start < 15


@pytest.mark.parametrize('form', ['seconds', 'date'])
def test_retry_after_is_honoured(server, form):
    def later(query, number):
        # Dates have whole seconds, so this one is 1 to 2 s ahead.
        date = email.utils.formatdate(time.time() + 2, usegmt=True)
        wait = '0.7' if form == 'seconds' else date
        return _Answer(_PLAIN, 429, Retry_After=wait) if number == 1 else None

    server.plan = later
    rewriter = _rewriter(server, longest_wait=5.0)
    assert _texts(rewriter.rewrite(_requests(1))) == _good(1)
    first, second = server.times['1']
    assert second - first >= 0.65


def test_retry_after_is_capped(server):
    server.plan = lambda query, number: (
        _Answer(_PLAIN, 429, Retry_After='30') if number == 1 else None
    )
    start = time.monotonic()
    assert _texts(_rewriter(server, longest_wait=0.3).rewrite(_requests(1))) == _good(1)
    assert 0.25 < time.monotonic() - start < 20


def test_waits_grow_and_are_bounded(server):
    server.plan = lambda query, number: _Answer(_PLAIN, 500) if number < 9 else None
    rewriter = _rewriter(server, backoff=0.05, longest_wait=0.3, retries=8)
    assert _texts(rewriter.rewrite(_requests(1))) == _good(1)
    times = server.times['1']
    waits = [after - before for before, after in itertools.pairwise(times)]
    for wait, least in zip(waits, (0.05, 0.1, 0.2, 0.3), strict=False):
        assert wait > 0.95 * least
    # Unbounded, the last three would be 1.6, 3.2 and 6.4 s at least.
    assert min(waits[5:]) < 1.5


def test_a_row_whose_retries_are_spent_is_asked_by_the_next_run(server, tmp_path):
    server.plan = lambda query, number: (
        _Answer(_PLAIN, 500) if query == '2' and number <= 5 else None
    )
    log = tmp_path / 'log.jsonl'
    rewriter = _rewriter(server)
    kept, counts = rewrite_log.rewrite_all(rewriter, _requests(1, 2, 3), log)
    assert kept == _good(1, 3)
    assert (counts.kept, counts.failed) == (2, 1)
    assert 'HTTP 500: said so' in counts.summary()
    assert server.asked == {'1': 1, '2': 5, '3': 1}
    kept, counts = rewrite_log.rewrite_all(rewriter, _requests(1, 2, 3), log)
    assert kept == _good(1, 2, 3)
    assert counts.failed == 0
    assert server.asked == {'1': 1, '2': 6, '3': 1}


def test_rows_that_crash_the_server_do_not_stop_the_others(server):
    """More of them in a row than the client's patience, and the others last."""
    server.plan = lambda query, number: (
        _Answer(_PLAIN, 500) if query.startswith('bad') else None
    )
    bad = [f'bad{x}' for x in range(12)]
    rewriter = _rewriter(server, retries=1, concurrency=2)
    replies = _texts(rewriter.rewrite(_requests(*bad, 1, 2)))
    assert {x: replies[x] for x in ('id-1', 'id-2')} == _good(1, 2)
    assert all(replies[f'id-{x}'].startswith('failed: HTTP 500') for x in bad)
    # The question after each five of them, and not after every one.
    assert 1 <= server.asked['Hello.'] <= 3


def test_a_server_that_only_fails_stops_the_run(server):
    server.plan = lambda query, number: _Answer(_PLAIN, 503)
    rewriter = _rewriter(server, retries=1, concurrency=2)
    message = _refused(rewriter, *range(100))
    assert 'stays away' in message
    assert 'HTTP 503: said so' in message
    assert 'the same command goes on' in message
    assert server.asked.total() < 20
    asked = {x['messages'][0]['content']: x['max_tokens'] for x in server.bodies}
    assert asked['Hello.'] == 1
    assert asked['0'] == 1024


def test_nobody_listens(server):
    server.stop()
    told: list[str] = []
    message = _refused(_rewriter(server, notify=told.append), *range(50))
    assert f'{server.url}/v1 stays away' in message
    assert 'Connection refused' in message
    assert len(told) == 1  # Not one for every row and try.
    assert 'Connection refused' in told[0]


def test_an_unknown_host_is_named(server):
    rewriter = rewrite_openai.OpenAIRewriter(
        'http://nowhere.invalid', 'tiny', retries=0, notify=lambda line: None
    )
    assert 'http://nowhere.invalid/v1 stays away' in _refused(rewriter, *range(8))


def test_a_server_that_comes_late_is_waited_for(server):
    server.stop()
    timer = threading.Timer(0.5, server.start)
    timer.start()
    rewriter = _rewriter(server, retries=60)
    assert _texts(rewriter.rewrite(_requests(*range(20)))) == _good(*range(20))
    timer.join()


def test_a_server_killed_and_restarted_loses_and_doubles_nothing(server, tmp_path):
    kills = [20, 45]

    def plan(query, number):
        if kills and server.answered.total() >= kills[0]:
            kills.pop(0)
            threading.Thread(target=restart).start()
        return None if number % 3 else _Answer(_PLAIN, 500)

    def restart() -> None:
        server.stop()
        time.sleep(0.3)
        server.start()

    server.plan = plan
    log = tmp_path / 'log.jsonl'
    rewriter = _rewriter(server, retries=60)
    kept, counts = rewrite_log.rewrite_all(rewriter, _requests(*range(80)), log)
    assert not kills
    assert kept == _good(*range(80))
    assert sorted(_logged(log)) == sorted(kept)
    # What the server answered, the client logged, and asked for no more.
    assert server.answered == dict.fromkeys(map(str, range(80)), 1)
    assert counts.failed == 0


# --- Faults that stay ---------------------------------------------------------


@pytest.mark.parametrize('status', [301, 400, 401, 403, 404, 405, 422])
@pytest.mark.parametrize(
    'body',
    [
        json.dumps({'error': {'message': f'No:\n {_KEY} is bad.', 'code': None}}),
        json.dumps({'error': f'No: {_KEY} is bad.'}),
        json.dumps({'detail': f'No: {_KEY} is bad.'}),
        json.dumps({'message': f'No: {_KEY} is bad.', 'code': 7}),
        f'No: {_KEY} is bad.',
    ],
)
def test_a_refusal_of_the_run_stops_it_at_once(server, status, body):
    server.plan = lambda query, number: _Answer(body, status, Location='/v2')
    message = _refused(_rewriter(server, concurrency=2), *range(50))
    assert f'{server.url}/v1/chat/completions answered HTTP {status}' in message
    assert 'No: [key] is bad.' in message
    assert server.asked.total() <= 2


def test_the_message_says_what_to_do(server):
    for status, part in ((401, _ENV), (403, _ENV), (404, "'tiny'"), (400, "'id-1'")):
        server.plan = lambda query, number, status=status: _Answer(_PLAIN, status)
        assert part in _refused(_rewriter(server), 1)


def test_long_messages_are_cut_and_cannot_leak_half_a_key(server):
    for room in range(280, 310):
        body = json.dumps({'detail': 'x' * room + _KEY + 'y' * 5000})
        server.plan = lambda query, number, body=body: _Answer(body, 400)
        message = _refused(_rewriter(server), 1)
        assert len(message) < 600
        assert _KEY[:6] not in message


def test_replies_before_a_stop_are_kept(server, tmp_path):
    server.plan = lambda query, number: _Answer(_PLAIN, 401) if query == '9' else None
    log = tmp_path / 'log.jsonl'
    rewriter = _rewriter(server, concurrency=1)
    with pytest.raises(errors.InputError, match='HTTP 401'):
        rewrite_log.rewrite_all(rewriter, _requests(1, 2, 9, 4), log)
    assert _logged(log) == ['id-1', 'id-2']
    server.plan = lambda query, number: None
    kept, _ = rewrite_log.rewrite_all(rewriter, _requests(1, 2, 9, 4), log)
    assert kept == _good(1, 2, 9, 4)
    assert server.asked == {'1': 1, '2': 1, '9': 2, '4': 1}


@pytest.mark.parametrize(
    ('status', 'error'),
    [
        (400, {'message': 'Too many.', 'code': 'context_length_exceeded'}),
        (400, {'message': "This model's maximum context length is 64 tokens."}),
        (
            400,
            {'message': 'Too big.', 'type': 'exceed_context_size_error', 'code': 400},
        ),
        (400, {'message': 'Filtered.', 'code': 'content_filter'}),
        (413, {'message': 'Too large.'}),
    ],
)
def test_a_row_that_the_server_never_takes_fails_alone(server, status, error):
    server.plan = lambda query, number: (
        _Answer(json.dumps({'error': error}), status) if query != '8' else None
    )
    replies = _texts(_rewriter(server, concurrency=1).rewrite(_requests(*range(9))))
    assert replies.pop('id-8') == 'Arr, 8'
    assert set(replies.values()) == {f'failed: HTTP {status}: {error["message"]}'}
    assert set(server.asked.values()) == {1}


def test_the_newer_name_of_the_limit_is_taken_up(server):
    def plan(query, number):
        if 'max_tokens' not in server.bodies[-1]:
            return None
        said = "'max_tokens' is not supported; use 'max_completion_tokens' instead."
        return _Answer(json.dumps({'error': {'message': said}}), 400)

    server.plan = plan
    rewriter = _rewriter(server, max_tokens=33, concurrency=1)
    assert _texts(rewriter.rewrite(_requests(1, 2))) == _good(1, 2)
    assert server.asked == {'1': 2, '2': 1}
    assert server.bodies[-1]['max_completion_tokens'] == 33


# --- The key ------------------------------------------------------------------


def test_the_key_is_nowhere_but_in_the_header(server, tmp_path, capfd, caplog):
    caplog.set_level(0)
    told: list[str] = []
    said = json.dumps({'error': {'message': f'Slow down, {_KEY}!'}})
    server.plan = lambda query, number: _Answer(said, 429) if number == 1 else None
    rewriter = _rewriter(server, notify=told.append)
    log = tmp_path / 'log.jsonl'
    rewrite_log.rewrite_all(rewriter, _requests(1, 2), log)
    server.plan = lambda query, number: _Answer(said, 500)
    with pytest.raises(errors.InputError) as caught:
        rewrite_log.rewrite_all(rewriter, _requests(7), tmp_path / 'other.jsonl')
    assert 'Slow down, [key]!' in told[0]
    assert 'Slow down, [key]!' in str(caught.value)
    chain: BaseException | None = caught.value
    held = [rewriter, vars(rewriter), vars(rewriter._client)]
    seen = [*map(repr, held), *told, *capfd.readouterr()]
    while chain is not None:
        seen += [str(chain), repr(chain)]
        chain = chain.__cause__ or chain.__context__
    seen += [path.read_text() for path in tmp_path.rglob('*')]
    seen += [record.getMessage() for record in caplog.records]
    assert caplog.records  # httpx does log.
    assert not [text for text in seen if _KEY in text]
    assert {x['Authorization'] for x in server.headers} == {f'Bearer {_KEY}'}


@pytest.mark.parametrize('key', [f'{_KEY}\nx', f'{_KEY} x', f'{_KEY}é', f'{_KEY}\x01'])
def test_a_key_that_is_none_is_refused_and_not_shown(server, monkeypatch, key):
    monkeypatch.setenv(_ENV, key)
    assert _ENV in _refused(_rewriter(server), 1)
    assert not server.asked


def test_space_around_a_key_is_no_part_of_it(server, monkeypatch):
    monkeypatch.setenv(_ENV, f' {_KEY}\r\n')
    list(_rewriter(server).rewrite(_requests(1)))
    assert server.headers[0]['Authorization'] == f'Bearer {_KEY}'


# --- Settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('url', 'part'),
    [
        ('', 'http://host:port/v1'),
        ('localhost:8000', 'http://host:port/v1'),
        ('127.0.0.1:8000/v1', ''),
        ('ftp://host/v1', 'http://host:port/v1'),
        ('http://', 'http://host:port/v1'),
        ('http://host:port/v1', 'URL'),
        (f'http://me:{_KEY}@host/v1', 'password'),
        (f'http://host/v1?key={_KEY}', 'query'),
    ],
)
def test_addresses_that_are_none(url, part):
    with pytest.raises(errors.InputError, match='server address') as caught:
        rewrite_openai.OpenAIRewriter(url, 'tiny')
    assert part in str(caught.value)
    assert _KEY not in str(caught.value)


@pytest.mark.parametrize(
    ('settings', 'part'),
    [
        ({'model': ' '}, 'model'),
        ({'concurrency': 0}, 'concurrency must be at least 1, got 0'),
        ({'max_tokens': 0}, 'max_tokens must be at least 1, got 0'),
        ({'retries': -1}, 'retries must be at least 0, got -1'),
        ({'timeout': 0.0}, 'timeout must be above 0, got 0.0'),
        ({'timeout': float('nan')}, 'timeout must be above 0, got nan'),
    ],
)
def test_settings_out_of_range(settings, part):
    with pytest.raises(errors.InputError, match=part):
        rewrite_openai.OpenAIRewriter('http://host', **({'model': 'tiny'} | settings))


def test_identity_is_the_model_and_its_settings_wherever_it_runs():
    def identity(url: str, model: str, **settings: Any) -> str:
        return rewrite_openai.OpenAIRewriter(url, model, **settings).identity

    # What was cut off is asked again with more tokens.
    assert identity('http://a', 'x', max_tokens=9) != identity('http://a', 'x')
    assert identity('http://a', 'x', temperature=0.1) != identity('http://a', 'x')

    assert identity('http://a:1', 'tiny') == identity('http://b:2/v1', 'tiny')
    assert identity('http://a:1', 'tiny') != identity('http://a:1', 'large')


# --- A client that is killed --------------------------------------------------

_CLIENT = """
import sys
from ppjax.synthesis import rewrite_log, rewrite_openai, rewriting

url, log, count = sys.argv[1:]
requests = [
    rewriting.Request(f'id-{x}', str(x), ({'role': 'user', 'content': str(x)},))
    for x in range(int(count))
]
rewriter = rewrite_openai.OpenAIRewriter(url, 'tiny', api_key_env='PPJAX_TEST_KEY')
try:
    kept, counts = rewrite_log.rewrite_all(rewriter, requests, log)
except KeyboardInterrupt:
    sys.exit(130)
print(counts.summary())
"""


def _client(server: _Server, log: pathlib.Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-c', _CLIENT, server.url, str(log), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_kill_9_loses_no_logged_row_and_asks_none_twice(server, tmp_path):
    log = tmp_path / 'log.jsonl'
    for rows in (15, 35):
        # However slow the killer is, the client cannot be done before.
        server.plan = lambda query, number, rows=rows: (
            _HANG if server.answered.total() > rows + 8 else None
        )
        client = _client(server, log, 60)
        _until(lambda rows=rows: len(_logged(log)) >= rows)
        os.kill(client.pid, signal.SIGKILL)
        assert client.wait() == -signal.SIGKILL
        client.communicate()
    logged = _logged(log)
    assert 35 <= len(logged) < 60
    # As if the last write had been cut short.
    with log.open('ab') as file:
        file.write(b'{"query_id": "id-59", "rewr')
    server.plan = lambda query, number: None
    time.sleep(0.1)  # What was on its way is no longer asked.
    before = server.asked.copy()
    client = _client(server, log, 60)
    out, err = client.communicate(timeout=200)
    assert client.returncode == 0, err
    assert f'60 of 60 rewrites kept; {len(logged)} read from the log' in out
    after = server.asked - before
    assert set(after) == {str(x) for x in range(60) if f'id-{x}' not in logged}
    assert set(after.values()) == {1}
    assert sorted(_logged(log)) == sorted(f'id-{x}' for x in range(60))
    assert _KEY not in out + err + log.read_text()


def test_an_interrupt_ends_it_promptly_and_quietly(server, tmp_path):
    server.plan = lambda query, number: _HANG if int(query) >= 5 else None
    log = tmp_path / 'log.jsonl'
    client = _client(server, log, 60)
    _until(lambda: len(_logged(log)) == 5 and server.asked.total() == 13)
    start = time.monotonic()
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=30)
    assert time.monotonic() - start < 15
    assert client.returncode == 130
    assert (out, err) == ('', '')
    assert sorted(_logged(log)) == [f'id-{x}' for x in range(5)]
