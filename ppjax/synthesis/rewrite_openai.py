"""Rewrites by any server that speaks OpenAI's chat completions.

vLLM, llama.cpp, Ollama, `transformers serve` and the hosted services differ in what
they send when something is wrong, so everything is sorted into four cases: a reply; a
fault that passes (asked again, waiting longer each time); a row that this server will
not take (that row fails, the run goes on); anything else (the run stops).
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import email.utils
import json
import os
import queue
import random
import re
import sys
import threading
import time
from typing import Any

import httpx
import tenacity

from ppjax import errors
from ppjax.synthesis import rewriting

# Besides all of 500-599: the server is busy, starting, or in between.
_PASSING = frozenset({408, 409, 425, 429})
# About one row, not about the run: too long for the model, or filtered.
_ROW_CODES = frozenset(
    {'context_length_exceeded', 'exceed_context_size_error', 'content_filter'}
)
_ROW_WORDS = ('context length', 'context size', 'context window', 'prompt is too long')
_CONNECT_SECONDS = 10.0
# Failed rows in a row before the server itself is put to the question.
_PATIENCE = 5
_NOTIFY_SECONDS = 60.0
_QUOTED_CHARACTERS = 300
_LOOPBACK = ('localhost', '127.0.0.1', '::1')


class _Passing(Exception):
    """A fault that may be gone the next time; `wait` is what the server asks for."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _RowRefused(Exception):
    """The server will never take this row."""


class _OtherLimitName(Exception):
    """The model wants the limit of tokens under its newer name."""


@dataclasses.dataclass
class _Run:
    """One call of `rewrite`.

    Attributes:
        pending: the requests that nobody has taken yet.
        done: replies on their way to the caller; None ends them.
        client: with the key in its headers.
        hide: takes the key out of a text.
        limit_name: the name of the limit of tokens in requests.
        failed: rows that failed since the server last dealt with one.
        told: when people were last told of a fault.
        question: one worker at a time asks whether the server is still there.
    """

    pending: Iterator[rewriting.Request]
    done: 'queue.SimpleQueue[rewriting.Reply | None]'
    client: httpx.AsyncClient
    hide: Callable[[str], str]
    limit_name: str = 'max_tokens'
    failed: int = 0
    told: float = float('-inf')
    question: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)


class OpenAIRewriter:
    """A backend that asks `{base_url}/chat/completions`.

    The key is read from the environment when rewriting begins, sent in the request's
    header, and taken out of every text of the server's that a message quotes.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = 'OPENAI_API_KEY',
        concurrency: int = 8,
        max_tokens: int = 1024,
        temperature: float | None = 0.7,
        timeout: float = 300.0,
        retries: int = 7,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
        notify: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ):
        """Sends nothing yet.

        Args:
            base_url: the server's address, with or without `/v1`.
            model: its name on the server.
            api_key_env: the environment variable with the key; if it is not set, no
                key is sent, as local servers like it.
            concurrency: how many requests are on their way at once.
            max_tokens: the limit of one reply.
            temperature: None leaves it to the server; some models allow no other.
            timeout: for one whole request, in seconds.
            retries: how often a row is asked again after a fault that may pass. The
                defaults bridge two minutes, which a server needs to load a model.
            backoff: seconds before the first retry; doubled for each further one.
            longest_wait: the most seconds between two tries, whatever the server's
                Retry-After says.
            notify: told one line when a fault begins, and each minute that it lasts.

        Raises:
            InputError: for an address that is none, or a setting out of range.
        """
        self._base = _checked(base_url)
        if not model.strip():
            raise errors.InputError('The name of the model on the server is missing.')
        for name, value, least in (
            ('concurrency', concurrency, 1),
            ('max_tokens', max_tokens, 1),
            ('retries', retries, 0),
        ):
            if value < least:
                raise errors.InputError(
                    f'{name} must be at least {least}, got {value}.'
                )
        if not timeout > 0:
            raise errors.InputError(f'timeout must be above 0, got {timeout}.')
        self._url = f'{self._base}/chat/completions'
        self._model = model
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._timeout = timeout
        self._retries = retries
        self._longest_wait = longest_wait
        self._backoff = backoff
        self._grown = tenacity.wait_exponential(
            multiplier=backoff, max=longest_wait
        ) + tenacity.wait_random(0, backoff)
        self._notify = notify

    @property
    def identity(self) -> str:
        """By the model and its settings: a server may come back elsewhere.

        Rows cut off at the limit of tokens are so asked again with a larger one.
        """
        return (
            f'openai {self._model} temperature {self._temperature} '
            f'tokens {self._max_tokens}'
        )

    def rewrite(
        self, requests: Sequence[rewriting.Request]
    ) -> Iterator[rewriting.Reply]:
        """Replies as they come; rows that the server did not answer are failures.

        The event loop has a thread of its own: requests go on while the caller is
        busy, an interrupt reaches the caller at once, and a notebook's own event
        loop is not in the way.

        Raises:
            InputError: if the server refuses the run (key, model, settings) or stays
                away.
        """
        done: queue.SimpleQueue[rewriting.Reply | None] = queue.SimpleQueue()
        key = self._key()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._run(requests, key, done))
        task.add_done_callback(lambda _: done.put(None))

        def work() -> None:
            with contextlib.closing(loop):
                loop.run_until_complete(asyncio.wait([task]))
                loop.run_until_complete(loop.shutdown_asyncgens())

        # A daemon: whatever happens, it does not keep the process.
        thread = threading.Thread(target=work, name='rewriting', daemon=True)
        thread.start()
        try:
            while (reply := done.get()) is not None:
                yield reply
            if error := task.exception():
                # Several workers may have failed; one line is enough.
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                raise error
        finally:
            # A loop that is closed has nothing left to cancel.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            thread.join(timeout=5)
            if task.done() and not task.cancelled():
                task.exception()  # Or asyncio would report it as forgotten.

    def _key(self) -> str:
        key = os.environ.get(self._api_key_env, '').strip()
        if not key.isascii() or not key.isprintable() or ' ' in key:
            # Not quoted: it may be a key with something beside it.
            raise errors.InputError(
                f'{self._api_key_env} holds characters that no key has; set it anew.'
            )
        return key

    async def _run(
        self,
        requests: Sequence[rewriting.Request],
        key: str,
        done: 'queue.SimpleQueue[rewriting.Reply | None]',
    ) -> None:
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        workers = min(self._concurrency, len(requests))
        async with (
            httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=workers + 1),
                # A proxy of the environment knows no server on this machine.
                trust_env=httpx.URL(self._base).host not in _LOOPBACK,
                # Without TLS there is nothing to verify, and reading the machine's
                # certificates takes half a second.
                verify=self._base.startswith('https:'),
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            run = _Run(
                iter(requests),
                done,
                client,
                lambda text: text.replace(key, '[key]') if key else text,
            )
            for _ in range(workers):
                group.create_task(self._work(run))

    async def _work(self, run: _Run) -> None:
        """One worker: takes requests until none is left."""
        for request in run.pending:
            try:
                reply = await self._ask_again(run, request)
            except _RowRefused as error:
                run.failed = 0
                run.done.put(_failed(request, str(error)))
            except _Passing as error:
                run.done.put(_failed(request, str(error)))
                run.failed += 1
                await self._still_there(run)
            else:
                run.failed = 0
                run.done.put(reply)

    async def _still_there(self, run: _Run) -> None:
        """Stops the run if not just some rows, but the server fails.

        A row may crash a server, and only such rows may be left: so after some
        failures, and before giving up, a plain question is asked.
        """
        async with run.question:
            if run.failed < _PATIENCE:
                return
            hello = rewriting.Request('', '', ({'role': 'user', 'content': 'Hello.'},))
            try:
                with contextlib.suppress(_RowRefused):
                    await self._ask(run, hello, max_tokens=1)
            except _Passing as error:
                raise errors.InputError(
                    f'{self._base} stays away: {run.failed} rows in a row failed after '
                    f'{self._retries} retries each, the last time with: {error}. What '
                    'was answered is kept; the same command goes on from there.'
                ) from None
            run.failed = 0

    async def _ask_again(
        self, run: _Run, request: rewriting.Request
    ) -> rewriting.Reply:
        """Asks until there is a reply or the retries are spent."""

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait if isinstance(error, _Passing) else None
            grown = self._grown(state)
            if asked is not None:
                # Without jitter all workers would be back at the same moment.
                grown = max(grown, asked + random.uniform(0, self._backoff))
            return min(grown, self._longest_wait)

        def tell(state: tenacity.RetryCallState) -> None:
            now = time.monotonic()
            if now - run.told > _NOTIFY_SECONDS and state.outcome is not None:
                run.told = now
                self._notify(
                    f'{self._base}: {state.outcome.exception()}; trying again, up to '
                    f'{self._retries} times a row.'
                )

        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(self._retries + 1),
            wait=wait,
            before_sleep=tell,
            reraise=True,
        ):
            with attempt:
                return await self._ask(run, request, max_tokens=self._max_tokens)
        raise AssertionError('tenacity ends by a return or an exception')

    async def _ask(
        self, run: _Run, request: rewriting.Request, *, max_tokens: int
    ) -> rewriting.Reply:
        """One try.

        Raises:
            _Passing: if another try may do better.
            _RowRefused: if the server takes this row never, but perhaps others.
            InputError: if it takes none.
        """
        limit_name = run.limit_name
        body: dict[str, Any] = {
            'model': self._model,
            'messages': list(request.messages),
            limit_name: max_tokens,
            'stream': False,
        }
        if self._temperature is not None:
            body['temperature'] = self._temperature
        try:
            async with asyncio.timeout(self._timeout):
                response = await run.client.post(self._url, json=body)
        except TimeoutError:
            raise _Passing(f'no answer within {self._timeout:g} s') from None
        except httpx.ConnectTimeout:
            reason = f'no connection within {_CONNECT_SECONDS:g} s'
            raise _Passing(reason) from None
        except httpx.ConnectError as error:
            raise _Passing(f'cannot connect ({_root(error)})') from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _Passing(f'connection broken ({_short(run.hide(reason))})') from None
        if response.status_code == 200:
            return _reply(request, response, run.hide)
        try:
            self._refuse(request, response, run, limit_name)
        except _OtherLimitName:
            run.limit_name = 'max_completion_tokens'
            return await self._ask(run, request, max_tokens=max_tokens)
        raise AssertionError('_refuse always raises')

    def _refuse(
        self,
        request: rewriting.Request,
        response: httpx.Response,
        run: _Run,
        limit_name: str,
    ) -> None:
        """Raises what a status other than 200 means."""
        status = response.status_code
        codes, said = _error_of(response)
        said = _short(run.hide(said)) or response.reason_phrase
        reason = f'HTTP {status}: {said}'
        if status in _PASSING or status >= 500:
            raise _Passing(reason, _retry_after(response))
        if status == 413 or (
            status in (400, 422)
            and (codes & _ROW_CODES or any(word in said.lower() for word in _ROW_WORDS))
        ):
            raise _RowRefused(reason)
        if (
            status == 400
            and limit_name == 'max_tokens'
            and 'max_completion_tokens' in said
        ):
            raise _OtherLimitName
        hint = {
            401: f'put the right key into the environment variable {self._api_key_env}',
            403: f'the key in {self._api_key_env} may not use this model',
            404: f'is the address right, and does the server have {self._model!r}?',
        }.get(status, f'asked for row {request.query_id!r}')
        raise errors.InputError(f'{self._url} answered {reason} ({hint}).')


def _checked(base_url: str) -> str:
    """The address that `/chat/completions` follows."""
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL as error:
        raise errors.InputError(f'The server address is no URL ({error}).') from None
    if url.userinfo or url.query or url.fragment:
        # Not quoted: a password or key may be in it.
        raise errors.InputError(
            'The server address may hold no password, query or fragment; put the key '
            'into the environment.'
        )
    if url.scheme not in ('http', 'https') or not url.host:
        raise errors.InputError(
            f'The server address must look like http://host:port/v1, got {base_url!r}.'
        )
    base = str(url).rstrip('/').removesuffix('/chat/completions')
    # Some services have another version, or a path behind it.
    return base if re.search(r'/v\d\w*(/|$)', base) else f'{base}/v1'


def _failed(request: rewriting.Request, reason: str) -> rewriting.Reply:
    return rewriting.Reply(request.query_id, '', False, failure=reason)


def _reply(
    request: rewriting.Request, response: httpx.Response, hide: Callable[[str], str]
) -> rewriting.Reply:
    """The first choice of a reply with status 200.

    Raises:
        _Passing: if it is no chat completion; gateways send errors with status 200.
    """
    value = _json(response)
    try:
        choice = value['choices'][0]
        message = choice['message']
        content, reason = message.get('content'), choice.get('finish_reason')
        refusal = message.get('refusal')
    except (TypeError, KeyError, IndexError, AttributeError):
        said = _error_of(response)[1] if isinstance(value, dict) else response.text
        said = _short(hide(said)) or 'nothing'
        raise _Passing(f'a reply that is no chat completion: {said}') from None
    if isinstance(content, list):  # Of parts, as newer models send it.
        parts = (part.get('text') for part in content if isinstance(part, dict))
        content = ''.join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        content = ''
    return rewriting.Reply(
        request.query_id,
        content,
        finished=reason != 'length',
        refused=reason == 'content_filter' or bool(refusal),
    )


def _json(response: httpx.Response) -> Any:
    """The body's value; None if it is no JSON."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _error_of(response: httpx.Response) -> tuple[set[str], str]:
    """(codes, message) of the forms in which servers put errors."""
    value = _json(response)
    if isinstance(value, dict):
        error = value.get('error', value)
        if isinstance(error, dict):
            codes = {str(error.get('code')), str(error.get('type'))}
            said = error.get('message') or error.get('detail')
            if said:
                return codes, said if isinstance(said, str) else json.dumps(said)
        elif error:
            return set(), str(error)
    return set(), response.text


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a number or a date; None if there is neither."""
    text = response.headers.get('retry-after', '')
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())


def _short(text: str) -> str:
    """One line, cut where nobody reads on."""
    line = ' '.join(text.split())
    if len(line) <= _QUOTED_CHARACTERS:
        return line
    return line[:_QUOTED_CHARACTERS] + '…'


def _root(error: BaseException) -> str:
    """What the system said; the layers between say only that attempts failed."""
    while isinstance(cause := error.__cause__ or error.__context__, Exception):
        if isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        error = cause
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
