"""Many personas asked of a running server, and how it keeps up.

Requests come by a plan whatever the server does (--rates), or so many are under way all
the time (--concurrency). What is answered twice must be answered alike, and some of it
is asked once more at the end, with nobody else there.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
import contextlib
import dataclasses
import pathlib
import re
import time
from typing import Any

import httpx

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import (
    config,
    inputs,
    llama_server,
    serve_client,
    serve_figures,
    serve_plan,
)

_MEMORY_SECONDS = 1.0
_RESIDENT = re.compile(r'^process_resident_memory_bytes\s+(\S+)', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Side:
    """A persona to ask.

    Attributes:
        model: the server's id.
        system: what is sent as the system message; '' for none.
    """

    model: str
    system: str = ''

    def messages(self, prompt: str) -> list[dict[str, str]]:
        system = [{'role': 'system', 'content': self.system}] if self.system else []
        return [*system, {'role': 'user', 'content': prompt}]

    @property
    def key(self) -> str:
        return f'{self.model} {self.system}'.rstrip()


def measure(cfg: config.BenchConfig) -> dict[str, Any]:
    """Loads the server, cell after cell.

    Returns:
        Of every cell its figures (`serve_figures.of`) and resident memory, and of all
        answers whether they were the same each time, and alone.

    Raises:
        InputError: if the flags do not say whom to ask, or the server cannot be
            reached, or is gone.
    """
    if (cfg.url is None) == (cfg.files is None):
        raise errors.InputError(
            'Name a server with --url=http://127.0.0.1:8080/v1, or a GGUF file that '
            'llama.cpp is to serve with --files=FILE.'
        )
    if cfg.url is not None:
        return asyncio.run(_measured(cfg, cfg.url, cfg.pid))
    context = cfg.max_length + cfg.answer_length
    with llama_server.started(
        str(cfg.files), slots=cfg.slots, context=context
    ) as server:
        return asyncio.run(_measured(cfg, server.url, server.pid))


async def _measured(
    cfg: config.BenchConfig, url: str, pid: int | None
) -> dict[str, Any]:
    prompts = [query.query for query in inputs.queries(cfg)]
    async with serve_client.open_client(url) as client:
        sides = await _sides(cfg, client)
        load = _Load(client, sides, prompts, cfg.answer_length, cfg.ignore_eos)
        memory = _Memory(client, pid)
        await memory.now()  # A process that is not there is said before the load.
        found = []
        cells = serve_plan.cells(cfg, len(sides))
        rates = list(dict.fromkeys(cell.rate for cell in cells))
        for cell in cells:
            asked = serve_plan.draw(
                cell,
                requests=cfg.requests,
                prompts=len(prompts),
                exponent=cfg.zipf,
                # The same texts for every number of personas, and others for every
                # rate: a server knows the beginnings of what it has read.
                seed=(cfg.seed, rates.index(cell.rate)),
            )
            async with memory.watched() as resident:
                figures = await load.run(asked, cell)
            found.append(
                dataclasses.asdict(cell) | figures | {'resident_bytes': resident}
            )
            progress_lib.say(serve_figures.table(found[-1:]))
        loaded = load.texts
        alone = await load.again(cfg.alone)
    if len(found) > 1:
        progress_lib.say(f'\n{serve_figures.table(found)}')
    same = {
        'under load': serve_figures.sameness(loaded),
        'alone': serve_figures.sameness(alone),
    }
    for how, own in same.items():
        progress_lib.say(
            f'Asked again {how}: {own["asked_again"]} questions, of which '
            f'{own["differing"]} were answered otherwise.'
        )
    return {
        'url': url,
        'personas': len(sides),
        'cells': found,
        'same_texts_under_load': same['under load'],
        'same_texts_alone': same['alone'],
    }


async def _sides(cfg: config.BenchConfig, client: httpx.AsyncClient) -> list[Side]:
    listed = await serve_client.models(client)
    ids = [row['id'] for row in listed]
    if cfg.personas:
        # A server without masks has personas by their prompts alone.
        model = cfg.given_names[0] if cfg.given_names else ids[0]
        return [Side(model, one.system_prompt) for one in inputs.personas(cfg)]
    if cfg.given_names:
        lacking = [name for name in cfg.given_names if name not in ids]
        if lacking:
            raise errors.InputError(
                f'--names: the server has no {lacking[0]!r}; it has {", ".join(ids)}.'
            )
        return [Side(name) for name in cfg.given_names]
    personas = [row['id'] for row in listed if row.get('parent')]
    return [Side(name) for name in personas or ids]


class _Load:
    """Requests sent, and what all of them were answered with."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        sides: Sequence[Side],
        prompts: Sequence[str],
        max_tokens: int,
        ignore_eos: bool,
    ):
        self._client, self._sides, self._prompts = client, sides, prompts
        self._max_tokens, self._ignore_eos = max_tokens, ignore_eos
        self._known: set[int] = set()
        self._questions: dict[tuple[int, int], list[str]] = {}

    async def run(
        self, asked: Sequence[serve_plan.Asked], cell: serve_plan.Cell
    ) -> dict[str, Any]:
        """One load, to its last answer."""
        answered: list[serve_figures.Answered] = []
        progress = progress_lib.Progress('Requests', len(asked))
        began = time.perf_counter()

        async def ask(one: serve_plan.Asked, due: float) -> None:
            is_first = one.persona not in self._known
            self._known.add(one.persona)
            reply = await self._ask(one.persona, one.prompt)
            answered.append(serve_figures.Answered(one, due, reply, is_first))
            progress.update(len(answered))

        try:
            if cell.concurrency is None:
                await _at_their_times(ask, asked, began)
            else:
                await _so_many_at_a_time(ask, asked, cell.concurrency)
        except ExceptionGroup as group:
            gone, others = group.split(serve_client.GoneError)
            if gone is None or others is not None:
                raise
            raise serve_client.GoneError(
                f'{gone.exceptions[0]} {len(answered)} of {len(asked)} requests of '
                'this load had ended.'
            ) from None
        finally:
            progress.close()
        return serve_figures.of(answered, began)

    async def again(self, most: int) -> dict[tuple[str, str], list[str]]:
        """Questions that were answered, each once more, one at a time.

        Args:
            most: how many of them, evenly spread.

        Returns:
            (model, prompt) -> the first answer under load and that one.
        """
        known = list(self._questions.items())
        chosen = known[:: max(1, len(known) // most)][:most] if most else []
        found = {}
        for (persona, prompt), before in chosen:
            reply = await self._ask(persona, prompt, keep=False)
            if not reply.failure:
                found[self._named(persona, prompt)] = [before[0], reply.text]
        return found

    @property
    def texts(self) -> dict[tuple[str, str], list[str]]:
        """(model, prompt) -> its whole answers so far."""
        return {
            self._named(*question): list(own)
            for question, own in self._questions.items()
        }

    def _named(self, persona: int, prompt: int) -> tuple[str, str]:
        return self._sides[persona].key, self._prompts[prompt]

    async def _ask(
        self, persona: int, prompt: int, *, keep: bool = True
    ) -> serve_client.Reply:
        side = self._sides[persona]
        messages = side.messages(self._prompts[prompt])
        request = serve_client.body(
            side.model, messages, self._max_tokens, ignore_eos=self._ignore_eos
        )
        reply = await serve_client.ask(self._client, request)
        if keep and not reply.failure:
            self._questions.setdefault((persona, prompt), []).append(reply.text)
        return reply


_Ask = Callable[[serve_plan.Asked, float], Coroutine[Any, Any, None]]


async def _at_their_times(
    ask: _Ask, asked: Sequence[serve_plan.Asked], began: float
) -> None:
    async with asyncio.TaskGroup() as group:
        for one in asked:
            due = began + one.at
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(ask(one, due))


async def _so_many_at_a_time(
    ask: _Ask, asked: Sequence[serve_plan.Asked], concurrency: int
) -> None:
    left = iter(asked)

    async def one_after_the_other() -> None:
        for one in left:
            await ask(one, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(one_after_the_other())


class _Memory:
    """Resident memory of the server, from its process or its own metrics."""

    def __init__(self, client: httpx.AsyncClient, pid: int | None):
        self._client, self._pid = client, pid

    async def now(self) -> int | None:
        """Bytes; None where nobody says.

        Raises:
            InputError: if --pid is no process.
        """
        if self._pid is not None:
            return resident_bytes(self._pid)
        root = str(self._client.base_url).partition('/v1')[0]
        try:
            reply = await self._client.get(f'{root}/metrics')
        except httpx.HTTPError:
            return None
        found = _RESIDENT.search(reply.text) if reply.status_code == 200 else None
        return int(float(found.group(1))) if found else None

    @contextlib.asynccontextmanager
    async def watched(self) -> Any:
        """Gives what is filled with the bytes before, at most and after, or stays {}."""
        found: dict[str, int] = {}
        seen: list[int] = []

        async def look() -> None:
            own = await self.now()
            if own is not None:
                seen.append(own)

        async def keep_looking() -> None:
            while True:
                await look()
                await asyncio.sleep(_MEMORY_SECONDS)

        await look()
        looking = asyncio.create_task(keep_looking())
        try:
            yield found
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError, errors.InputError):
                await looking
        await look()
        if seen:
            found |= {'before': seen[0], 'max': max(seen), 'after': seen[-1]}


def resident_bytes(pid: int) -> int:
    """Of a process of this machine.

    Raises:
        InputError: if there is none of that number, or the system does not tell.
    """
    try:
        status = pathlib.Path(f'/proc/{pid}/status').read_text('ascii', 'replace')
    except OSError:
        raise errors.InputError(
            f'--pid={pid}: /proc tells of no such process.'
        ) from None
    found = re.search(r'^VmRSS:\s*(\d+) kB', status, re.MULTILINE)
    if not found:
        raise errors.InputError(f'--pid={pid}: /proc does not tell its memory.')
    return int(found.group(1)) * 1024
