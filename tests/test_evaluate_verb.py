"""`python -m ppjax.evaluate` from outside: exit codes, one clear line, results."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import pytest

from ppjax import evaluate
from ppjax.base import errors
from ppjax.chat_api import client as client_lib
from ppjax.evaluation import config


def _evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    cache = str(jax.config.jax_compilation_cache_dir)
    return subprocess.run(
        [sys.executable, '-m', 'ppjax.evaluate', *arguments],
        env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what was wrong."""
    lines = [x for x in result.stderr.splitlines() if x.startswith('ERROR: ')]
    assert len(lines) == 1, result.stderr
    assert 'Traceback' not in result.stderr
    return lines[0]


def test_wrong_usage_is_exit_code_2(tmp_path):
    result = _evaluate('--tasks=piqa', f'--output_dir={tmp_path}')
    assert result.returncode == 2
    assert '--tasks=piqa needs --piqa: a file of its rows' in _error_line(result)
    assert 'See: python -m ppjax.evaluate --help' in result.stderr
    assert not list(tmp_path.iterdir())


def test_measured_once_and_kept_when_a_later_task_fails(
    chatty_model, calibration_files, tmp_path
):
    command = (
        f'--base_model={chatty_model}',
        f'--output_dir={tmp_path / "new"}',
        f'--heldout={calibration_files[1]}',
        '--prompt_length=12',
        '--answer_length=3',
        '--notiming',
    )
    result = _evaluate(*command, '--tasks=efficiency,likelihood')
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('Persona likelihood, model by model')
    assert 'Sizes and FLOPs' in result.stdout
    for name in ('persona_likelihood', 'measured_efficiency'):
        path = tmp_path / 'new' / 'results' / f'{name}.json'
        assert list(json.loads(path.read_text('utf-8'))['models']) == ['dense']
    again = _evaluate(*command, '--tasks=likelihood,piqa', '--piqa=absent.jsonl')
    assert again.returncode == 1
    assert 'absent.jsonl does not exist' in _error_line(again)
    assert again.stdout == result.stdout[: result.stdout.index('Measured speed')]
    assert 'Loading' not in again.stderr
    assert 'is there already' in again.stderr


# --- Settings that cannot be ---------------------------------------------------


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'output_dir': None}, '--output_dir must be given'),
        ({'output_dir': ''}, '--output_dir must be given'),
        ({'tasks': ''}, r"--tasks must be some of .*, got ''"),
        ({'tasks': ' , '}, '--tasks must be some of'),
        ({'tasks': 'likelihood,picqa'}, "got 'likelihood,picqa'"),
        ({'tasks': 'piqa'}, '--tasks=piqa needs --piqa'),
        ({'tasks': 'openbookqa'}, '--tasks=openbookqa needs --openbookqa'),
        ({'tasks': 'mmlu'}, '--tasks=mmlu needs --mmlu'),
        ({'tasks': 'mmlu', 'mmlu': 'x', 'mmlu_shots': 5}, 'needs --mmlu_dev'),
        ({'mmlu_shots': 6}, r'--mmlu_shots must be in \[0, 5\], got 6'),
        ({'mmlu_shots': -1}, r'--mmlu_shots must be in \[0, 5\], got -1'),
        ({'tasks': 'judge'}, '--tasks=judge needs --judge_model'),
        ({'tasks': 'fidelity'}, '--tasks=fidelity needs --judge_model'),
        ({'tasks': 'failures'}, '--tasks=failures needs --judge_model'),
        ({'tasks': 'judge', 'judge_model': 'x'}, '--judge=openai needs --judge_url'),
        ({'tasks': 'multiturn'}, '--tasks=multiturn needs --judge_model'),
        ({'batch_tokens': 0}, '--batch_tokens must be at least 1, got 0'),
        ({'batch_size': 0}, '--batch_size must be at least 1, got 0'),
        ({'max_length': 0}, '--max_length must be at least 1, got 0'),
        ({'max_new_tokens': 0}, '--max_new_tokens must be at least 1, got 0'),
        ({'questions': 0}, '--questions must be at least 1, got 0'),
        ({'judge_concurrency': 0}, '--judge_concurrency must be at least 1, got 0'),
        ({'turns': 0}, '--turns must be at least 1, got 0'),
        ({'dialogues': 0}, '--dialogues must be at least 1, got 0'),
        ({'prompt_length': 0}, '--prompt_length must be at least 1, got 0'),
        ({'answer_length': -3}, '--answer_length must be at least 1, got -3'),
        ({'judge_url': 'http://host:65536'}, '--judge_url has port 65536'),
        ({'partner_url': 'http://host:abc'}, '--partner_url is no URL'),
        ({'seed': -1}, r'--seed must be in \[0, 4294967295\], got -1'),
        ({'base_model': None}, 'is no run directory; name the models'),
        ({'base_model': None, 'mask': 'm.pmask'}, 'is no run directory'),
        ({'base_model': None, 'model': 'hf', 'mask': 'm'}, '--mask needs --base_model'),
    ],
)
def test_settings_are_refused_in_one_line(changes, message, tmp_path):
    settings = {'output_dir': str(tmp_path), 'base_model': 'some/model'}
    with pytest.raises(errors.InputError, match=message) as caught:
        config.EvaluateConfig(**(settings | changes))
    assert '\n' not in str(caught.value)


def test_an_output_directory_that_is_a_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('')
    with pytest.raises(errors.InputError, match='file is a file'):
        config.EvaluateConfig(output_dir=str(path), base_model='some/model')


@pytest.mark.parametrize(
    'tasks, wanted',
    [
        ('efficiency,likelihood', ['likelihood', 'efficiency']),
        (' likelihood , likelihood ,', ['likelihood']),
    ],
)
def test_tasks_come_once_and_in_one_order(tasks, wanted, tmp_path):
    cfg = config.EvaluateConfig(
        tasks=tasks, output_dir=str(tmp_path), base_model='some/model'
    )
    assert cfg.task_list == wanted


# --- Input that cannot be --------------------------------------------------------

_PIQA = {'goal': 'Tie it.', 'sol1': 'a rope', 'sol2': 'a loaf', 'label': 1}
_MMLU = {'subject': 'knots', 'question': 'Q?', 'choices': list('wxyz'), 'answer': 1}
_CHAT = {
    'messages': [
        {'role': 'user', 'content': 'Hello'},
        {'role': 'assistant', 'content': 'Ahoy'},
    ]
}


@pytest.fixture
def refused(chatty_model, tmp_path, monkeypatch):
    """The one line of `evaluate` with these flags; nothing is left behind."""
    monkeypatch.setattr(evaluate.compile_cache, 'enable', lambda: None)

    def run(**changes: Any) -> str:
        settings = {
            'base_model': str(chatty_model),
            'output_dir': str(tmp_path / 'new'),
        }
        cfg = config.EvaluateConfig(**(settings | changes))
        with pytest.raises(errors.InputError) as caught:
            evaluate.main(cfg)
        assert '\n' not in str(caught.value)
        assert not (tmp_path / 'new' / 'results').exists()
        return str(caught.value)

    return run


@pytest.fixture
def write(tmp_path: pathlib.Path):
    def write(*rows: Any, name: str = 'rows.jsonl') -> str:
        path = tmp_path / name
        path.write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
        return str(path)

    return write


@pytest.mark.parametrize(
    'heldout, message',
    [
        ('absent.jsonl', 'absent.jsonl does not exist'),
        ('demo:nobody', "no demo persona 'nobody'"),
    ],
)
def test_heldout_that_is_absent(refused, heldout, message):
    assert message in refused(tasks='likelihood', heldout=heldout)


def test_heldout_rows_that_are_none(refused, write, chatty_model):
    assert 'holds no rows' in refused(tasks='likelihood', heldout=write())
    message = refused(tasks='likelihood', heldout=write(_CHAT, {'messages': []}))
    assert 'rows.jsonl:2: no chat' in message
    message = refused(tasks='likelihood', heldout=write(_CHAT), max_length=2)
    assert '--max_length=2' in message
    assert '--date must be YYYY-MM-DD' in refused(
        tasks='likelihood', heldout=write(_CHAT), date='tomorrow'
    )


@pytest.mark.parametrize(
    'task, rows, message',
    [
        ('piqa', [], 'has no rows'),
        ('piqa', [_PIQA, {**_PIQA, 'label': -1}], 'rows.jsonl:2: the answer must be'),
        ('piqa', [_MMLU], "rows.jsonl:1: field 'goal' is missing"),
        ('openbookqa', [_MMLU | {'choices': ['a']}], '"choices" must be a list of 4'),
        ('mmlu', [_PIQA], '"choices" must be a list of 4'),
        ('mmlu', [3], 'rows.jsonl:1: no JSON object'),
    ],
)
def test_benchmark_rows_that_are_none(refused, write, task, rows, message):
    assert message in refused(tasks=task, **{task: write(*rows)})


def test_benchmark_sources_that_are_none(refused, write):
    assert 'does not exist' in refused(tasks='piqa', piqa='absent.jsonl')
    assert 'no such data set' in refused(tasks='mmlu', mmlu='tfds')
    assert 'takes one source' in refused(
        tasks='piqa', piqa=f'{write(_PIQA)},{write(_PIQA, name="b.jsonl")}'
    )
    message = refused(
        tasks='mmlu',
        mmlu=write(_MMLU),
        mmlu_dev=write(_MMLU, name='dev.jsonl'),
        mmlu_shots=2,
    )
    assert "dev rows have 1 of the subject 'knots'" in message


def test_a_prompt_that_does_not_fit_the_model(refused):
    message = refused(tasks='efficiency', prompt_length=2000, answer_length=100)
    assert 'has 2048 positions' in message


def test_a_judging_server_that_is_down(refused, write, tmp_path, monkeypatch):
    quick = {'retries': 0, 'backoff': 0.01, 'notify': lambda line: None}
    made = client_lib.ChatClient
    monkeypatch.setattr(
        client_lib, 'ChatClient', lambda *args, **more: made(*args, **more, **quick)
    )
    message = refused(
        tasks='judge',
        heldout=write(_CHAT),
        judge_model='tiny',
        judge_url='http://127.0.0.1:9',
        max_new_tokens=2,
    )
    assert 'gave no verdict on any of 1 answers' in message
    assert 'Connection refused' in message
    # The answers are kept for the next try.
    log = tmp_path / 'new' / 'evaluation' / 'answers.jsonl'
    assert len(log.read_text('utf-8').splitlines()) == 1


def test_evaluation_sets_that_are_none(refused, write, tmp_path):
    server = {'judge_model': 'tiny', 'judge_url': 'http://127.0.0.1:9'}
    sets = write({'questions': []}, name='set.json')
    assert 'set.json' in refused(tasks='judge', eval_sets=sets, **server)
    assert 'absent' in refused(tasks='judge', eval_sets='absent', **server)
    (tmp_path / 'empty').mkdir()
    message = refused(tasks='judge', eval_sets=str(tmp_path / 'empty'), **server)
    assert 'holds no evaluation sets' in message
