"""A server of the page with an API whose answers the questions decide.

A question of `slow` is answered word by word until the client goes away, `break` breaks
off, `busy`, `down` and `bad` are refused, and `html` is answered with markup; every other
one is answered with the number of the request and what was asked.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
import contextlib
import json
import socket
import threading
from typing import Any

from starlette import applications, requests, responses, routing
import uvicorn

from ppjax.serving.page import files

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
_REFUSED = {
    'busy': (429, 'queue', {'Retry-After': '7'}),
    'down': (503, 'draining', {}),
    'bad': (400, 'temperature must be at most 2.', {}),
}


class FakeApi:
    """What was asked, and what the page is told.

    Attributes:
        asked: bodies of chat requests.
        members: of /cast.
        pictures: id -> PNG.
        key: that is demanded; '' for none.
        gone: how many clients went away before their answer was whole.
        pause: seconds before each word.
        late: seconds that the cast takes.
        url: of the page.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.members: list[dict[str, Any]] = []
        self.pictures: dict[str, bytes] = {}
        self.key = ''
        self.gone = 0
        self.pause = 0.0
        self.late = 0.0
        self.url = ''

    def add(self, name: str, *, title: str = '', **other: Any) -> None:
        member = {
            'id': name,
            'title': title or name,
            'greeting': '',
            'sparsity': 0.25,
            'picture': None,
            'dense': False,
            'system': f'You are {title or name}.',
        }
        self.members.append(member | other)

    def application(self) -> applications.Starlette:
        routes = [routing.Route('/', self._file)]
        routes += [routing.Route(f'/{name}', self._file) for name in files.NAMES]
        routes += [
            routing.Route('/cast', self._cast),
            routing.Route('/cast/{name}/picture', self._picture),
            routing.Route('/v1/chat/completions', self._chat, methods=['POST']),
        ]
        return applications.Starlette(routes=routes)

    def _file(self, request: requests.Request) -> responses.Response:
        kind, content = files.read(request.url.path[1:] or 'index.html')
        return responses.Response(content, headers=files.HEADERS, media_type=kind)

    def _refused(self, request: requests.Request) -> responses.Response | None:
        if self.key and request.headers.get('authorization') != f'Bearer {self.key}':
            return _error(401, 'Wrong key.')
        return None

    async def _cast(self, request: requests.Request) -> responses.Response:
        await asyncio.sleep(self.late)
        cast = {'base': 'base-1b', 'members': self.members}
        return self._refused(request) or responses.JSONResponse(cast)

    def _picture(self, request: requests.Request) -> responses.Response:
        content = self.pictures.get(request.path_params['name'])
        if content is None:
            return responses.Response(status_code=404)
        found = responses.Response(content, media_type='image/png')
        return self._refused(request) or found

    async def _chat(self, request: requests.Request) -> responses.Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.asked.append(body)
        question = body['messages'][-1]['content']
        if question in _REFUSED:
            status, message, headers = _REFUSED[question]
            return _error(status, message, headers)
        return responses.StreamingResponse(
            self._events(question, len(self.asked)), media_type='text/event-stream'
        )

    async def _events(self, question: str, number: int) -> AsyncIterator[bytes]:
        words = f'Answer {number} *nods* to: {question}'.split(' ')
        if question == 'html':
            words = [HOSTILE]
        whole = False
        try:
            yield _event({'choices': [{'delta': {'role': 'assistant', 'content': ''}}]})
            count = 0
            while question == 'slow' or count < len(words):
                await asyncio.sleep(max(self.pause, 0.02 * (question == 'slow')))
                word = words[count % len(words)] + ' '
                yield _event({'choices': [{'delta': {'content': word}}]})
                count += 1
                if question == 'break' and count == 3:
                    yield _event({'error': {'message': 'The engine broke.'}})
                    whole = True
                    return
            done = {'choices': [{'delta': {}, 'finish_reason': 'stop'}]}
            used = {'choices': [], 'usage': {'completion_tokens': count + 1}}
            yield _event(done) + _event(used) + b'data: [DONE]\n\n'
            whole = True
        finally:
            self.gone += not whole


def _error(
    status: int, message: str, headers: dict[str, str] | None = None
) -> responses.Response:
    return responses.JSONResponse({'error': {'message': message}}, status, headers)


def _event(value: Any) -> bytes:
    return b'data: ' + json.dumps(value).encode() + b'\n\n'


@contextlib.contextmanager
def running(api: FakeApi) -> Iterator[FakeApi]:
    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        api.url = f'http://127.0.0.1:{listening.getsockname()[1]}/'
        server = uvicorn.Server(
            uvicorn.Config(
                api.application(), log_level='critical', timeout_graceful_shutdown=1
            )
        )
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield api
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
