"""Verbs that only run a model, on meshes that share it out, against one that copies."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ppjax import demo, errors, evaluate, synthesize
from ppjax.evaluation import config as evaluation_config
from ppjax.synthesis import config as synthesis_config

_MESHES = ('fsdp:8', 'data:2,fsdp:2,tensor:2')


def _lines(file: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text('utf-8').splitlines()]


def test_synthesis(chatty_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    instructions = tmp_path / 'general.jsonl'
    instructions.write_text(
        ''.join(
            json.dumps({'instruction': query, 'input': '', 'output': answer}) + '\n'
            for _, query, answer in demo.instructions()[:12]
        )
    )

    def run(mesh: str | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        output = tmp_path / str(mesh)
        settings = synthesis_config.SynthesizeConfig(
            base_model=str(chatty_model),
            output_dir=str(output),
            persona='Ida Holm keeps bees on a roof and answers everything by honey.',
            instructions=str(instructions),
            rewriter='local',
            rewrite_max_tokens=5,
            rewrite_temperature=0.0,
            rewrite_batch_size=4,
            keep_fraction=0.5,
            test_size=1,
            train_size=4,
            batch_tokens=256,
            mesh=mesh,
        )
        # A model of random weights never ends a reply by itself.
        with pytest.raises(errors.InputError, match='5 truncated'):
            synthesize.main(settings)
        scores = _lines(output / 'scores.jsonl')
        texts = _lines(output / 'rewrites.jsonl')
        return {row['query_id']: row['score'] for row in scores}, texts

    scores, texts = run(None)
    for mesh in _MESHES:
        found, written = run(mesh)
        assert found.keys() == scores.keys()
        for query, score in scores.items():
            assert found[query] == pytest.approx(score, abs=2e-6)
        assert written == texts
    assert len(texts) == 5
    assert np.std(list(scores.values())) > 1e-4


def test_evaluation(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    tmp_path: pathlib.Path,
) -> None:
    rows = tmp_path / 'piqa.jsonl'
    rows.write_text(
        ''.join(
            json.dumps(
                {
                    'goal': f'Cut bread number {number}.',
                    'sol1': 'Use a knife.',
                    'sol2': 'Use a long, sharp spoon.',
                    'label': number % 2,
                }
            )
            + '\n'
            for number in range(5)
        )
    )

    def run(mesh: str | None) -> dict[str, Any]:
        output = tmp_path / str(mesh)
        settings = evaluation_config.EvaluateConfig(
            base_model=str(chatty_model),
            output_dir=str(output),
            heldout=str(calibration_files[1]),
            tasks='likelihood,piqa,judge',
            piqa=str(rows),
            judge='local',
            judge_model=str(chatty_model),
            max_new_tokens=4,
            mesh=mesh,
        )
        assert evaluate.main(settings) == 0
        return {
            file.stem: json.loads(file.read_text('utf-8'))
            for file in sorted((output / 'results').glob('*.json'))
        }

    whole = run(None)
    assert len(whole) == 3
    for mesh in _MESHES:
        found = run(mesh)
        assert found.keys() == whole.keys()
        for name, figures in whole.items():
            _assert_close(found[name]['models'], figures['models'])


def _assert_close(ours: Any, theirs: Any) -> None:
    """Numbers to float tolerance, all else the same."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            _assert_close(ours[key], value)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            _assert_close(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    else:
        assert ours == theirs
