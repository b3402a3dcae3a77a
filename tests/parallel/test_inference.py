"""Verbs that only run a model, on meshes that share it out, against one that copies."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ppjax import demo, evaluate, synthesize
from ppjax.base import errors
from ppjax.evaluation import config as evaluation_config
from ppjax.synthesis import config as synthesis_config

_MESHES = ('fsdp:8', 'data:2,fsdp:2,tensor:2')


def _lines(file: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text('utf-8').splitlines()]


def _in_processes(launch: Any, verb: str, settings: dict[str, Any]) -> str:
    """Runs it as two processes on one mesh of eight devices; what they said."""
    given = {'mesh': _MESHES[1]} | settings
    launcher = launch(2, 4, verb, *(f'--{name}={given[name]}' for name in given))
    said = ''.join(launcher.communicate(timeout=400))
    assert launcher.returncode == 0, said
    return said


@pytest.fixture
def instructions(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / 'general.jsonl'
    file.write_text(
        ''.join(
            json.dumps({'instruction': query, 'input': '', 'output': answer}) + '\n'
            for _, query, answer in demo.instructions()[:12]
        )
    )
    return file


def test_synthesis(
    chatty_model: pathlib.Path, instructions: pathlib.Path, tmp_path: pathlib.Path
) -> None:
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


def test_two_processes_synthesize_what_one_does(
    chatty_model: pathlib.Path,
    instructions: pathlib.Path,
    launch: Any,
    serve_json: Any,
    tmp_path: pathlib.Path,
) -> None:
    asked: list[str] = []

    def rewrite(body: Any) -> tuple[int, Any]:
        query = body['messages'][-1]['content']
        asked.append(query)
        text = f'Bees would have said it in {len(query)} dances.'
        message = {'role': 'assistant', 'content': text}
        return 200, {'choices': [{'message': message, 'finish_reason': 'stop'}]}

    settings = {
        'base_model': str(chatty_model),
        'persona': 'Ida Holm keeps bees on a roof and answers everything by honey.',
        'instructions': str(instructions),
        'rewriter': 'openai',
        'server_url': serve_json(rewrite),
        'server_model': 'bees',
        'test_size': 1,
        'train_size': 3,
        'batch_tokens': 256,
    }
    one, two = tmp_path / 'one', tmp_path / 'two'
    synthesize.main(synthesis_config.SynthesizeConfig(**settings, output_dir=str(one)))
    once = sorted(asked)
    assert len(once) == 4
    asked.clear()
    command = settings | {'output_dir': str(two)}
    said = _in_processes(launch, 'ppjax.synthesize', command)
    # Both would have asked.
    assert sorted(asked) == once
    assert said.count('Learn from:') == 1
    scores = [
        {row['query_id']: row['score'] for row in _lines(run / 'scores.jsonl')}
        for run in (one, two)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=2e-6)
    for name in ('train', 'test'):
        rows = [_lines(run / 'calibration' / f'{name}.jsonl') for run in (one, two)]
        assert [row['messages'] for row in rows[1]] == [
            row['messages'] for row in rows[0]
        ]
    # Again from the logs, which the first process alone reads.
    before = (two / 'scores.jsonl').read_bytes()
    _in_processes(launch, 'ppjax.synthesize', command)
    assert sorted(asked) == once
    assert (two / 'scores.jsonl').read_bytes() == before


def _judge_model(chatty_model: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """The model with a head that writes digits and ends, as a judge has to."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(chatty_model)
    config = transformers.AutoConfig.from_pretrained(chatty_model)
    config.tie_word_embeddings = False
    model = transformers.LlamaForCausalLM.from_pretrained(chatty_model, config=config)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        head = torch.nn.Parameter(embedding.detach().clone())
        # What all tokens have in common, and what digits and the end make of it.
        embedding[:, 0] = 30.0
        model.model.norm.weight[0] = 1.0
        head[:, 0] = 0.0
        digits = tokenizer.convert_tokens_to_ids([str(digit) for digit in range(10)])
        for token, weight in [*((x, 20.0) for x in digits), (2, 20.5)]:
            head[token] *= 0.1
            head[token, 0] = weight
        model.lm_head.weight = head
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_evaluation(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    launch: Any,
    piqa_file: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    judge = _judge_model(chatty_model, tmp_path / 'judge')

    def settings_of(output: pathlib.Path) -> dict[str, Any]:
        return {
            'base_model': str(chatty_model),
            'output_dir': str(output),
            'heldout': str(calibration_files[1]),
            'tasks': 'likelihood,piqa,judge',
            'piqa': str(piqa_file),
            'judge': 'local',
            'judge_model': str(judge),
            'max_new_tokens': 4,
        }

    def results_of(output: pathlib.Path) -> dict[str, Any]:
        return {
            file.stem: json.loads(file.read_text('utf-8'))
            for file in sorted((output / 'results').glob('*.json'))
        }

    def run(mesh: str | None) -> dict[str, Any]:
        output = tmp_path / str(mesh)
        settings = evaluation_config.EvaluateConfig(**settings_of(output), mesh=mesh)
        assert evaluate.main(settings) == 0
        return results_of(output)

    def in_processes() -> dict[str, Any]:
        output = tmp_path / 'processes'
        said = _in_processes(launch, 'ppjax.evaluate', settings_of(output))
        # The first alone says it.
        assert said.count('Persona likelihood') == 1
        return results_of(output)

    whole = run(None)
    assert len(whole) == 3
    # The processes are on the other mesh.
    for found in (run(_MESHES[0]), in_processes()):
        assert found.keys() == whole.keys()
        for name, figures in whole.items():
            _assert_close(found[name]['models'], figures['models'])
        answers = [x['judge']['answers'] for x in (found, whole)]
        assert [row['answer'] for row in answers[0]] == [
            row['answer'] for row in answers[1]
        ]


def test_several_processes_take_no_times(
    chatty_model: pathlib.Path, launch: Any, tmp_path: pathlib.Path
) -> None:
    launcher = launch(
        2,
        1,
        'ppjax.evaluate',
        f'--base_model={chatty_model}',
        '--tasks=efficiency',
        f'--output_dir={tmp_path / "run"}',
    )
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    assert 'ask for it without --coordinator' in said
    assert not (tmp_path / 'run').exists()


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
