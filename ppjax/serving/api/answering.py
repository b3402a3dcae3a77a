"""Answers as responses: whole, or piece by piece as server-sent events.

A client that goes away ends its answers, whichever it asked for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
import contextlib
from typing import Any, Protocol

from starlette import requests, responses, types

from ppjax.serving.api import bodies, choices, problems
from ppjax.serving.api import fields as fields_lib
from ppjax.serving.api import running as running_lib
from ppjax.serving.api import service as service_lib

# Nobody reads it: the client has left.
_GONE = 499


class Form(Protocol):
    """How one endpoint writes answers."""

    def whole(self, running: running_lib.Running) -> dict[str, Any]:
        """All answers, which have ended."""

    def opening(self, running: running_lib.Running) -> Iterable[dict[str, Any]]:
        """What comes before the first piece."""

    def piece(
        self, running: running_lib.Running, update: choices.Update
    ) -> Iterable[dict[str, Any]]:
        """What is new."""

    def closing(self, running: running_lib.Running) -> Iterable[dict[str, Any]]:
        """What comes after all answers."""

    @property
    def says_done(self) -> bool:
        """Whether `[DONE]` ends the pieces."""


async def read(
    request: requests.Request,
    service: service_lib.Service,
    asked: Callable[[fields_lib.Fields, service_lib.Service], running_lib.Asked],
) -> tuple[fields_lib.Fields, running_lib.Asked]:
    """Reads a request, whatever its form.

    Args:
        request: with a body.
        service: what is served.
        asked: makes of the body's fields what is asked for; not in the event loop.

    Raises:
        ApiError: if it is refused, or nothing new is taken.
    """
    fields = await bodies.read(request, service.limits.body)
    service.refuse_if_draining()
    return fields, await service.aside(asked, fields, service)


async def answer(
    request: requests.Request,
    service: service_lib.Service,
    asked: running_lib.Asked,
    form: Form,
) -> responses.Response:
    """Answers a request that was read.

    Raises:
        ApiError: if too many wait, nothing new is taken, or an answer that was not
            streamed broke off.
    """
    service.refuse_if_draining()
    running = running_lib.Running(service, asked)
    if asked.stream:
        return _EventStream(running, form)
    end = 'failed'
    try:
        answers = await _unless_gone(request.receive, running.whole())
        end = 'gone'
        if answers is None:
            return responses.Response(status_code=_GONE)
        return problems.answer(form.whole(running))
    except choices.FailedError as error:
        raise running_lib.failure(error) from None
    finally:
        running.close(end)


async def _unless_gone(
    receive: types.Receive, work: Coroutine[Any, Any, Any]
) -> Any | None:
    """What some work gives, or None as soon as the client has left."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        # Not before both are at their end may what they use be closed.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _leaves(receive: types.Receive) -> None:
    while (await receive())['type'] != 'http.disconnect':
        pass


def _event(value: dict[str, Any]) -> bytes:
    return b'data: ' + problems.dumped(value) + b'\n\n'


class _EventStream(responses.Response):
    """Pieces as they come."""

    media_type = 'text/event-stream'

    def __init__(self, running: running_lib.Running, form: Form):
        super().__init__(
            headers={
                'Cache-Control': 'no-store',
                # Proxies would collect the pieces.
                'X-Accel-Buffering': 'no',
            }
        )
        del self.headers['content-length']
        self._running, self._form = running, form

    async def __call__(
        self, scope: types.Scope, receive: types.Receive, send: types.Send
    ) -> None:
        try:
            await send(
                {
                    'type': 'http.response.start',
                    'status': self.status_code,
                    'headers': self.raw_headers,
                }
            )
            # A client that has left makes sending fail, or does nothing.
            with contextlib.suppress(OSError):
                await _unless_gone(receive, self._send(send))
        finally:
            self._running.close('gone')

    async def _send(self, send: types.Send) -> None:
        async for content in self._contents():
            await send(
                {'type': 'http.response.body', 'body': content, 'more_body': True}
            )
        await send({'type': 'http.response.body', 'body': b'', 'more_body': False})

    async def _contents(self) -> AsyncIterator[bytes]:
        """The events; what fails on the way is the last."""
        running, form = self._running, self._form
        try:
            for value in form.opening(running):
                yield _event(value)
            async for update in running.updates():
                for value in form.piece(running, update):
                    yield _event(value)
            for value in form.closing(running):
                yield _event(value)
        except Exception as error:  # noqa: BLE001  The client is to know of any.
            running.close('failed')
            yield _event(running_lib.failure(error).body())
        if form.says_done:
            yield b'data: [DONE]\n\n'
