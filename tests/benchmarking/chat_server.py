"""A server with the API of OpenAI whose every answer, delay and fault is scripted.

As a program it serves the mask files of a folder, which are not opened:
`python chat_server.py --personas=FOLDER --port=PORT [--fault=KIND]`.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import signal
import socket
import threading
import time
from typing import Any

from starlette import applications, requests, responses, routing
import uvicorn

FAULTS = (
    *('text', 'shared', 'cut', 'leak', 'stuck', '500', 'exit', 'die'),
    *('stale', 'damaged', 'careless'),
)
_MOST_BYTES = 2**20
_LONGEST = 4000


def text(model: str, prompt: str, words: int) -> str:
    """What a model answers to a prompt: so many words that follow from both."""
    drawn = hashlib.sha256(f'{model} {prompt}'.encode()).hexdigest()
    return ''.join(f'{drawn[i % 60 : i % 60 + 4]} ' for i in range(words))


class Chat:
    """What the server does, and what it saw.

    Attributes:
        models: ids and parents.
        first, gap: seconds before the first word and between others.
        one_at_a_time: whether requests wait for each other.
        failures: statuses that the next requests get, in order.
        arrived: of `time.perf_counter`, one a request.
        most: requests at a time, at most so far.
        fault: what is wrong with it: any of `FAULTS`, with commas between them.
        leave: ends the server at once; set by `running`.
    """

    def __init__(self, models: Sequence[tuple[str, str | None]] = (), **script: Any):
        self.models = list(models)
        self.first: float = script.pop('first', 0.0)
        self.gap: float = script.pop('gap', 0.0)
        self.one_at_a_time: bool = script.pop('one_at_a_time', False)
        self.failures: list[int] = script.pop('failures', [])
        self.fault: str = script.pop('fault', 'none')
        self.folder: pathlib.Path | None = script.pop('folder', None)
        assert not script
        self.arrived: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.leave: Callable[[], None]
        self.most = self._under_way = 0
        self._turn = asyncio.Semaphore(1)
        self._count = itertools.count(1)
        self._kept: list[bytearray] = []

    def application(self) -> applications.Starlette:
        return applications.Starlette(
            routes=[
                routing.Route('/v1/models', self._list),
                routing.Route('/v1/chat/completions', self._answer, methods=['POST']),
                routing.Route('/metrics', self._metrics),
                routing.Route('/health', lambda _: responses.JSONResponse({})),
            ]
        )

    def _ids(self) -> list[tuple[str, str | None]]:
        if self.folder is None:
            return self.models
        found = sorted(self.folder.glob('*.pmask'))
        if 'damaged' not in self.fault:
            found = [path for path in found if path.stem != 'damaged']
        if 'stale' not in self.fault or not self.models:
            self.models = [('base', None), *((path.stem, 'base') for path in found)]
        return self.models

    async def _list(self, _: requests.Request) -> responses.Response:
        rows = [
            {'id': name, 'object': 'model', 'parent': parent}
            for name, parent in self._ids()
        ]
        return responses.JSONResponse({'object': 'list', 'data': rows})

    async def _metrics(self, _: requests.Request) -> responses.Response:
        return responses.PlainTextResponse(
            '# TYPE process_resident_memory_bytes gauge\n'
            'process_resident_memory_bytes 1.5e+08\n'
            '# TYPE chat_running gauge\n'
            f'chat_running {self._under_way}\n'
        )

    async def _answer(self, request: requests.Request) -> responses.Response:
        self.arrived.append(time.perf_counter())
        self.keys.append(request.headers.get('authorization'))
        if self.failures:
            return _refusal(self.failures.pop(0))
        data = b''
        async for part in request.stream():
            data += part
            if len(data) > _MOST_BYTES:
                return _refusal(413)
        body = _checked(data)
        if body is None and 'careless' in self.fault:
            return responses.JSONResponse({'choices': []})
        if body is None:
            return _refusal(500 if '500' in self.fault else 400)
        if body['model'] not in dict(self._ids()):
            return _refusal(404)
        self.bodies.append(body)
        return responses.StreamingResponse(
            self._stream(body), media_type='text/event-stream'
        )

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        try:
            async with self._turn if self.one_at_a_time else contextlib.nullcontext():
                for event in self._events(body):
                    if event.get('usage') is None:
                        is_first = event['choices'][0]['delta'].get('role') is not None
                        await asyncio.sleep(self.first if is_first else self.gap)
                    yield f'data: {json.dumps(event)}\n\n'
                    if 'cut' in self.fault and len(self.arrived) % 9 == 0:
                        return
                    if 'die' in self.fault and len(self.arrived) > 40:
                        os._exit(3)
                yield 'data: [DONE]\n\n'
        finally:
            if 'stuck' not in self.fault:
                self._under_way -= 1

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        number = next(self._count)
        prompt = body['messages'][-1]['content']
        if 'text' in self.fault and number % 7 == 0:
            prompt += '!'
        if 'shared' in self.fault and self._under_way > 1:
            prompt += ' in company'
        if 'leak' in self.fault:
            self._kept.append(bytearray(b'x' * 1_500_000))
        length = body['max_tokens']
        if not body.get('ignore_eos'):
            length = min(length, 6)
        words = text(body['model'], prompt, length).split()

        def event(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
            return {'choices': [{'delta': delta, 'finish_reason': finish}]}

        yield event({'role': 'assistant', 'content': ''})
        for word in words:
            yield event({'content': f'{word} '})
        yield event({}, 'stop')
        yield {'choices': [], 'usage': {'completion_tokens': len(words)}}


def _checked(data: bytes) -> dict[str, Any] | None:
    """A body; None if it is none."""
    try:
        body = json.loads(data)
        prompt = body['messages'][-1]['content']
        sound = (
            isinstance(prompt, str)
            and len(prompt) < _LONGEST
            and body['messages'][-1]['role'] == 'user'
            and isinstance(body['model'], str)
            and isinstance(body['max_tokens'], int)
            and body['max_tokens'] > 0
            and body['temperature'] >= 0
            and 0 < body.get('top_p', 1) <= 1
            and body.get('n', 1) <= 8
            and isinstance(body.get('stop', []), list)
            and isinstance(body.get('seed', 0), int)
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return body if sound else None


def _refusal(status: int) -> responses.Response:
    return responses.JSONResponse(
        {'error': {'message': 'no', 'type': 'x', 'param': None, 'code': status}}, status
    )


@contextlib.contextmanager
def running(chat: Chat) -> Iterator[str]:
    """Serves in a thread; gives the address, with /v1."""
    listening = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(
        uvicorn.Config(chat.application(), log_level='critical', lifespan='off')
    )

    def leave() -> None:
        server.should_exit = server.force_exit = True
        listening.close()

    chat.leave = leave
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f'http://127.0.0.1:{listening.getsockname()[1]}/v1'
    finally:
        leave()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument('--personas', type=pathlib.Path, required=True)
    parser.add_argument('--port', type=int, required=True)
    parser.add_argument('--fault', default='none', help=' or '.join(FAULTS))
    given, _ = parser.parse_known_args()
    # uvicorn gives the signal that ended it to the process again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    chat = Chat(folder=given.personas, fault=given.fault, gap=0.004)
    uvicorn.run(
        chat.application(), port=given.port, log_level='warning', access_log=False
    )
    return 1 if 'exit' in given.fault else 0


if __name__ == '__main__':
    raise SystemExit(main())
