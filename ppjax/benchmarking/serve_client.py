"""One streamed chat answer, and when its parts came."""

from collections.abc import AsyncIterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import time
from typing import Any

import httpx

from ppjax.base import errors
from ppjax.chat_api import addresses

KEY_VARIABLE = 'PPJAX_API_KEY'
_CONNECT_SECONDS = 30.0
_LOOPBACK = ('localhost', '127.0.0.1', '::1')


class GoneError(errors.InputError):
    """Nobody listens at the address any more."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What became of a request.

    Attributes:
        failure: '' for a whole answer; else the HTTP status, as '429', or in words.
        text: all of it that came.
        finish: why it ended, as the server says; '' if it does not.
        tokens: as the server counts them; parts with text in them where it does not.
        counted: whether the server does.
        sent, first, last, ended: of `time.perf_counter`: when the request went out, the
            first and the last part with text came (None without text), and it was over.
    """

    failure: str
    text: str
    finish: str
    tokens: int
    counted: bool
    sent: float
    first: float | None
    last: float | None
    ended: float


def open_client(url: str, *, seconds: float = 600.0) -> httpx.AsyncClient:
    """A client for as many requests at a time as are made; to be closed.

    Its paths are those behind `/v1`. The key is that of the environment's
    `PPJAX_API_KEY`, if there is one.

    Args:
        url: with or without /v1.
        seconds: that the next part of a reply may take.

    Raises:
        InputError: if the address is none.
    """
    base = addresses.checked(url, '--url')
    key = os.environ.get(KEY_VARIABLE)
    return httpx.AsyncClient(
        base_url=base,
        headers={'authorization': f'Bearer {key}'} if key else {},
        timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS),
        # A connection that was kept may be closed by the server just as it is used.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        # What stands in between would be measured too.
        trust_env=httpx.URL(base).host not in _LOOPBACK,
    )


def body(
    model: str,
    messages: Sequence[Mapping[str, str]],
    max_tokens: int,
    *,
    ignore_eos: bool = False,
) -> dict[str, Any]:
    """A request for the likeliest answer, streamed; of all tokens, if no end counts."""
    more = {'ignore_eos': True} if ignore_eos else {}
    return more | {
        'model': model,
        'messages': list(messages),
        'max_tokens': max_tokens,
        'temperature': 0,
        'stream': True,
        'stream_options': {'include_usage': True},
    }


async def models(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """What the server lists.

    Raises:
        InputError: if it cannot be reached, or lists nothing.
    """
    try:
        reply = await client.get('/models')
    except httpx.HTTPError as error:
        raise GoneError(
            f'No server answers at {client.base_url}: {said(error)}.'
        ) from None
    listed: Any = None
    with contextlib.suppress(ValueError):
        listed = reply.json()
    rows = listed.get('data') if isinstance(listed, dict) else None
    found = [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get('id'), str)
    ]
    if reply.status_code != 200 or not found:
        raise errors.InputError(
            f'{client.base_url}models lists no models (status {reply.status_code}).'
        )
    return found


def said(error: Exception) -> str:
    """What went wrong with a connection, never empty."""
    return str(error) or type(error).__name__


async def ask(client: httpx.AsyncClient, request: Mapping[str, Any]) -> Reply:
    """Asks, and reads the answer to its end.

    Raises:
        GoneError: if nobody listens.
    """
    heard = _Heard()
    try:
        async with client.stream('POST', '/chat/completions', json=request) as reply:
            if reply.status_code != 200:
                await reply.aread()
                heard.failure = str(reply.status_code)
            else:
                async for event in events(reply):
                    heard.take(event)
                if not heard.failure and not heard.is_whole:
                    heard.failure = 'cut short'
    except httpx.ConnectError as error:
        raise GoneError(
            f'Nobody listens at {client.base_url} any more: {said(error)}.'
        ) from None
    except httpx.TimeoutException:
        heard.failure = 'too late'
    except httpx.HTTPError:
        heard.failure = 'cut short'
    return heard.reply()


async def events(reply: httpx.Response) -> AsyncIterator[Any]:
    """The data of server-sent events: JSON, '[DONE]' as it is, None for what is none."""
    async for line in reply.aiter_lines():
        if line.startswith('data:'):
            data = line.removeprefix('data:').strip()
            if data == '[DONE]':
                yield data
            else:
                try:
                    yield json.loads(data)
                except ValueError:
                    yield None


class _Heard:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.failure = ''
        self.is_whole = False
        self._sent = time.perf_counter()
        self._first: float | None = None
        self._last: float | None = None
        self._parts: list[str] = []
        self._finish = ''
        self._tokens: int | None = None

    def take(self, event: Any) -> None:
        """Reads one event."""
        if event == '[DONE]':
            self.is_whole = True
            return
        if not isinstance(event, dict) or 'error' in event:
            self.failure = self.failure or (
                'no JSON' if not isinstance(event, dict) else 'error in the stream'
            )
            return
        usage = event.get('usage')
        if isinstance(usage, dict) and isinstance(usage.get('completion_tokens'), int):
            self._tokens = usage['completion_tokens']
        choices = event.get('choices')
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                self.failure = self.failure or 'no choice'
                continue
            self._finish = str(choice.get('finish_reason') or self._finish)
            delta = choice.get('delta')
            text = delta.get('content') if isinstance(delta, dict) else None
            if text and isinstance(text, str):
                self._last = time.perf_counter()
                self._first = self._first or self._last
                self._parts.append(text)

    def reply(self) -> Reply:
        return Reply(
            failure=self.failure,
            text=''.join(self._parts),
            finish=self._finish,
            tokens=len(self._parts) if self._tokens is None else self._tokens,
            counted=self._tokens is not None,
            sent=self._sent,
            first=self._first,
            last=self._last,
            ended=time.perf_counter(),
        )
