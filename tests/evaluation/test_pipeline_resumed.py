"""An evaluation killed, and one without a run."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import pytest

from ppjax import evaluate
from ppjax.evaluation import (
    config,
)

_NEW_TOKENS = 7


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch):
    monkeypatch.setattr(evaluate.compile_cache, 'enable', lambda: None)


def _config(run: Any, **changes: Any) -> config.EvaluateConfig:
    settings = {
        'output_dir': str(run.path),
        'prompt_length': 16,
        'answer_length': 4,
        'max_new_tokens': _NEW_TOKENS,
        'questions': 2,
    }
    return config.EvaluateConfig(**(settings | changes))


def _stored(run: Any, name: str) -> dict[str, Any]:
    return json.loads((run.path / 'results' / f'{name}.json').read_text('utf-8'))


def test_without_a_run_results_go_to_a_new_folder(
    chatty_model, make_run, tmp_path, monkeypatch, capsys
):
    run = make_run()
    new = dataclasses.replace(run, path=tmp_path / 'new')
    cfg = _config(
        new,
        tasks='likelihood,efficiency',
        model=str(run.path / 'hf'),
        heldout=str(run.heldout),
        timing=False,
    )
    assert evaluate.main(cfg) == 0
    said = capsys.readouterr()
    assert 'Report' not in said.err
    assert not (new.path / 'report.html').exists()
    assert list(_stored(new, 'persona_likelihood')['models']) == ['pruned']
    assert 'kl_to_dense' not in _stored(new, 'persona_likelihood')['models']['pruned']
    assert (
        'prefill_seconds' not in _stored(new, 'measured_efficiency')['models']['pruned']
    )
    assert f'Results: {new.path / "results"}' in said.err


def test_killed_while_judging_goes_on_where_it_was(
    make_run, judge_server, tmp_path, capsys
):
    """By SIGKILL, with the fourth of six judgements on its way."""
    run = make_run()
    settings = {
        'tasks': 'judge,failures',
        'judge_model': 'tiny',
        'judge_url': judge_server.url,
        'judge_concurrency': 1,
        'max_new_tokens': 3,
        'questions': 3,
    }
    command = [f'--{name}={value}' for name, value in settings.items()]
    reached, release = threading.Event(), threading.Event()

    def before() -> None:
        if len(judge_server.asked) == 4 and not release.is_set():
            reached.set()
            release.wait(60)

    judge_server.before = before
    environment = os.environ | {
        'JAX_COMPILATION_CACHE_DIR': str(jax.config.jax_compilation_cache_dir)
    }
    log = run.path / 'evaluation' / 'verdicts.jsonl'
    with (tmp_path / 'stderr').open('w') as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, '-m', 'ppjax.evaluate', f'--output_dir={run.path}'),
                *command,
            ],
            env=environment,
            stderr=stderr,
            stdout=stderr,
        )
        try:
            assert reached.wait(240), (tmp_path / 'stderr').read_text()
            end = time.monotonic() + 60
            # Each answer is logged as soon as it is here.
            while len(log.read_bytes().splitlines()) < 3 and time.monotonic() < end:
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            release.set()
    assert not (run.path / 'results').exists()
    assert len(log.read_bytes().splitlines()) == 3
    # Killed in the middle of a write: a torn line is no verdict.
    with log.open('ab') as file:
        file.write(b'{"prompt_sha256": "00')
    given = (run.path / 'evaluation' / 'answers.jsonl').read_bytes()
    assert len(given.splitlines()) == 6
    first = list(judge_server.asked)
    assert evaluate.main(_config(run, **settings)) == 0
    # Only the judgement that was lost on its way is asked for again.
    again = judge_server.asked[len(first) :]
    assert len(again) == 3
    assert first[3] in again
    assert not {*first[:3]} & {*again}
    assert len({*judge_server.asked}) == 6
    assert (run.path / 'evaluation' / 'answers.jsonl').read_bytes() == given
    stored = _stored(run, 'judge')
    assert [row['roleplay_score'] is not None for row in stored['answers']] == [
        True
    ] * 6
    assert stored['models']['pruned']['roleplay']['n_scored'] == 3
    printed = capsys.readouterr().out
    assert '0 to 100 for each answer, by tiny' in printed
    assert 'Persona score' in printed
    assert 'Shares of the types: of the low-scored answers' in printed
