"""Servers that answer, but with something else; addresses that are none."""

import gzip
import http.server
import threading
import time

import pytest

from ppjax.base import errors
from ppjax.chat_api import addresses
from ppjax.chat_api import client as client_lib

_GOOD = {'choices': [{'message': {'content': 'Aye.'}, 'finish_reason': 'stop'}]}


def _ask(url: str, count: int = 3, **settings) -> list[client_lib.Completion]:
    quick = {'backoff': 0.01, 'longest_wait': 0.02, 'notify': lambda line: None}
    chat = client_lib.ChatClient(url, 'tiny', **(quick | settings))
    body = {'messages': [{'role': 'user', 'content': 'Hello.'}], 'max_tokens': 5}
    return list(chat.ask([client_lib.ChatRequest(str(x), body) for x in range(count)]))


def _refused(url: str, **settings) -> str:
    with pytest.raises(client_lib.Refused) as caught:
        _ask(url, **settings)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    'body',
    [
        {'object': 'text_completion', 'choices': [{'text': 'Aye.'}]},
        {'message': {'role': 'assistant', 'content': 'Aye.'}, 'done': True},
        {'detail': 'Welcome.'},
        *([], {}, 'hello'),
    ],
)
def test_what_never_sends_a_chat_completion_is_refused_at_once(serve_json, body):
    asked = []
    url = serve_json(lambda request: asked.append(request) or (200, body))
    message = _refused(url, count=100, concurrency=2, retries=50)
    assert 'no chat completion' in message
    assert "OpenAI's protocol" in message
    assert f'{url}/v1/chat/completions' in message
    assert len(asked) <= 4


def test_a_hiccup_of_a_server_that_did_answer_is_no_refusal(serve_json):
    asked = []

    def answer(request):
        asked.append(request)
        return 200, {} if len(asked) in (2, 3) else _GOOD

    found = _ask(serve_json(answer), concurrency=1)
    assert [x.failure for x in found] == ['', '', '']
    assert len(asked) == 5


@pytest.mark.parametrize('code', [401, '404'])
def test_an_error_of_a_gateway_counts_by_its_own_code(serve_json, code):
    asked = []
    error = {'error': {'message': 'Not you.', 'code': code}}
    url = serve_json(lambda request: asked.append(request) or (200, error))
    assert f'HTTP {code}: Not you.' in _refused(url, concurrency=1)
    assert len(asked) == 1


class _Flood(http.server.BaseHTTPRequestHandler):
    """An answer without an end, or one that unpacks to as much."""

    packed = ''

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.send_response(200)
        if self.packed:
            self.send_header('content-encoding', self.packed)
        self.end_headers()
        try:
            if self.packed:
                self.wfile.write(gzip.compress(bytes(200 * 2**20), 1))
            else:
                for _ in range(10_000):
                    self.wfile.write(b' ' * 2**20)
        except OSError:
            pass  # The client has had enough.


@pytest.mark.parametrize('packed', ['', 'gzip', 'gzip, gzip', 'br'])
def test_an_answer_without_an_end_is_given_up(packed):
    handler = type('Flood', (_Flood,), {'packed': packed})
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        start = time.monotonic()
        message = _refused(
            f'http://127.0.0.1:{server.server_address[1]}', count=1, retries=50
        )
        server.shutdown()
    assert time.monotonic() - start < 30
    assert ('over 64 MiB' if packed in ('', 'gzip') else repr(packed)) in message


@pytest.mark.parametrize(
    ('url', 'part'),
    [
        *((f'http://host:{port}/v1', f'port {port}') for port in (65536, 99999, -1, 0)),
        ('http://host:abc/v1', 'URL'),
        ('http://[::1', 'URL'),
        ('http://xn--/', 'URL'),
        ('http://ho st/v1', 'must look like'),
        ('http://a..b/v1', 'must look like'),
        (f'http://{"a" * 64}.de', 'must look like'),
        (f'ftp://{"a" * 5000}', 'must look like'),
        ('http://\n', 'must look like'),
    ],
)
def test_addresses_that_are_none(url, part):
    with pytest.raises(errors.InputError, match='--judge_url') as caught:
        addresses.checked(url, '--judge_url')
    assert part in str(caught.value)
    assert len(str(caught.value)) < 500
    assert '\n' not in str(caught.value)


def test_addresses_as_people_write_them():
    assert addresses.checked(' http://[::1]:8000/ ') == 'http://[::1]:8000/v1'
    assert addresses.checked('https://a.b.:65535') == 'https://a.b.:65535/v1'
