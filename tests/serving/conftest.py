"""Mask files of a tiny base model, and cards that carry them."""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ppjax.masking import pmask
from ppjax.models import base_model as base_lib
from ppjax.personas import card_output


@pytest.fixture(scope='session')
def tiny_base(tiny_models: Callable[[str], Any]) -> base_lib.BaseModel:
    return tiny_models('llama').base


@pytest.fixture
def make_mask(tiny_base: base_lib.BaseModel) -> Callable[..., pmask.PersonaMask]:
    """A mask of a quarter of the channels, other ones for each seed."""

    def make(seed: int = 0, **other: Any) -> pmask.PersonaMask:
        layers, channels = tiny_base.config.num_layers, tiny_base.config.d_ff
        rng = np.random.default_rng(seed)
        kept = np.argsort(rng.random((layers, channels)), axis=1) < channels * 3 // 4
        given = {
            'mask': kept,
            'base_model': tiny_base.name,
            'base_fingerprint': tiny_base.fingerprint(),
            'persona_sha256': '0' * 64,
            'system_prompt': f'You are number {seed}.',
        }
        return pmask.PersonaMask(**(given | other))

    return make


@pytest.fixture
def make_card(
    make_mask: Callable[..., pmask.PersonaMask], tmp_path: pathlib.Path
) -> Callable[..., None]:
    """Writes a card with a mask: of JSON, or of a file that carries one."""

    def make(
        target: pathlib.Path,
        seed: int = 0,
        *,
        source: bytes | None = None,
        **fields: Any,
    ) -> None:
        data = {'name': 'Ida', 'description': 'Ida bakes.', 'first_mes': 'Flour!'}
        card = {'spec': 'chara_card_v2', 'spec_version': '2.0', 'data': data | fields}
        given = tmp_path / f'given{target.suffix}'
        given.write_bytes(source or json.dumps(card).encode())
        card_output.write(given, target, pmask.in_card(make_mask(seed)))
        given.unlink()

    return make
