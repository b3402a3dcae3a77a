"""Likelihood of plain answers with no persona prompt, against transformers."""

import dataclasses
import json
import pathlib

import pytest
import torch
import transformers

from ppjax import evaluate
from ppjax.base import errors
from ppjax.data import calibration
from ppjax.evaluation import config, conversations
from ppjax.training import trained_run


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch):
    monkeypatch.setattr(evaluate.compile_cache, 'enable', lambda: None)


@pytest.fixture
def dolly(tmp_path, calibration_files) -> pathlib.Path:
    """Nine plain rows, one of them too long, and a question the run learned from."""
    learned = calibration.read_rows(calibration_files[0])[0]
    answers = [f'Take rope number {i} and pull. ' * (i + 1) for i in range(8)]
    rows = [('Tie a boat', f'The {i}th boat', x) for i, x in enumerate(answers)]
    rows += [('Say much', '', 'word ' * 900), (learned.query, '', 'Plainly so.')]
    file = tmp_path / 'dolly.jsonl'
    lines = [
        {'instruction': asked, 'context': given, 'response': answer}
        for asked, given, answer in rows
    ]
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return file


def _config(run, dolly, **changes) -> config.EvaluateConfig:
    settings = {'output_dir': str(run.path), 'tasks': 'plain', 'plain': str(dolly)}
    return config.EvaluateConfig(**(settings | changes))


def test_values_are_those_of_transformers(make_run, dolly, chatty_model, capsys):
    run = make_run()
    assert evaluate.main(_config(run, dolly, max_length=400)) == 0
    said = capsys.readouterr()
    assert '1 asked elsewhere' in said.err
    assert 'Plain answers: 8 examples, 1 over 400 tokens dropped.' in said.err
    assert said.out.startswith('Likelihood of plain answers, without the persona')
    assert 'NLL less that of dense' in said.out
    assert 'without the persona' in (run.path / 'report.html').read_text('utf-8')
    stored = json.loads((run.path / 'results' / 'plain_likelihood.json').read_text())
    assert stored['heldout']['too_long'] == 1
    rows = [json.loads(line) for line in dolly.read_text('utf-8').splitlines()[:8]]
    tokenizer = run.base.tokenizer()
    models = {
        name: transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32
        ).eval()
        for name, path in (('dense', chatty_model), ('pruned', run.path / 'hf'))
    }
    sums, tokens = dict.fromkeys(models, 0.0), 0
    for row, kept in zip(rows, stored['examples'], strict=True):
        query = f'{row["instruction"]}\n\n### Input:\n{row["context"]}'
        turns = [
            {'role': 'user', 'content': query},
            {'role': 'assistant', 'content': row['response'].strip()},
        ]
        before, whole = (
            tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=x)
            for part, x in ((turns[:1], True), (turns, False))
        )
        # The template's own default, in which there is no persona.
        assert before.startswith('<|im_start|>system\nYou are a helpful AI assistant')
        prompt = tokenizer.encode(before, add_special_tokens=False)
        answer = tokenizer.encode(
            whole.removeprefix(before).rstrip('\n'), add_special_tokens=False
        )
        tokens += len(answer)
        for name, model in models.items():
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0]
            found = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
            nll = -float(found[range(len(answer)), answer].sum())
            sums[name] += nll
            assert kept[name]['nll'] == pytest.approx(nll, rel=1e-4)
    for name, total in sums.items():
        figures = stored['models'][name]
        assert figures['nll']['mean'] == pytest.approx(total / tokens, rel=1e-5)
    change = stored['models']['pruned']['nll_difference']
    assert change['mean'] == pytest.approx(
        (sums['pruned'] - sums['dense']) / tokens, abs=1e-4
    )
    low, high = change['interval']
    assert low <= change['mean'] <= high
    # It is there already, of the same settings.
    assert evaluate.main(_config(run, dolly, max_length=400)) == 0
    assert 'is there already' in capsys.readouterr().err


def test_examples_are_drawn_by_seed(make_run, dolly):
    run = make_run()
    cfg = _config(run, dolly, plain_examples=3)
    trained = trained_run.TrainedRun.open(run.path)

    def ids(cfg: config.EvaluateConfig) -> list[str]:
        return [row.query_id for row in conversations.plain_rows(cfg, trained)]

    few = ids(cfg)
    assert len(few) == 3 and ids(cfg) == few
    draws = {tuple(ids(dataclasses.replace(cfg, seed=seed))) for seed in range(9)}
    assert len(draws) > 3
    more = ids(dataclasses.replace(cfg, plain_examples=5))
    assert set(few) < set(more)
    assert len(ids(dataclasses.replace(cfg, plain_examples=99))) == 9
    # Without a run nothing is known to be learned from.
    whole = dataclasses.replace(cfg, plain_examples=99)
    assert len(conversations.plain_rows(whole, None)) == 10


def test_data_that_ship_and_data_that_are_not_there(make_run, tmp_path):
    run = make_run()
    cfg = _config(run, 'demo', plain_examples=4)
    rows = conversations.plain_rows(cfg, None)
    assert [len(row.messages) for row in rows] == [2] * 4
    assert all(not row.system_prompt for row in rows)
    with pytest.raises(errors.InputError, match='--tasks=plain needs --plain'):
        dataclasses.replace(cfg, plain=None)
    with pytest.raises(errors.InputError, match='does not exist'):
        gone = dataclasses.replace(cfg, plain=str(tmp_path / 'gone.jsonl'))
        conversations.plain_rows(gone, None)


def test_questions_that_are_gone_are_said(make_run, dolly, calibration_files, capsys):
    lost = dolly.parent / 'lost.jsonl'
    lost.write_bytes(calibration_files[0].read_bytes())
    run = make_run(calibration=str(lost))
    lost.unlink()
    trained = trained_run.TrainedRun.open(run.path)
    assert len(conversations.plain_rows(_config(run, dolly), trained)) == 10
    assert 'are not left out of --plain' in capsys.readouterr().err
