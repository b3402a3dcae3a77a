"""Mask files of personas, made from what they are to keep."""

from collections.abc import Callable
import hashlib
import pathlib
from typing import Any

import numpy as np
import pytest

from ppjax.analysis import labels, sources
from ppjax.masking import pmask
from ppjax.personas import prompts

Make = Callable[..., pmask.PersonaMask]


def _made(kept: Any, persona: str = 'A cook.', **changes: Any) -> pmask.PersonaMask:
    prompt = prompts.persona_prompt(persona) if persona else ''
    identity = {
        'base_model': 'tiny',
        'base_fingerprint': 'f' * 64,
        'persona_sha256': hashlib.sha256(prompt.encode()).hexdigest() if prompt else '',
        'system_prompt': prompt,
    } | changes
    kept = np.asarray(kept, bool)
    if len(set(kept.sum(axis=1).tolist())) == 1:
        return pmask.PersonaMask(kept, **identity)
    return pmask.PersonaMask.of_widths(kept, **identity)


@pytest.fixture(scope='session')
def make_mask() -> Make:
    """(bool [L, F], persona text or '', **attributes) -> a mask."""
    return _made


@pytest.fixture(scope='session')
def compare() -> Callable[..., list[labels.ComparedMask]]:
    """(persona, repetition, bool [L, F]) of each -> masks in their places."""

    def of(*given: tuple[str, str, Any]) -> list[labels.ComparedMask]:
        found = []
        for persona, repetition, kept in given:
            path = pathlib.Path('/masks', persona, repetition, 'mask.pmask')
            made = _made(kept, f'This is {persona}.')
            own = sources.SourceMask(path, made, None, '0' * 64)
            found.append(labels.ComparedMask(own, persona, repetition))
        return found

    return of


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """(file below a folder, as of `make_mask`) -> its path."""

    def to(name: str, *given: Any, **changes: Any) -> pathlib.Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pmask.save(path, _made(*given, **changes))
        return path

    return to


def _planted(
    personas: int = 3,
    seeds: int = 3,
    layers: int = 6,
    units: int = 400,
    keep: int = 200,
) -> dict[tuple[str, int], np.ndarray]:
    """Each persona's sub-network with a quarter of it exchanged by each seed.

    Personas 0 and 1 share half of theirs, so that similarities between personas have a
    pattern that all seeds show.
    """
    rng = np.random.default_rng(5)
    own = np.stack(
        [
            [rng.permutation(units)[:keep] for _ in range(layers)]
            for _ in range(personas)
        ]
    )
    own[1, :, : keep // 2] = own[0, :, : keep // 2]
    found = {}
    for persona in range(personas):
        for seed in range(seeds):
            kept = np.zeros((layers, units), bool)
            for layer in range(layers):
                chosen = list(dict.fromkeys(own[persona, layer]))
                stays = rng.permutation(chosen)[: 3 * keep // 4]
                others = np.setdiff1d(np.arange(units), stays)
                kept[layer, stays] = True
                kept[layer, rng.permutation(others)[: keep - len(stays)]] = True
            found[f'persona{persona}', seed] = kept
    return found


@pytest.fixture(scope='session')
def planted() -> dict[tuple[str, int], np.ndarray]:
    """(persona, seed) -> bool [L, F]: three personas, three seeds."""
    return _planted()
