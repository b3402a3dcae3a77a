"""Clients of every manner: those who listen, who leave, and who send nonsense."""

import asyncio
from collections.abc import Mapping, Sequence
import contextlib
import random
import re
import time
from typing import Any

import httpx

from ppjax.benchmarking import serve_client
from soaking import bodies
from soaking import folder as folder_lib
from soaking import record as record_lib

# What is done, and how often.
_MANNERS = {
    'ask': 55,
    'ask otherwise': 12,
    'leave': 12,
    'leave at once': 3,
    'bad body': 12,
    'slow body': 2,
    'look': 4,
}
_SLOW_BYTES = 10
_BUSY_SECONDS = 0.2
# Gauges of answers under way or to come: none of idle servers.
_GAUGE = re.compile(r'^# TYPE (\S*(?:running|waiting|queue)\S*) gauge$', re.MULTILINE)

Question = tuple[str, str]


class Clients:
    """Of one server.

    Args:
        client: whose paths are behind /v1.
        root: address without it.
        folder: of the personas.
        record: of what comes of all.
        max_tokens: of every answer.
        rng: draws all.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        root: str,
        folder: folder_lib.Folder,
        record: record_lib.Record,
        *,
        max_tokens: int,
        rng: random.Random,
    ):
        self._client, self._root, self._folder = client, root, folder
        self._record, self._max_tokens, self._rng = record, max_tokens, rng
        self._references: dict[Question, str] = {}
        self._questions: list[Question] = []

    async def learn(self, models: Sequence[str], prompts: Sequence[str]) -> None:
        """Asks all personas all prompts, one at a time: what is right from now on."""
        for prompt in prompts:
            for model in models:
                reply = await serve_client.ask(self._client, self._body(model, prompt))
                if reply.failure:
                    self._record.fault('no reference', f'{model}: {reply.failure}')
                else:
                    self._references[model, prompt] = reply.text
        self._questions = list(self._references)

    async def again(self, most: int) -> None:
        """Asks up to so many of those questions again, one at a time."""
        for question in self._questions[:: max(1, len(self._questions) // most)][:most]:
            await self.ask(question)

    async def behave(self, until: float) -> None:
        """One client's life, up to a time of `time.monotonic`."""
        acts = {
            'ask': self.ask,
            'ask otherwise': self._ask_otherwise,
            'leave': self._leave,
            'leave at once': self._leave_at_once,
            'bad body': self._send_bad_body,
            'slow body': self._send_slow_body,
            'look': self._look,
        }
        while time.monotonic() < until:
            [manner] = self._rng.choices(list(_MANNERS), list(_MANNERS.values()))
            await acts[manner]()

    async def ask(self, question: Question | None = None) -> None:
        """A sound question, whose answer is known."""
        model, prompt = question = question or self._rng.choice(self._questions)
        asked = time.monotonic()
        was_there = self._folder.is_there(model)
        reply = await serve_client.ask(self._client, self._body(model, prompt))
        self._record.did('ask', reply.failure or 'whole')
        if reply.failure:
            await self._judge(reply.failure, model, asked, was_there)
        elif reply.text != self._references[question]:
            self._record.fault(
                'wrong text',
                f'{model}: {prompt!r} -> {reply.text!r}, and alone '
                f'{self._references[question]!r}',
            )
        else:
            self._record.right += 1
            self._note_presence(model, asked, was_there)

    async def try_to_ask(self) -> str:
        """A question to a server that is about to end; what came of it."""
        model, prompt = self._rng.choice(self._questions)
        try:
            reply = await serve_client.ask(self._client, self._body(model, prompt))
        except serve_client.GoneError:
            return 'nobody listens'
        return reply.failure or 'whole'

    def _note_presence(self, model: str, asked: float, was_there: bool) -> None:
        there = was_there or self._folder.is_there(model)
        if not there and self._folder.is_settled(model, asked):
            self._record.fault('removed persona answers', model)

    async def _judge(
        self, status: str, model: str, asked: float, was_there: bool
    ) -> None:
        """What a sound request may come to, other than an answer."""
        if status == '429':
            await asyncio.sleep(_BUSY_SECONDS)
            return
        is_settled = self._folder.is_settled(model, asked)
        if status == '404' and not (was_there and is_settled):
            return
        kind = f'status {status}' if status.isdecimal() else status
        self._record.fault(kind, f'to a sound request of {model}')

    async def _ask_otherwise(self) -> None:
        """A sound request with other settings, not streamed."""
        model, prompt = self._rng.choice(self._questions)
        asked = time.monotonic()
        was_there = self._folder.is_there(model)
        body = self._body(model, prompt) | bodies.draw_sampled(self._rng)
        body |= {'stream': False}
        del body['stream_options']
        try:
            reply = await self._client.post('/chat/completions', json=body)
        except httpx.ConnectError as error:
            raise serve_client.GoneError(serve_client.said(error)) from None
        except httpx.HTTPError as error:
            self._record.did('ask otherwise', type(error).__name__)
            self._record.fault('cut short', f'{model}: {serve_client.said(error)}')
            return
        self._record.did('ask otherwise', str(reply.status_code))
        if reply.status_code != 200:
            await self._judge(str(reply.status_code), model, asked, was_there)

    async def _leave(self) -> None:
        """Goes away in the middle of an answer."""
        model, prompt = self._rng.choice(self._questions)
        asked = time.monotonic()
        was_there = self._folder.is_there(model)
        heard, wanted = 0, self._rng.randrange(6)
        body = self._body(model, prompt)
        try:
            async with self._client.stream(
                'POST', '/chat/completions', json=body
            ) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    status = str(reply.status_code)
                    self._record.did('leave', status)
                    await self._judge(status, model, asked, was_there)
                    return
                async for _ in serve_client.events(reply):
                    heard += 1
                    if heard > wanted:
                        break
        except httpx.ConnectError as error:
            raise serve_client.GoneError(serve_client.said(error)) from None
        except httpx.HTTPError as error:
            self._record.fault('cut short', f'{model}: {serve_client.said(error)}')
        self._record.did('leave', 'left')

    async def _leave_at_once(self) -> None:
        """Sends a sound request, and is gone before any of the answer."""
        model, prompt = self._rng.choice(self._questions)
        data = httpx.Request('POST', self._root, json=self._body(model, prompt)).content
        async with self._connected() as writer:
            writer.write(self._head(len(data)) + data)
            await writer.drain()
        self._record.did('leave at once', 'left')

    async def _send_bad_body(self) -> None:
        model, _ = self._rng.choice(self._questions)
        name, data = bodies.draw(self._rng, model)
        try:
            reply = await self._client.post(
                '/chat/completions',
                content=data,
                headers={'content-type': 'application/json'},
            )
        except httpx.ConnectError as error:
            raise serve_client.GoneError(serve_client.said(error)) from None
        except httpx.HTTPError as error:
            # A server may refuse to hear the end of a body that is far too long.
            if name != 'a huge body':
                self._record.fault('cut short', f'{name}: {serve_client.said(error)}')
            self._record.did('bad body', type(error).__name__)
            return
        status = reply.status_code
        self._record.did('bad body', str(status))
        if status >= 500:
            self._record.fault(f'status {status}', f'to a bad body: {name}')
        elif status < 400:
            self._record.fault('bad body taken', f'{name}: status {status}')

    async def _send_slow_body(self) -> None:
        """Says that much is to come, sends a byte now and then, and goes away."""
        async with self._connected() as writer:
            writer.write(self._head(10_000))
            for _ in range(_SLOW_BYTES):
                writer.write(b'{')
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                await asyncio.sleep(0.1)
        self._record.did('slow body', 'left')

    async def _look(self) -> None:
        """Reads what the server says of itself."""
        for path in ('/v1/models', '/health', '/metrics'):
            try:
                reply = await self._client.get(self._root + path)
            except httpx.ConnectError as error:
                raise serve_client.GoneError(serve_client.said(error)) from None
            except httpx.HTTPError as error:
                self._record.fault('cut short', f'{path}: {serve_client.said(error)}')
                continue
            self._record.did(f'look {path}', str(reply.status_code))
            if reply.status_code != 200:
                self._record.fault(f'status {reply.status_code}', path)
            elif path == '/v1/models' and f'"{folder_lib.DAMAGED}"' in reply.text:
                self._record.fault('damaged file listed', reply.text[:200])

    async def check_idle(self, seconds: float) -> list[str]:
        """Waits until no answer is under way, by the server's own figures.

        Args:
            seconds: that it has; an answer that is still counted then is a fault.

        Returns:
            The names of the figures that were found.
        """
        deadline = time.monotonic() + seconds
        while True:
            text = (await self._client.get(f'{self._root}/metrics')).text
            names = _GAUGE.findall(text)
            busy = _above_zero(text, names)
            if not busy or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        for line in busy:
            self._record.fault('never idle', f'{line}, {seconds:.0f} s after the load')
        return names

    def _body(self, model: str, prompt: str) -> dict[str, Any]:
        messages: list[Mapping[str, str]] = [{'role': 'user', 'content': prompt}]
        return serve_client.body(model, messages, self._max_tokens)

    def _head(self, length: int) -> bytes:
        return (
            'POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\n'
            f'Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n'
        ).encode()

    @contextlib.asynccontextmanager
    async def _connected(self) -> Any:
        url = httpx.URL(self._root)
        try:
            _, writer = await asyncio.open_connection(url.host, url.port)
        except ConnectionError as error:
            raise serve_client.GoneError(str(error)) from None
        try:
            yield writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def _above_zero(metrics: str, names: Sequence[str]) -> list[str]:
    found = []
    for line in metrics.splitlines():
        name = re.split(r'[{\s]', line, maxsplit=1)[0]
        with contextlib.suppress(ValueError):
            if name in names and float(line.rsplit(maxsplit=1)[-1]) > 0:
                found.append(line)
    return found
