"""A server of chat completions that answers as planned, well or badly."""

import collections
from collections.abc import Callable, Iterator
import http.server
import json
import pathlib
import socket
import threading
import time
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.synthesis import rewrite_openai, rewriting

KEY = 'sk-odd-4711-SeCrEt'


ENV = 'PPJAX_TEST_KEY'


PLAIN = '{"detail": "said so"}'


def completion(text: Any, finish: str | None = 'stop', **message: Any) -> str:
    content = {'role': 'assistant', 'content': text, **message}
    return json.dumps(
        {
            'object': 'chat.completion',
            'choices': [{'index': 0, 'message': content, 'finish_reason': finish}],
        }
    )


class Answer:
    """What the server does with one request."""

    def __init__(
        self, body: str = '', status: int = 200, delay: float = 0.0, **headers: str
    ):
        self.body, self.status, self.delay, self.headers = body, status, delay, headers


HANG, DROP, TRICKLE = Answer(), Answer(), Answer()


# (query, number of the try, from 1) -> what to do; None is a good reply.
Plan = Callable[[str, int], Answer | None]


class Server:
    """A chat server on loopback that follows a plan and keeps count."""

    def __init__(self, plan: Plan = lambda query, number: None):
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
            answer = answer or Answer(completion(f'Arr, {query}'))
            if answer.delay:
                dead.wait(answer.delay)
            if answer is HANG:
                dead.wait(60)
            if answer is TRICKLE:
                handler.send_response(200)
                handler.send_header('content-length', '1000')
                handler.end_headers()
                for _ in range(100):
                    handler.wfile.write(b' ')
                    if dead.wait(0.05):
                        break
            if answer in (HANG, DROP, TRICKLE) or dead.is_set():
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
                self.busy = max(0, self.busy - (answer in (HANG, DROP, TRICKLE)))


def rewriter(server: Server, **settings: Any) -> rewrite_openai.OpenAIRewriter:
    quick = {
        'api_key_env': ENV,
        'backoff': 0.01,
        'longest_wait': 0.05,
        'timeout': 10.0,
        'retries': 4,
        'notify': lambda line: None,
    }
    return rewrite_openai.OpenAIRewriter(server.url, 'tiny', **(quick | settings))


def requests(*queries: str | int) -> list[rewriting.Request]:
    return [
        rewriting.Request(f'id-{x}', str(x), ({'role': 'user', 'content': str(x)},))
        for x in queries
    ]


def texts(replies: Iterator[rewriting.Reply]) -> dict[str, str]:
    found: dict[str, str] = {}
    for reply in replies:
        assert reply.query_id not in found
        found[reply.query_id] = (
            f'failed: {reply.failure}' if reply.failure else reply.text
        )
    return found


def good(*queries: str | int) -> dict[str, str]:
    return {f'id-{x}': f'Arr, {x}' for x in queries}


def refused(rewriter: rewrite_openai.OpenAIRewriter, *queries: str | int) -> str:
    with pytest.raises(errors.InputError) as caught:
        list(rewriter.rewrite(requests(*queries)))
    message = str(caught.value)
    assert '\n' not in message
    assert KEY not in message
    return message


def logged(path: pathlib.Path) -> list[str]:
    if not path.exists():
        return []
    return [
        json.loads(line)['query_id']
        for line in path.read_bytes().split(b'\n')[:-1]
        if line.endswith(b'}')
    ]
