"""Every task on a tiny run, from flags to results, tables and report."""

import csv
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ppjax import evaluate
from ppjax.base import errors
from ppjax.evaluation import (
    candidates,
    config,
    helper_models,
    likelihood,
    pipeline,
    timing,
)
from ppjax.evaluation.answers import failures, judged_answers
from ppjax.evaluation.judges import judge_scoring
from ppjax.evaluation.multiple_choice import choice_tasks
from ppjax.masking import apply
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib

_TASKS = 'likelihood,piqa,openbookqa,mmlu,efficiency,answers,judge,failures'
_NEW_TOKENS = 7
_PIQA = [
    {
        'goal': 'Dry a wet boot.',
        'sol1': 'Stuff it with paper.',
        'sol2': 'Stuff it with snow.',
        'label': 0,
    },
    {'goal': 'Tie a boat.', 'sol1': 'Use a spoon.', 'sol2': 'Use a rope.', 'label': 1},
    {'goal': 'Cut bread.', 'sol1': 'Use a knife.', 'sol2': 'Use a lamp.', 'label': 0},
]
_OPENBOOKQA = [
    {
        'question_stem': 'Rivers flow',
        'choices': {'text': ['up', 'down', 'out', 'in'], 'label': list('ABCD')},
        'answerKey': 'B',
    }
]


def _mmlu(subject: str, question: str, answer: int) -> dict[str, Any]:
    choices = ['one', 'two', 'three', 'four']
    return {
        'subject': subject,
        'question': question,
        'choices': choices,
        'answer': answer,
    }


_MMLU = [
    _mmlu('old_boats', 'How many oars?', 1),
    _mmlu('old_boats', 'How many masts?', 0),
    _mmlu('knots', 'How many ends?', 1),
]
_MMLU_DEV = [_mmlu('knots', 'How many loops?', 2), _mmlu('old_boats', 'Hulls?', 0)]


def _write(path: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    path.write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
    return str(path)


@pytest.fixture
def rows(tmp_path: pathlib.Path) -> dict[str, str]:
    """The flags of benchmark rows, in files."""
    made = {
        'piqa': _PIQA,
        'openbookqa': _OPENBOOKQA,
        'mmlu': _MMLU,
        'mmlu_dev': _MMLU_DEV,
    }
    return {name: _write(tmp_path / f'{name}.jsonl', own) for name, own in made.items()}


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


def _contents(run: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / 'results').iterdir()}


@functools.cache
def _hf(path: pathlib.Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32
    ).eval()


def _log_probs(path: pathlib.Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(_hf(path)(torch.tensor([ids])).logits[0], dim=-1)


@pytest.fixture
def finished(make_run, rows, chatty_model, capsys, monkeypatch):
    """A run on which every task is done, and what was printed."""
    monkeypatch.setattr(judge_scoring, 'MIN_MASS', 0.0)  # It is a random model.
    run = make_run()
    cfg = _config(
        run,
        tasks=_TASKS,
        judge='local',
        judge_model=str(chatty_model),
        mmlu_shots=1,
        **rows,
    )
    capsys.readouterr()
    assert evaluate.main(cfg) == 0
    return run, cfg, capsys.readouterr()


def test_all_tasks_of_a_run(finished, chatty_model, monkeypatch, capsys):
    run, cfg, said = finished
    _check_printed(run, said)
    _check_likelihood(run, chatty_model)
    _check_benchmarks(run, chatty_model)
    _check_efficiency(run)
    _check_judged(run, chatty_model)
    _check_sorted(run)
    # Everything is there: the same command reads no weights and changes no file.
    for module, name in (
        (loading, 'load_decoder'),
        (apply, 'load_masked'),
        (helper_models.HelperModels, 'judge'),
        (timing, 'measure'),
    ):
        monkeypatch.setattr(module, name, pytest.fail)
    before = _contents(run)
    assert evaluate.main(cfg) == 0
    assert _contents(run) == before
    again = capsys.readouterr()
    assert again.out == said.out
    assert again.err.count('is there already, of the same settings') == 8
    # And so it is asked for task by task, in any order.
    assert evaluate.main(dataclasses.replace(cfg, tasks='failures, mmlu')) == 0
    assert _contents(run) == before
    said = capsys.readouterr().out
    assert said.startswith('Benchmarks\n')
    assert said.index('MMLU, acc, 1-shot') < said.index('What goes wrong')


def _check_sorted(run) -> None:
    """Answers are those that are judged, and sorted by the rules."""
    stored, judged = _stored(run, 'answers'), _stored(run, 'judge')
    own, wanted = ([x['answer'] for x in y['answers']] for y in (stored, judged))
    assert own == wanted
    for row in stored['answers']:
        found = failures.classify(row['answer'], finished=row['finished'])
        assert row['type'] == ('none' if found == 'assistant_like' else found)
    counts = stored['models']['pruned']['counts']
    own = [row['type'] for row in stored['answers'] if row['model'] == 'pruned']
    assert counts == {kind: own.count(kind) for kind in counts}


def _check_printed(run, said) -> None:
    printed = ' '.join(said.out.split())
    titles = [
        'Persona likelihood, model by model',
        "the persona's held-out answers: 6 conversations",
        '0 to 100 for each answer, by',
        'PIQA, acc',
        'OpenBookQA, acc',
        'MMLU, acc, 1-shot',
        'Sizes and FLOPs, from the shape',
        'Answers with a persona score below 60',
    ]
    places = [printed.index(title) for title in titles]
    assert places == sorted(places)
    counts = {
        row[0]: row[-1] for x in said.out.splitlines() if (row := re.split('  +', x))
    }
    assert (counts['PIQA, acc'], counts['OpenBookQA, acc']) == ('3', '1')
    assert counts['MMLU, acc, 1-shot'] == '3'
    assert said.err.count('Loading the dense model') == 1
    assert said.err.count('Loading the pruned model') == 1
    assert said.err.count('Loading the judge') == 1
    assert f'Report: {run.path / "report.html"}' in said.err
    assert f'Results: {run.path / "results"}' in said.err
    assert (run.path / 'report.html').is_file()
    for line in said.out.splitlines():
        assert line == line.rstrip()


def _check_likelihood(run, chatty_model) -> None:
    stored = _stored(run, 'persona_likelihood')
    assert stored['heldout']['rows'] == 6
    assert stored['heldout']['too_long'] == 0
    assert stored['heldout']['source'] == str(run.heldout)
    assert {'models', 'heldout_sha256', 'max_length', 'date', 'dtype'} == set(
        stored['settings']
    )
    assert {'ppjax', 'jax'} <= stored['versions'].keys()
    tokenizer = run.base.tokenizer()
    lines = run.heldout.read_text('utf-8').splitlines()
    sums = {'dense': 0.0, 'pruned': 0.0}
    tokens = 0
    for line, kept in zip(lines, stored['examples'], strict=True):
        row = json.loads(line)
        assert kept['query_id'] == row['query_id']
        parts = [
            tokenizer.apply_chat_template(
                row['messages'][:end], tokenize=False, add_generation_prompt=end == 2
            )
            for end in (2, 3)
        ]
        prompt = tokenizer.encode(parts[0], add_special_tokens=False)
        # SmolLM2's template ends an answer with a line break that no model says.
        answer = tokenizer.encode(
            parts[1].removeprefix(parts[0]).rstrip('\n'), add_special_tokens=False
        )
        tokens += len(answer)
        assert kept['answer_tokens'] == len(answer)
        for name, path in (('dense', chatty_model), ('pruned', run.path / 'hf')):
            found = _log_probs(path, prompt + answer)[len(prompt) - 1 : -1]
            nll = -float(found[range(len(answer)), answer].sum())
            sums[name] += nll
            assert kept[name]['nll'] == pytest.approx(nll, rel=1e-4)
    for name, total in sums.items():
        mean = stored['models'][name]['nll']['mean']
        assert mean == pytest.approx(total / tokens, rel=1e-5)
    assert stored['heldout']['answer_tokens'] == tokens
    assert stored['models']['pruned']['kl_to_dense']['mean'] > 0.01


def _check_benchmarks(run, chatty_model) -> None:
    assert _stored(run, 'mmlu')['settings']['shots'] == 1
    groups = _stored(run, 'mmlu')['models']['pruned']['groups']
    assert {name: part['count'] for name, part in groups.items()} == {
        'old_boats': 2,
        'knots': 1,
    }
    assert len(_stored(run, 'openbookqa')['models']['dense']['questions']) == 1
    piqa = _stored(run, 'piqa')
    assert piqa['settings']['questions'] == 3
    tokenizer = run.base.tokenizer()
    for name, path in (('dense', chatty_model), ('pruned', run.path / 'hf')):
        for row, kept in zip(_PIQA, piqa['models'][name]['questions'], strict=True):
            context = f'Question: {row["goal"]}\nAnswer:'
            start = len(tokenizer.encode(context))
            for choice, value in zip(
                (row['sol1'], row['sol2']), kept['log_likelihoods'], strict=True
            ):
                ids = tokenizer.encode(f'{context} {choice}')
                found = _log_probs(path, ids)[start - 1 : -1]
                want = float(found[range(len(ids) - start), ids[start:]].sum())
                assert value == pytest.approx(want, rel=1e-4)


def _check_efficiency(run) -> None:
    stored = _stored(run, 'measured_efficiency')
    dense, pruned = (stored['models'][name] for name in ('dense', 'pruned'))
    assert (dense['keep'], pruned['keep']) == (40, 17)
    assert dense['stored_bytes'] - pruned['stored_bytes'] == pytest.approx(
        2 * 3 * 24 * 23 * 4, abs=400
    )
    # A closed form without XLA's norms and softmax, which weigh much in a tiny model.
    for own in (dense, pruned):
        assert 1 < own['xla_prefill_flops'] / own['prefill_flops'] < 1.5
        assert own['prefill_seconds']['min'] > 0
    assert stored['closed_form']['dense']['keep'] == 40
    assert stored['closed_form']['pruned']['keep'] == 17
    assert stored['closed_form']['pruned']['prefill_flops'] == pruned['prefill_flops']
    assert stored['settings']['prompt_length'] == 16


def _check_judged(run, chatty_model) -> None:
    stored = _stored(run, 'judge')
    assert [(row['model'], row['group']) for row in stored['answers']] == [
        (name, 'run-heldout') for name in ('dense', 'dense', 'pruned', 'pruned')
    ]
    tokenizer = run.base.tokenizer()
    paths = {'dense': chatty_model, 'pruned': run.path / 'hf'}
    heldout = run.heldout.read_text('utf-8').splitlines()
    for number, row in enumerate(stored['answers']):
        messages = json.loads(heldout[number % 2])['messages']
        assert row['question'] == messages[1]['content']
        ids = tokenizer.apply_chat_template(
            messages[:2], add_generation_prompt=True, return_tensors='pt'
        )
        ids = ids if isinstance(ids, torch.Tensor) else ids['input_ids']
        with torch.no_grad():
            out = _hf(paths[row['model']]).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=_NEW_TOKENS,
                do_sample=False,
                eos_token_id=2,
                pad_token_id=2,
            )
        said = out[0, ids.shape[1] :]
        assert row['answer'] == tokenizer.decode(said, skip_special_tokens=True)
        assert row['finished'] == (2 in said.tolist())
        # Random weights say hardly any number.
        assert 0 <= row['roleplay_score'] <= 100
        assert row['roleplay_failure'] == ''
        assert 0 < row['roleplay_mass'] < 0.25
    with (run.path / 'results' / 'judge.csv').open(
        newline='', encoding='utf-8'
    ) as file:
        assert [row['answer'] for row in csv.DictReader(file)] == [
            row['answer'] for row in stored['answers']
        ]
    failures = _stored(run, 'failures')
    assert failures['settings']['judged'] == stored['settings']
    low = [
        row['question']
        for row in stored['answers']
        if row['model'] == 'dense' and row['roleplay_score'] < 60
    ]
    found = failures['models']['dense']
    assert (found['n'], found['answers']) == (len(low), 2)
    assert sum(found['counts'].values()) == len(low)


# --- What is measured again ---------------------------------------------------


@pytest.fixture
def counted(monkeypatch, chatty_model) -> list[str]:
    """Which measurements are made; their figures are made up, and no model loads."""
    calls: list[str] = []

    def measure_likelihood(models, examples, **_):
        calls.append('likelihood')
        tokens = np.array([example.num_answer_tokens for example in examples])
        own = likelihood.ModelLikelihood(1.5 * tokens, 0.0 * tokens, tokens, tokens)
        return [own for _ in models]

    def evaluate_choices(decoder, masks, tokenizer, questions, **_):
        calls.append('choices')
        values = [[0.0] * len(question.choices) for question in questions]
        return choice_tasks.summarise(questions, values)

    def measure_times(models, *, prompt_length, answer_length, **_):
        calls.append(f'times {prompt_length} {answer_length}')
        return {name: timing.Times([1.0], [0.5]) for name in models}

    # Reading the tokenizer takes half a second.
    tokenizer = base_model.open_base_model(str(chatty_model)).tokenizer()

    def load(self):
        return apply.LoadedModel(self.base, None, masks_lib.DENSE, tokenizer, '')

    monkeypatch.setattr(likelihood, 'measure', measure_likelihood)
    monkeypatch.setattr(choice_tasks, 'evaluate', evaluate_choices)
    monkeypatch.setattr(timing, 'measure', measure_times)
    monkeypatch.setattr(timing, 'xla_prefill_flops', lambda model, tokens: None)
    monkeypatch.setattr(candidates.Candidate, 'load', load)
    return calls


def _run(cfg: config.EvaluateConfig) -> dict[str, Any]:
    return dict(pipeline.Evaluation(cfg).run())


def test_only_what_its_settings_touch_is_measured_again(make_run, rows, counted):
    run = make_run()
    cfg = _config(run, tasks='likelihood,piqa,mmlu,efficiency', **rows)

    def measured(**changes: Any) -> list[str]:
        counted.clear()
        _run(dataclasses.replace(cfg, **changes))
        return list(counted)

    everything = [
        'likelihood',
        'choices',
        'choices',
        'choices',
        'choices',
        'times 16 4',
    ]
    assert measured() == everything
    assert measured() == []
    assert measured(batch_size=3, batch_tokens=99, max_new_tokens=3) == []
    assert measured(prompt_length=17) == ['times 17 4']
    assert measured(prompt_length=17, answer_length=1) == ['times 17 2']
    assert measured(prompt_length=17, answer_length=1, timing=False) == []
    assert measured(max_length=500) == ['likelihood', 'times 16 4']
    assert measured(mmlu_shots=1, max_length=500) == ['choices', 'choices']
    assert measured(overwrite=True) == everything
    assert measured(dtype='bfloat16') == everything
    assert measured() == everything


def test_changed_files_are_measured_again(make_run, rows, counted):
    run = make_run()
    cfg = _config(run, tasks='likelihood,piqa', **rows)
    _run(cfg)
    counted.clear()
    text = run.heldout.read_text('utf-8')
    run.heldout.write_text('\n'.join(text.splitlines()[:-1]), 'utf-8')
    _run(cfg)
    assert counted == ['likelihood']
    assert _stored(run, 'persona_likelihood')['heldout']['rows'] == 5
    counted.clear()
    _write(pathlib.Path(rows['piqa']), [_PIQA[0] | {'label': 1}, *_PIQA[1:]])
    _run(cfg)
    assert counted == ['choices', 'choices']
    assert _stored(run, 'piqa')['models']['dense']['questions'][0]['gold'] == 1


def test_another_mask_is_measured_again(make_run, counted):
    run, other = make_run(exported=False), make_run('other', exported=False, seed=1)
    cfg = _config(run, tasks='likelihood')
    _run(cfg)
    counted.clear()
    (other.path / 'mask.pmask').replace(run.path / 'mask.pmask')
    found = _run(cfg)
    assert counted == ['likelihood']
    assert list(found['likelihood']['models']) == ['dense', 'masked']


def test_a_count_takes_the_first_rows(make_run, rows, counted):
    run = make_run()
    cfg = _config(run, tasks='piqa', piqa=f'{rows["piqa"]}:2')
    assert _run(cfg)['piqa']['settings']['questions'] == 2


def test_too_long_conversations_are_counted(make_run, counted):
    run = make_run()
    lines = [json.loads(line) for line in run.heldout.read_text('utf-8').splitlines()]
    tokenizer = run.base.tokenizer()
    lengths = sorted(
        len(
            tokenizer.encode(
                tokenizer.apply_chat_template(row['messages'], tokenize=False).rstrip()
            )
        )
        for row in lines
    )
    cfg = _config(run, tasks='likelihood', max_length=lengths[2])
    found = _run(cfg)['likelihood']['heldout']
    assert found['rows'] + found['too_long'] == 6
    assert found['rows'] == sum(length <= lengths[2] for length in lengths)
    with pytest.raises(errors.InputError, match='fits --max_length=3'):
        _run(dataclasses.replace(cfg, max_length=3))


def test_failures_judge_once(make_run, monkeypatch):
    """With `judge` before it, and with --overwrite, nobody is asked a second time."""
    calls: list[str] = []

    def judge(cfg, models):
        calls.append('judge')
        return {'models': {}, 'answers': [], 'settings': {'coherence': False}}

    monkeypatch.setattr(judged_answers, 'judge', judge)
    run = make_run()
    cfg = _config(
        run,
        tasks='judge,failures',
        judge_model='x',
        judge_url='http://x',
        overwrite=True,
    )
    found = _run(cfg)
    assert calls == ['judge']
    assert list(found) == ['judge', 'failures']


def test_earlier_results_stay_when_a_later_task_fails(make_run, rows, counted):
    run = make_run()
    pathlib.Path(rows['mmlu']).write_text('{"subject": "knots"}\n')
    with pytest.raises(errors.InputError, match=r'mmlu\.jsonl:1'):
        _run(_config(run, tasks='mmlu,piqa,efficiency', **rows))
    assert (run.path / 'results' / 'piqa.json').exists()
    assert not (run.path / 'results' / 'mmlu.json').exists()
