"""Who asks what, and when: a function of the seed alone."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from ppjax.base import errors, settings
from ppjax.benchmarking import config


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request to come.

    Attributes:
        at: seconds after the beginning; 0 where it waits for an answer to another.
        persona: number of the one that is asked.
        prompt: number of the text.
    """

    at: float
    persona: int
    prompt: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """One load.

    Attributes:
        personas: how many are asked.
        rate: requests a second, which come whether others are answered or not; None
            where `concurrency` are under way all the time.
        concurrency: see there.
    """

    personas: int
    rate: float | None
    concurrency: int | None


def cells(cfg: config.BenchConfig, personas: int) -> list[Cell]:
    """The loads that the flags name, each number of personas with each rate.

    Args:
        cfg: the flags.
        personas: how many there are.

    Raises:
        InputError: if the flags name none, or more personas than there are.
    """
    if (cfg.rates is None) == (cfg.concurrency is None):
        raise errors.InputError(
            'Say how requests come: --rates=1,4 a second, or --concurrency=8 at a time.'
        )
    counts = settings.numbers(cfg, 'casts', least=1) if cfg.casts else [personas]
    if max(counts) > personas:
        raise errors.InputError(
            f'--casts={cfg.casts}, and there are {personas} personas to ask.'
        )
    if cfg.rates is None:
        return [Cell(count, None, cfg.concurrency) for count in counts]
    return [Cell(count, rate, None) for count in counts for rate in _rates(cfg.rates)]


def _rates(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(',')]
    except ValueError:
        found = []
    if not found or not all(0 < rate < math.inf for rate in found):
        raise errors.InputError(
            f'--rates must be requests a second, as in 0.5,2, got {text!r}.'
        )
    return found


def popularity(personas: int, exponent: float) -> np.ndarray:
    """Shares of the requests [P], by Zipf's law: that of the i-th is as i ** -exponent."""
    weights = np.arange(1, personas + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def draw(
    cell: Cell, *, requests: int, prompts: int, exponent: float, seed: Sequence[int]
) -> list[Asked]:
    """The requests of a load, in the order in which they come.

    Args:
        cell: of which personas, and how often.
        requests: how many.
        prompts: how many texts there are.
        exponent: of `popularity`.
        seed: fixes all.

    Returns:
        By arrivals of a Poisson process, where the cell has a rate. Another number of
        personas changes who is asked, and neither texts nor times.
    """
    rng = np.random.default_rng(list(seed))
    texts = rng.integers(prompts, size=requests)
    gaps = rng.exponential(1.0, requests)
    chosen = rng.choice(cell.personas, requests, p=popularity(cell.personas, exponent))
    times = np.cumsum(gaps) / cell.rate if cell.rate else np.zeros(requests)
    return [
        Asked(float(at), int(persona), int(prompt))
        for at, persona, prompt in zip(times, chosen, texts, strict=True)
    ]
