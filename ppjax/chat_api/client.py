"""Asks any server that speaks OpenAI's chat completions, many questions at a time.

vLLM, llama.cpp, Ollama, `transformers serve` and the hosted services differ in what
they send when something is wrong, so everything is sorted into four cases: a reply; a
fault that passes (asked again, waiting longer each time); a row that this server will
not take (that row fails, the run goes on); anything else (the run stops).
"""

import asyncio
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
import queue
import random
import sys
import threading
import time
from typing import Any

import httpx

from ppjax.base import errors, processes
from ppjax.chat_api import addresses, replies

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
_LOOPBACK = ('localhost', '127.0.0.1', '::1')
# The longest answers, with the probabilities of every token, are a hundredth of it.
_MOST_BYTES = 64 * 2**20
# Of these a chunk unpacks to some 60 MiB at most.
_ENCODINGS = ('', 'identity', 'gzip', 'deflate')
_LIMIT, _NEWER_LIMIT = 'max_tokens', 'max_completion_tokens'


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question.

    Attributes:
        key: names it in answers and messages.
        body: the JSON of the request without the model's name; the limit of
            tokens is `max_tokens` there, whatever the server calls it.
    """

    key: str
    body: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What became of a question.

    Attributes:
        key: of the call.
        choice: the reply's first choice, for `replies` to read; None if it failed.
        failure: why there is no choice; '' where there is.
    """

    key: str
    choice: dict[str, Any] | None
    failure: str = ''


class Refused(errors.InputError):
    """The server takes no request of this kind.

    Attributes:
        status: of HTTP.
        said: the server's words.
    """

    def __init__(self, message: str, status: int, said: str):
        super().__init__(message)
        self.status = status
        self.said = said


class _Passing(Exception):
    """A fault that may be gone the next time; `wait` is what the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _NoCompletion(_Passing):
    """A reply with status 200 that is none, and no error either."""


class _RowRefused(Exception):
    """The server will never take this row."""


@dataclasses.dataclass
class _Asking:
    """One call of `ask`.

    Attributes:
        pending: the calls that nobody has taken yet.
        done: answers on their way to the caller; None ends them.
        client: with the key in its headers.
        hide: takes the key out of a text.
        limit_name: the name of the limit of tokens in requests.
        failed: rows that failed since the server last dealt with one.
        told: when people were last told of a fault.
        question: one worker at a time asks whether the server is still there.
    """

    pending: Iterator[ChatRequest]
    done: 'queue.SimpleQueue[Completion | None]'
    client: httpx.AsyncClient
    hide: Callable[[str], str]
    limit_name: str = _LIMIT
    failed: int = 0
    told: float = float('-inf')
    question: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)


class ChatClient:
    """Asks `{base_url}/chat/completions`.

    The key is read from the environment when asking begins, sent in the request's
    header, and taken out of every text of the server's that a message quotes.
    """

    # What clients of the protocol's other parts have instead: where they ask, what
    # all requests hold, what a reply is called and how it is read, and what any
    # server can answer.
    _path = 'chat/completions'
    _fixed: Mapping[str, Any] = {'stream': False}
    _reply = 'chat completion'
    _first = staticmethod(replies.first_choice)
    _hello: Mapping[str, Any] = {
        'messages': [{'role': 'user', 'content': 'Hello.'}],
        _LIMIT: 1,
    }

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = 'OPENAI_API_KEY',
        concurrency: int = 8,
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
        self._base = addresses.checked(base_url)
        if not model.strip():
            raise errors.InputError('The name of the model on the server is missing.')
        for name, value, least in (
            ('concurrency', concurrency, 1),
            ('retries', retries, 0),
        ):
            if value < least:
                raise errors.InputError(
                    f'{name} must be at least {least}, got {value}.'
                )
        if not timeout > 0:
            raise errors.InputError(f'timeout must be above 0, got {timeout}.')
        self.url = f'{self._base}/{self._path}'
        self.model = model
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._longest_wait = longest_wait
        self._backoff = backoff
        self._notify = notify
        self._answered = False  # Whether there was such a reply yet.

    def ask(self, calls: Sequence[ChatRequest]) -> Generator[Completion, None, None]:
        """Answers as they come; rows that the server did not answer are failures.

        Closing the generator ends what is on its way. Of several processes the first
        alone asks, and tells the others.

        Raises:
            Refused: if the server refuses the run (key, model, settings).
            InputError: if it stays away, or the key is none.
        """
        with contextlib.closing(self._ask_all(calls)) as answers:
            told = functools.partial(processes.first_decides, lambda: _told(answers))
            while (found := told()) is not None:
                if 'refused' in found:
                    raise Refused(**found['refused'])
                yield Completion(**found)

    def _ask_all(
        self, calls: Sequence[ChatRequest]
    ) -> Generator[Completion, None, None]:
        """See `ask`, of one process.

        The event loop has a thread of its own: requests go on while the caller is
        busy, an interrupt reaches the caller at once, and a notebook's own event
        loop is not in the way.
        """
        done: queue.SimpleQueue[Completion | None] = queue.SimpleQueue()
        key = self._key()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._run(calls, key, done))
        task.add_done_callback(lambda _: done.put(None))

        def work() -> None:
            with contextlib.closing(loop):
                loop.run_until_complete(asyncio.wait([task]))
                loop.run_until_complete(loop.shutdown_asyncgens())

        # A daemon: whatever happens, it does not keep the process.
        thread = threading.Thread(target=work, name='chat_api', daemon=True)
        thread.start()
        try:
            while (answer := done.get()) is not None:
                yield answer
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
        calls: Sequence[ChatRequest],
        key: str,
        done: 'queue.SimpleQueue[Completion | None]',
    ) -> None:
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        headers['Accept-Encoding'] = 'gzip, deflate'
        workers = min(self._concurrency, len(calls))
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
            run = _Asking(
                iter(calls),
                done,
                client,
                lambda text: text.replace(key, '[key]') if key else text,
            )
            for _ in range(workers):
                group.create_task(self._work(run))

    async def _work(self, run: _Asking) -> None:
        """One worker: takes calls until none is left."""
        for call in run.pending:
            try:
                choice = await self._ask_again(run, call)
            except _RowRefused as error:
                run.failed = 0
                run.done.put(Completion(call.key, None, str(error)))
            except _Passing as error:
                run.done.put(Completion(call.key, None, str(error)))
                run.failed += 1
                await self._still_there(run, call)
            else:
                run.failed = 0
                run.done.put(Completion(call.key, choice))

    async def _still_there(self, run: _Asking, call: ChatRequest) -> None:
        """Stops the run if not just some rows, but the server fails.

        A row may crash a server, and only such rows may be left: so after some
        failures, and before giving up, a plain question is asked, with the settings
        of the call that failed last.
        """
        async with run.question:
            if run.failed < _PATIENCE:
                return
            try:
                with contextlib.suppress(_RowRefused):
                    await self._ask(run, ChatRequest('', {**call.body, **self._hello}))
            except _Passing as error:
                raise errors.InputError(
                    f'{self._base} stays away: {run.failed} rows in a row failed after '
                    f'{self._retries} retries each, the last time with: {error}. What '
                    'was answered is kept; the same command goes on from there.'
                ) from None
            run.failed = 0

    async def _ask_again(self, run: _Asking, call: ChatRequest) -> dict[str, Any]:
        """Asks until there is a choice or the retries are spent."""
        tries = 0
        while True:
            tries += 1
            try:
                return await self._ask(run, call)
            except _Passing as error:
                # A gateway may hiccup once; what never answers is something else.
                never = isinstance(error, _NoCompletion) and not self._answered
                if never and tries > min(1, self._retries):
                    raise Refused(
                        f'{self.url} sent {error}. Is this the address of a server of '
                        "OpenAI's protocol?",
                        200,
                        str(error),
                    ) from None
                if tries > self._retries:
                    raise
                if time.monotonic() - run.told > _NOTIFY_SECONDS:
                    run.told = time.monotonic()
                    self._notify(
                        f'{self._base}: {error}; trying again, up to {self._retries} '
                        'times a row.'
                    )
                asked = error.wait
            # Of more doublings a float could overflow.
            grown = self._backoff * 2.0 ** min(tries - 1, 64)
            # Without jitter all workers would be back at the same moment.
            wait = max(grown, asked) + random.uniform(0, self._backoff)
            await asyncio.sleep(min(wait, self._longest_wait))

    async def _ask(self, run: _Asking, call: ChatRequest) -> dict[str, Any]:
        """One try.

        Returns:
            The first choice of a reply with status 200.

        Raises:
            _Passing: if another try may do better.
            _RowRefused: if the server takes this row never, but perhaps others.
            Refused: if it takes none.
        """
        limit_name = run.limit_name
        body = {'model': self.model, **call.body, **self._fixed}
        if _LIMIT in body:
            body[limit_name] = body.pop(_LIMIT)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._post(run.client, body)
        except TimeoutError:
            raise _Passing(f'no answer within {self._timeout:g} s') from None
        except httpx.ConnectTimeout:
            reason = f'no connection within {_CONNECT_SECONDS:g} s'
            raise _Passing(reason) from None
        except httpx.ConnectError as error:
            raise _Passing(f'cannot connect ({_root(error)})') from None
        except httpx.HTTPError as error:
            reason = replies.short(run.hide(str(error) or type(error).__name__))
            raise _Passing(f'connection broken ({reason})') from None
        status = replies.status_of(response)
        if status == 200:
            if choice := self._first(response):
                self._answered = True
                return choice
            said = replies.short(run.hide(replies.error_of(response)[1])) or 'nothing'
            # Gateways send errors with status 200.
            kind = _Passing if replies.holds_error(response) else _NoCompletion
            raise kind(f'a reply that is no {self._reply}: {said}')
        refusal = self._error(call, response, status, run)
        if (
            isinstance(refusal, Refused)
            and status == 400
            and limit_name == _LIMIT
            and _NEWER_LIMIT in refusal.said
        ):
            run.limit_name = _NEWER_LIMIT
            return await self._ask(run, call)
        raise refusal

    async def _post(
        self, client: httpx.AsyncClient, body: dict[str, Any]
    ) -> httpx.Response:
        """The whole answer.

        Raises:
            _Passing: if it is larger than any chat completion.
        """
        async with client.stream('POST', self.url, json=body) as response:
            encoding = response.headers.get('content-encoding', '').strip().lower()
            if encoding not in _ENCODINGS:
                raise _NoCompletion(f'an answer packed as {replies.short(encoding)!r}')
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise _NoCompletion(f'an answer of over {_MOST_BYTES >> 20} MiB')
            headers = [
                (name, value)
                for name, value in response.headers.items()
                if name not in ('content-encoding', 'content-length')
            ]
            return httpx.Response(
                response.status_code, headers=headers, content=bytes(content)
            )

    def _error(
        self, call: ChatRequest, response: httpx.Response, status: int, run: _Asking
    ) -> Exception:
        """What a status other than 200 means."""
        codes, said = replies.error_of(response)
        said = replies.short(run.hide(said)) or response.reason_phrase
        reason = f'HTTP {status}: {said}'
        if status in _PASSING or status >= 500:
            return _Passing(reason, replies.retry_after(response) or 0.0)
        if status == 413 or (
            status in (400, 422)
            and (codes & _ROW_CODES or any(word in said.lower() for word in _ROW_WORDS))
        ):
            return _RowRefused(reason)
        hint = {
            401: f'put the right key into the environment variable {self._api_key_env}',
            403: f'the key in {self._api_key_env} may not use this model',
            404: f'is the address right, and does the server have {self.model!r}?',
        }.get(status, f'asked for row {call.key!r}')
        return Refused(f'{self.url} answered {reason} ({hint}).', status, said)


def _told(answers: Iterator[Completion]) -> dict[str, Any] | None:
    """The next answer, or what the server refused, as JSON; None after the last."""
    try:
        answer = next(answers, None)
    except Refused as error:
        own = {'message': str(error), 'status': error.status, 'said': error.said}
        return {'refused': own}
    return None if answer is None else dataclasses.asdict(answer)


def _root(error: BaseException) -> str:
    """What the system said; the layers between say only that attempts failed."""
    while isinstance(cause := error.__cause__ or error.__context__, Exception):
        if isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        error = cause
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
