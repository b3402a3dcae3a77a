"""Engines of tiny models, and what they are asked."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import queue
from typing import Any

import numpy as np

from ppjax.models import masks as masks_lib
from ppjax.serving import engine, jobs, members, opening, sampling

NOBODY_STOPS = frozenset[int]()


def member(name: str, scale: np.ndarray | None = None) -> members.Member:
    """A persona of a mask [L, F], or the base model."""
    channels = None if scale is None else np.asarray(scale, np.float32)
    return members.Member(
        name=name,
        digest=masks_lib.Masks(channels).digest(),
        scale=scale,
        sparsity=0.0 if scale is None else 1 - float(np.mean(scale != 0)),
        system_prompt='',
        persona=None,
        picture=None,
        source=None,
        created=0,
    )


def cast(config: Any, count: int, keep: int = 30) -> list[members.Member]:
    """The base model and personas of random masks, the last with gains."""
    found = [member('base')]
    for number in range(count):
        rng = np.random.default_rng(number)
        order = rng.random((config.num_layers, config.d_ff)).argsort(axis=1)
        scale: np.ndarray = order < keep
        if number == count - 1:
            scale = (scale * rng.uniform(0.5, 1.5, scale.shape)).astype(np.float16)
        found.append(member(f'persona-{number}', scale))
    return found


@contextlib.contextmanager
def running(
    decoder: Any,
    *,
    slots: int = 4,
    max_context: int = 160,
    cache_bytes: int = 1 << 22,
    queue_length: int = 100,
    pins: Sequence[members.Member] = (),
    mesh: Any = None,
) -> Iterator[engine.Engine]:
    """An engine of a decoder, until the end of the block."""
    sizes = opening.Sizes(slots, max_context, queue_length, cache_bytes)
    made = opening.open_engine(decoder, sizes, pins=pins, mesh=mesh)
    try:
        yield made
    finally:
        made.stop()


@dataclasses.dataclass
class Asked:
    """A request, and what came of it."""

    ticket: jobs.Ticket
    said: 'queue.Queue[jobs.Token | jobs.Ended]'

    def answer(self) -> tuple[list[jobs.Token], jobs.Ended]:
        """All tokens, and the end; waits for it."""
        tokens = []
        while isinstance(said := self.said.get(timeout=60), jobs.Token):
            tokens.append(said)
        return tokens, said

    def ids(self) -> list[int]:
        """The tokens' ids."""
        return [token.id for token in self.answer()[0]]


def ask(
    made: jobs.Engine,
    who: members.Member,
    prompt: Sequence[int],
    *,
    max_tokens: int = 12,
    stop_ids: frozenset[int] = NOBODY_STOPS,
    drawn: sampling.Sampling = sampling.GREEDY,
    **more: Any,
) -> Asked:
    """Asks, and does not wait."""
    said: queue.Queue[jobs.Token | jobs.Ended] = queue.Queue()
    job = jobs.Job(who, tuple(prompt), max_tokens, stop_ids, drawn, **more)
    return Asked(made.submit(job, said.put), said)
