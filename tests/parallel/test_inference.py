"""Verbs that only run a model, on meshes that share it out, against one that copies."""

from collections.abc import Iterator
import http.server
import json
import pathlib
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from ppjax import demo, errors, evaluate, synthesize
from ppjax.evaluation import config as evaluation_config
from ppjax.synthesis import config as synthesis_config

_MESHES = ('fsdp:8', 'data:2,fsdp:2,tensor:2')
_LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'local_multiprocess.py'


def _lines(file: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text('utf-8').splitlines()]


def _in_processes(verb: str, settings: dict[str, Any], devices: int = 4) -> str:
    """Runs it as two processes on one mesh of eight devices; what they said."""
    given = {'mesh': 'data:2,fsdp:2,tensor:2'} | settings
    done = subprocess.run(
        [
            *(sys.executable, str(_LAUNCHER), '--processes=2', f'--devices={devices}'),
            *('--', verb, *(f'--{name}={value}' for name, value in given.items())),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


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


class _Writer:
    """A server that rewrites: an answer of the query's own length.

    Attributes:
        asked: queries, in the order they came.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        writer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers['content-length'])))
                query = body['messages'][-1]['content']
                writer.asked.append(query)
                text = f'Bees would have said it in {len(query)} dances.'
                message = {'role': 'assistant', 'content': text}
                choice = {'message': message, 'finish_reason': 'stop'}
                data = json.dumps({'choices': [choice]}).encode()
                self.send_response(200)
                self.send_header('content-length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_address[1]}'
        threading.Thread(
            target=self.http.serve_forever, args=(0.01,), daemon=True
        ).start()


@pytest.fixture
def writer() -> Iterator[_Writer]:
    server = _Writer()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_two_processes_synthesize_what_one_does(
    chatty_model: pathlib.Path,
    instructions: pathlib.Path,
    writer: _Writer,
    tmp_path: pathlib.Path,
) -> None:
    settings = {
        'base_model': str(chatty_model),
        'persona': 'Ida Holm keeps bees on a roof and answers everything by honey.',
        'instructions': str(instructions),
        'rewriter': 'openai',
        'server_url': writer.url,
        'server_model': 'bees',
        'test_size': 1,
        'train_size': 3,
        'batch_tokens': 256,
    }
    one, two = tmp_path / 'one', tmp_path / 'two'
    synthesize.main(synthesis_config.SynthesizeConfig(**settings, output_dir=str(one)))
    asked = sorted(writer.asked)
    assert len(asked) == 4
    writer.asked.clear()
    command = settings | {'output_dir': str(two)}
    said = _in_processes('ppjax.synthesize', command)
    # Both would have asked.
    assert sorted(writer.asked) == asked
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
    _in_processes('ppjax.synthesize', command, devices=4)
    assert sorted(writer.asked) == asked
    assert (two / 'scores.jsonl').read_bytes() == before


@pytest.fixture
def piqa(tmp_path: pathlib.Path) -> pathlib.Path:
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
    return rows


def test_evaluation(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    piqa: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    def settings_of(output: pathlib.Path) -> dict[str, Any]:
        return {
            'base_model': str(chatty_model),
            'output_dir': str(output),
            'heldout': str(calibration_files[1]),
            'tasks': 'likelihood,piqa,judge',
            'piqa': str(piqa),
            'judge': 'local',
            'judge_model': str(chatty_model),
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
        said = _in_processes('ppjax.evaluate', settings_of(output))
        # The first alone says it.
        assert said.count('Persona likelihood') == 1
        return results_of(output)

    whole = run(None)
    assert len(whole) == 3
    for found in (*map(run, _MESHES), in_processes()):
        assert found.keys() == whole.keys()
        for name, figures in whole.items():
            _assert_close(found[name]['models'], figures['models'])
        answers = [x['judge']['answers'] for x in (found, whole)]
        assert [row['answer'] for row in answers[0]] == [
            row['answer'] for row in answers[1]
        ]


def test_several_processes_take_no_times(
    chatty_model: pathlib.Path, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(_LAUNCHER), '--processes=2', '--devices=1', '--'),
            *('ppjax.evaluate', f'--base_model={chatty_model}', '--tasks=efficiency'),
            f'--output_dir={tmp_path / "run"}',
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert 'ask for it without --coordinator' in done.stderr
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
