"""Loads `python -m ppjax.serve` for hours with clients of every manner.

    python launch/serving_soak.py --base_model=smollm2-135m --personas=masks \\
        --minutes=120 --output_dir=runs/soak --server_flags='--slots=4'

The server is started here, on a copy of the folder of masks, which come and go as it
runs, a damaged one among them. Clients ask, leave in the middle of an answer, send what
is no request, too much of it or far too slowly. Every whole greedy answer must be the
text that the same question had before the load, with nobody else there; no status may
be 500 or above; memory must stay where it was after the warm-up; once all clients are
gone nothing may be under way; and at SIGTERM running answers are finished, and the exit
code is 0. `soak.json` in --output_dir has what was done and what was wrong. Exit code 0
if nothing was.
"""

import asyncio
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import pathlib
import random
import shlex
import sys
import time
from typing import Any

from soaking import clients as clients_lib
from soaking import folder as folder_lib
from soaking import process, record

from ppjax import demo
from ppjax.base import atomic, errors, flags, ranges, settings, versions
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import serve_client

_SERVE = (sys.executable, '-m', 'ppjax.serve')
_IDLE_SECONDS = 20.0
_AGAIN = 24


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, how many, and what is allowed."""

    base_model: str = flags.setting(
        'smollm2-135m', 'Base model of the masks.', path=True
    )
    personas: str = flags.setting(
        None, 'Folder of .pmask files, two at least; it is left as it is.', path=True
    )
    output_dir: str = flags.setting(
        None,
        'A new folder for what the server reads and says, and soak.json.',
        path=True,
    )
    server_flags: str = flags.setting(
        '', 'More flags of ppjax.serve, as in a shell.', may_be_empty=True
    )
    minutes: float = flags.setting(
        10.0, 'How long the load lasts.', within='(0, 100000]'
    )
    clients: int = flags.setting(12, 'Clients at a time.', least=1)
    prompts: int = flags.setting(
        4,
        'Different questions to each persona; all are asked before the load.',
        least=1,
    )
    answer_length: int = flags.setting(24, 'Tokens of an answer, at most.', least=2)
    change_seconds: float = flags.setting(
        20.0, 'How often the folder changes, on average.', within='(0, 1000000]'
    )
    warm_up: float = flags.setting(
        0.33, 'Share of the time after which memory counts.', within='[0, 1)'
    )
    most_growth: float = flags.setting(
        0.05, 'Share by which memory may grow after it.', within='[0, 10]'
    )
    patience: float = flags.setting(
        300.0,
        'Seconds that the server has to start, to say the next word and to end.',
        within='(0, 100000]',
    )
    seed: int = flags.setting(0, 'Of all that is drawn.')

    def __post_init__(self) -> None:
        settings.require_given(self, 'personas', 'output_dir')
        ranges.check(self)


def main(cfg: Settings) -> int:
    """Soaks, writes and says what was found."""
    command = [*_SERVE, f'--base_model={cfg.base_model}', '--host=127.0.0.1']
    found = soak(cfg, [*command, *shlex.split(cfg.server_flags)])
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 1 if found['faults'] else 0


def soak(cfg: Settings, command: Sequence[str]) -> dict[str, Any]:
    """Starts a server, loads it, ends it.

    Args:
        cfg: the flags.
        command: of the server, to which the folder and the port are added.

    Returns:
        What `soak.json` holds.

    Raises:
        InputError: if there are no masks, the output folder exists, or the server does
            not start.
    """
    files = sorted(pathlib.Path(cfg.personas).glob('*.pmask'))
    if len(files) < 2:
        raise errors.InputError(
            f'--personas={cfg.personas} holds {len(files)} .pmask files; two are needed.'
        )
    output = pathlib.Path(cfg.output_dir)
    if output.exists():
        raise errors.InputError(f'--output_dir={output} exists; name a new folder.')
    folder = folder_lib.Folder(files, output / 'personas')
    seen = record.Record()
    server = process.Server(
        [*command, f'--personas={folder.path}'], output / 'server.log'
    )
    try:
        server.wait_until_ready(cfg.patience)
        progress_lib.say(f'Serving at {server.root}, process {server.process.pid}.')
        memory, gauges = asyncio.run(_load(cfg, server, folder, seen))
        code = server.wait(cfg.patience, seen)
    finally:
        server.close()
    grown = record.growth(memory, cfg.warm_up)
    if grown is not None and grown > cfg.most_growth:
        seen.fault('memory grows', f'by {grown:.1%} after the warm-up')
    found = {
        **seen.as_json(),
        'resident_bytes': {
            'first': memory[0] if memory else None,
            'last': memory[-1] if memory else None,
            'max': max(memory, default=None),
            'growth_after_warm_up': grown,
            'samples': len(memory),
        },
        'idle_by': gauges,
        'exit_code': code,
        'settings': dataclasses.asdict(cfg),
        'versions': versions.versions(),
    }
    atomic.write_json(output / 'soak.json', found)
    for kind in seen.kinds:
        fault = found['faults'][kind]
        progress_lib.say(f'FAULT, {fault["count"]} times: {kind}: {fault["told"][0]}')
    progress_lib.say(f'Written to {output / "soak.json"}.')
    return found


async def _load(
    cfg: Settings,
    server: process.Server,
    folder: folder_lib.Folder,
    seen: record.Record,
) -> tuple[list[int], list[str]]:
    """From the first question to SIGTERM.

    Returns:
        Samples of resident bytes under load, and the figures that idleness was seen by.
    """
    rng = random.Random(cfg.seed)
    memory: list[int] = []
    gauges: list[str] = []
    async with serve_client.open_client(server.url, seconds=cfg.patience) as client:
        clients = clients_lib.Clients(
            client,
            server.root,
            folder,
            seen,
            max_tokens=cfg.answer_length,
            rng=rng,
        )
        queries = [query for _, query, _ in demo.instructions()][: cfg.prompts]
        try:
            models = [row['id'] for row in await serve_client.models(client)]
            await clients.learn(models, queries)
            progress_lib.say(f'{len(models)} models, {len(queries)} questions each.')
            await _soak(cfg, clients, folder, server, seen, memory, rng)
            folder.restore()
            gauges = await clients.check_idle(_IDLE_SECONDS)
            await clients.again(_AGAIN)
        except serve_client.GoneError as gone:
            _note_death(server, seen, str(gone))
            return memory, gauges
        await _end(clients, server, seen)
    return memory, gauges


async def _soak(
    cfg: Settings,
    clients: clients_lib.Clients,
    folder: folder_lib.Folder,
    server: process.Server,
    seen: record.Record,
    memory: list[int],
    rng: random.Random,
) -> None:
    seconds = 60 * cfg.minutes
    began = time.monotonic()
    until = began + seconds
    progress = progress_lib.Progress('Seconds', int(seconds))

    async def watch() -> None:
        while True:
            own = server.resident_bytes()
            if own is not None:
                memory.append(own)
            progress.update(
                min(int(time.monotonic() - began), int(seconds)),
                f'{seen.right} right, faults: {", ".join(seen.kinds) or "none"}',
            )
            await asyncio.sleep(min(1.0, seconds / 60))

    async def change() -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / cfg.change_seconds))
            seen.did('folder', folder.change(rng))

    beside = [asyncio.create_task(watch()), asyncio.create_task(change())]
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(cfg.clients):
                group.create_task(clients.behave(until))
    except ExceptionGroup as failed:
        gone, others = failed.split(serve_client.GoneError)
        if gone is None or others is not None:
            raise
        raise serve_client.GoneError(str(gone.exceptions[0])) from None
    finally:
        for task in beside:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*beside)
        progress.close()


async def _end(
    clients: clients_lib.Clients, server: process.Server, seen: record.Record
) -> None:
    """SIGTERM while answers are under way; another is asked for after it."""
    running = [asyncio.create_task(clients.ask()) for _ in range(2)]
    await asyncio.sleep(0.1)
    server.tell_to_end()
    await asyncio.sleep(0.1)
    seen.did('ask at the end', await clients.try_to_ask())
    for ended in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(ended, serve_client.GoneError):
            seen.fault('cut short', f'at SIGTERM: {ended}')
        elif isinstance(ended, BaseException):
            raise ended


def _note_death(server: process.Server, seen: record.Record, said: str) -> None:
    if server.is_alive:
        seen.fault('refuses connections', said)
        server.tell_to_end()
    else:
        seen.fault('died', f'code {server.process.returncode}: {server.last_line()}')


if __name__ == '__main__':
    flags.run(Settings, main)
