"""Runs of a tiny model that evaluations are made of."""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import math
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import flags
from ppjax.exporting import hf_export
from ppjax.masking import pmask
from ppjax.models import base_model
from ppjax.training import config as train_config

_KEEP = 17


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """What `train`, and `export` if wanted, leave behind.

    Attributes:
        path: the run directory.
        base: the dense model.
        mask: the learned one, bool [L, F].
        heldout: file of the conversations that the run measured on.
    """

    path: pathlib.Path
    base: base_model.BaseModel
    mask: np.ndarray
    heldout: pathlib.Path


def random_mask(base: base_model.BaseModel, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((base.config.num_layers, base.config.d_ff), bool)
    for row in mask:
        row[rng.permutation(len(row))[:_KEEP]] = True
    return mask


@pytest.fixture(scope='session')
def exported_model(
    chatty_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], pathlib.Path]:
    """Exports the tiny model of a mask's seed, once a session."""

    @functools.cache
    def export(seed: int) -> pathlib.Path:
        base = base_model.open_base_model(str(chatty_model))
        path = tmp_path_factory.mktemp('exported') / 'hf'
        hf_export.export_pruned(
            base,
            random_mask(base, seed),
            path,
            dtype='float32',
            tokenizer=base.tokenizer(),
            model_card='A ferryman.\n',
            system_prompt=_system_prompt(),
        )
        return path

    return export


def _system_prompt() -> str:
    return demo.rows('ferryman', 'test')[0].system_prompt


@pytest.fixture
def make_run(
    exported_model: Callable[[int], pathlib.Path],
    chatty_model: pathlib.Path,
    calibration_files: tuple[pathlib.Path, pathlib.Path],
    tmp_path: pathlib.Path,
) -> Callable[..., TinyRun]:
    """Makes a run in `tmp_path`/name; changes are of its settings."""

    def make(
        name: str = 'run', *, exported: bool = True, seed: int = 0, **changes: Any
    ) -> TinyRun:
        path = tmp_path / name
        base = base_model.open_base_model(str(chatty_model))
        heldout = tmp_path / f'{name}-heldout.jsonl'
        shutil.copy(calibration_files[1], heldout)
        settings = train_config.TrainConfig(
            **{
                'base_model': str(chatty_model),
                'calibration': str(calibration_files[0]),
                'heldout': str(heldout),
                'output_dir': str(path),
                'align': 1,
            }
            | changes
        )
        path.mkdir()
        (path / 'config.flags').write_text(flags.to_flagfile(settings), 'utf-8')
        mask = random_mask(base, seed)
        prompt = _system_prompt()
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        pmask.save(
            path / 'mask.pmask',
            pmask.PersonaMask(
                mask, str(chatty_model), base.fingerprint(), digest, prompt
            ),
        )
        if exported:
            shutil.copytree(exported_model(seed), path / 'hf')
        return TinyRun(path, base, mask, heldout)

    return make


def _choice(*positions: list[tuple[str, float]]) -> dict[str, Any]:
    content = []
    for position in positions:
        top = [{'token': x, 'logprob': math.log(p), 'bytes': []} for x, p in position]
        content.append({**top[0], 'top_logprobs': top})
    text = ''.join(position[0][0] for position in positions)
    return {
        'message': {'role': 'assistant', 'content': text},
        'logprobs': {'content': content},
        'finish_reason': 'length',
    }


class JudgeServer:
    """A judge whose score is what `score` makes of the prompt.

    Attributes:
        asked: prompts in the order they came; that for the numbers check left out.
        score: 0 to 100; None refuses; an error code answers with it.
        say: what it writes where no probabilities are asked for: of the messages.
        told: those messages, in the order they came.
        before: called ahead of every answer.
    """

    def __init__(
        self, serve: Callable[[Callable[[Any], tuple[int, Any]]], str]
    ) -> None:
        self.asked: list[str] = []
        self.score: Callable[[str], int | str | None] = lambda prompt: len(prompt) % 101
        self.before: Callable[[], None] = lambda: None
        self.told: list[list[dict[str, str]]] = []
        self.say: Callable[[list[dict[str, str]]], str] = lambda _: '{"flaws": []}'
        self.url = serve(self._reply)

    def _reply(self, body: Any) -> tuple[int, Any]:
        if body.get('logprobs'):
            return self.answer(body['messages'][0]['content'])
        self.told.append(body['messages'])
        self.before()
        text = self.say(body['messages'])
        if text.isdecimal():
            return int(text), {'error': {'message': 'no', 'code': 'context_length'}}
        message = {'role': 'assistant', 'content': text}
        return 200, {'choices': [{'message': message, 'finish_reason': 'stop'}]}

    def answer(self, prompt: str) -> tuple[int, Any]:
        if prompt.startswith('Write the number'):
            return 200, {'choices': [_choice([('85', 1.0)])]}
        self.asked.append(prompt)
        self.before()
        score = self.score(prompt)
        if isinstance(score, str):
            return int(score), {'error': {'message': 'no', 'code': 'context_length'}}
        position = [('REF', 0.9), ('50', 0.1)]
        if score is not None:
            position = [(str(score), 0.75), ('x', 0.25)]
        return 200, {'choices': [_choice(position)]}


@pytest.fixture
def judge_server(
    serve_json: Callable[[Callable[[Any], tuple[int, Any]]], str],
) -> JudgeServer:
    return JudgeServer(serve_json)
