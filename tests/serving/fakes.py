"""An engine that says what it is told to, token by token; a cast; a server of both."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import threading
import time
from typing import Any

import numpy as np
import transformers
import uvicorn

from ppjax.pages import listening
from ppjax.personas import persona as persona_lib
from ppjax.serving import jobs
from ppjax.serving import members as members_lib
from ppjax.serving.api import app, service, texts

# What it says to a job: tokens, and an end; without one it is 'stop' after a stop
# token and 'length' else.
Script = Callable[[jobs.Job], Iterable[jobs.Token | jobs.Ended]]
CONTEXT = 128


class _Ticket:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class Engine:
    """A `jobs.Engine` with a thread for each job.

    Attributes:
        script: what is said.
        delay: seconds before each token.
        asked: all jobs so far.
        ends: of all jobs that ended, their reasons.
    """

    max_context = CONTEXT

    def __init__(self, script: Script, *, slots: int = 4, queue: int = 8):
        self.script, self.delay = script, 0.0
        self.asked: list[jobs.Job] = []
        self.ends: list[str] = []
        self._slots, self._queue = slots, queue
        self._free = threading.Semaphore(slots)
        self._lock = threading.Lock()
        self._running = self._waiting = 0
        self._counts: dict[str, list[int]] = {}

    def widen(self, slots: int) -> None:
        """Makes as many rows, before anything is asked."""
        self._slots, self._free = slots, threading.Semaphore(slots)

    def submit(self, job: jobs.Job, listener: jobs.Listener) -> jobs.Ticket:
        if not job.prompt or len(job.prompt) >= self.max_context:
            raise ValueError('the prompt leaves no room for a token.')
        with self._lock:
            if self._waiting + self._running >= self._slots + self._queue:
                raise jobs.QueueFullError
            self._waiting += 1
            self.asked.append(job)
        ticket = _Ticket()
        args = (job, listener, ticket)
        threading.Thread(target=self._run, args=args, daemon=True).start()
        return ticket

    def _run(self, job: jobs.Job, listener: jobs.Listener, ticket: _Ticket) -> None:
        with self._free:
            with self._lock:
                self._waiting -= 1
                self._running += 1
                counts = self._counts.setdefault(job.member.name, [0, 0, 0, 0])
                counts[0] += 1
                counts[1] += len(job.prompt)
            ended = self._said(job, listener, ticket, counts)
            with self._lock:
                self._running -= 1
                self.ends.append(ended.reason)
        listener(ended)

    def _said(
        self,
        job: jobs.Job,
        listener: jobs.Listener,
        ticket: _Ticket,
        counts: list[int],
    ) -> jobs.Ended:
        cached = len(job.prompt) // 2
        for drawn, event in enumerate(self.script(job), start=1):
            if ticket.cancelled.wait(self.delay):
                return jobs.Ended('cancelled', cached)
            if isinstance(event, jobs.Ended):
                return event
            listener(event)
            counts[3] += 1
            if event.id in job.stop_ids:
                return jobs.Ended('stop', cached)
            if drawn >= job.max_tokens:
                break
        return jobs.Ended('length', cached)

    def figures(self) -> jobs.Figures:
        with self._lock:
            return jobs.Figures(
                slots=self._slots,
                running=self._running,
                waiting=self._waiting,
                cache_bytes=1000,
                cache_limit_bytes=4000,
                cache_hits=3,
                cache_misses=2,
                steps=sum(counts[3] for counts in self._counts.values()),
                by_persona={
                    name: jobs.PersonaFigures(*counts)
                    for name, counts in self._counts.items()
                },
            )

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Until no job runs or waits."""
        end = time.monotonic() + seconds
        while self.figures().running + self.figures().waiting:
            assert time.monotonic() < end, 'the engine is still at work'
            time.sleep(0.005)


def saying(own: texts.Texts, text: str) -> Script:
    """A text, and the first stop token.

    Each token has the logarithm of 1/2, and beside it so many others as are wanted.
    """
    ids = own.tokenizer.encode(text, add_special_tokens=False)

    def said(job: jobs.Job) -> Iterator[jobs.Token]:
        for token in [*ids, min(job.stop_ids)]:
            if job.top_logprobs is None:
                yield jobs.Token(token)
            else:
                top = [
                    (token, -0.5),
                    *((40 + place, -2.0 - place) for place in range(9)),
                ]
                yield jobs.Token(token, -0.5, tuple(top[: job.top_logprobs]))

    return said


def member(name: str, **changes: Any) -> members_lib.Member:
    """A persona that masks a little."""
    settings: dict[str, Any] = {
        'name': name,
        'digest': f'digest of {name}',
        'scale': np.ones((2, 3), bool),
        'sparsity': 0.25,
        'system_prompt': f'You are {name}.',
        'persona': persona_lib.Persona('Text.', name.title(), greeting=f'{name} here.'),
        'picture': members_lib.Picture('image/png', b'a picture'),
        'source': pathlib.Path(f'/masks/{name}.pmask'),
        'created': 1_700_000_000,
    }
    return members_lib.Member(**(settings | changes))


DENSE = members_lib.Member('tiny', '', None, 0.0, '', None, None, None, 1_600_000_000)


@dataclasses.dataclass
class Cast:
    """A `service.Cast` of these members."""

    found: dict[str, members_lib.Member]

    def members(self) -> Mapping[str, members_lib.Member]:
        return dict(self.found)

    def get(self, name: str) -> members_lib.Member | None:
        return self.found.get(name)


def cast(*names: str) -> Cast:
    """The base model, and personas of these names."""
    return Cast({one.name: one for one in (DENSE, *map(member, names))})


def converse(
    who: members_lib.Member, messages: Sequence[service.Message]
) -> list[service.Message]:
    """A persona's own system message, unless the client sends one."""
    own = [{'role': 'system', 'content': who.system_prompt}]
    given = any(message['role'] == 'system' for message in messages)
    return [*messages] if given or not who.system_prompt else [*own, *messages]


def page_file(name: str) -> tuple[str, bytes]:
    return 'text/html', f'<p>{name}</p>'.encode()


def texts_of(tokenizer: transformers.PreTrainedTokenizerBase) -> texts.Texts:
    """SmolLM2's tokenizer, as the API has it."""
    end = tokenizer.convert_tokens_to_ids('<|im_end|>')
    return texts.Texts(
        tokenizer, date='2026-01-01', vocab_size=49152, stop_ids=frozenset({end})
    )


def make_service(
    own: texts.Texts, engine: Engine, *names: str, **more: Any
) -> service.Service:
    """All that the API serves, of fakes."""
    return service.Service(
        base='models/tiny',
        cast=cast(*(names or ('jack', 'ida'))),
        engine=engine,
        texts=own,
        converse=converse,
        page=service.Page(page_file, {'X-Content-Type-Options': 'nosniff'}),
        **more,
    )


@contextlib.contextmanager
def served(made: service.Service, **access: Any) -> Iterator[str]:
    """A service on a port of this machine, in a thread -> its address."""
    port = listening.listen('127.0.0.1', 0)
    server = uvicorn.Server(
        uvicorn.Config(
            app.application(made, **access), log_level='error', lifespan='off'
        )
    )
    thread = threading.Thread(target=server.run, args=([port],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield listening.url('127.0.0.1', port).rstrip('/')
    finally:
        made.end_all()
        server.should_exit = True
        thread.join(10)
        made.close()
