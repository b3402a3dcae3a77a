"""What a model repeats in its own answers, found, kept and made less likely."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.data import chat
from ppjax.learning import data as data_lib
from ppjax.learning import loss
from ppjax.models import base_model, generation, loading
from ppjax.models import masks as masks_lib
from ppjax.recovery import config, loop, start_answers


@pytest.mark.parametrize(
    ('tokens', 'wanted'),
    [
        ([], ''),
        ([1, 2, 3], '000'),
        ([1, 2, 3, 4, 5, 1, 2, 3], '00000000'),
        ([1, 2, 3, 4, 9, 1, 2, 3, 4, 8], '0000011110'),
        ([7, 7, 7, 7, 7, 7], '011111'),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], '0000011111'),
    ],
)
def test_what_occurred_before_is_repeated(tokens: list[int], wanted: str) -> None:
    found = start_answers.repeated(tokens)
    assert ''.join('01'[int(x)] for x in found) == wanted


def test_an_answer_fills_its_place(make_examples: Any) -> None:
    [question] = make_examples(1, prefix=6)
    start = question.answer_start
    answer = [5, 6, 7, 8] * 3
    example = start_answers.filled(question, answer)
    assert example.num_answer_tokens == start_answers.TOKENS
    np.testing.assert_array_equal(example.tokens[:start], question.tokens[:start])
    np.testing.assert_array_equal(example.tokens[start : start + 12], answer)
    assert example.unlikely.sum() == 8 and not example.unlikely[:4].any()


def _group(first: int, count: int, **more: Any) -> data_lib.PromptGroup:
    return data_lib.PromptGroup(np.arange(first, first + count), 6, **more)


def test_answers_are_dealt_out_to_steps_of_their_own_prompt(make_examples: Any) -> None:
    examples = make_examples(60, prefix=6)
    groups = [_group(0, 40), _group(40, 12), _group(52, 8, shortened=True)]
    batches = [(number % 3, groups[number % 3].examples[:8]) for number in range(60)]
    plan = start_answers.plan(examples, groups, batches, positions=512, seed=3)
    # Up to 32 of a group, and none without the persona prompt.
    names = [example.query_id for example in plan.questions]
    assert len(set(names)) == len(names) == 32 + 12
    assert {f'row {number}' for number in range(40, 52)} == set(names[32:])
    assert [len(step) for step in plan.steps] == [2, 2, 0] * 20
    of_first = np.concatenate(plan.steps[::3])
    np.testing.assert_array_equal(of_first[:33], [*range(32), 0])
    assert set(np.concatenate(plan.steps[1::3])) == set(range(32, 44))
    again = start_answers.plan(examples, groups, batches, positions=512, seed=3)
    assert [x.query_id for x in again.questions] == names
    # What leaves no room for an answer is not asked.
    room = max(x.answer_start for x in examples) + start_answers.TOKENS - 1
    fewer = start_answers.plan(examples, groups, batches, positions=room, seed=3)
    assert 0 < len(fewer.questions) < 44
    none = start_answers.plan(examples, groups, batches, positions=64, seed=3)
    assert not none.questions and not any(map(len, none.steps))


def test_a_sure_token_is_still_made_less_likely(tiny_models: Any) -> None:
    """By 1 - p of a float32 p of 1 there would be no loss and no gradient."""
    decoder = tiny_models('llama-tied').decoder
    hidden = 300.0 * decoder.embedding[:2]
    logits = np.asarray(decoder.unembed(hidden), np.float64)
    targets = logits.argmax(-1)

    def losses(states: jax.Array) -> jax.Array:
        return loss.token_losses(
            decoder,
            states,
            jnp.asarray(targets),
            None,
            objective='ce',
            unlikely=jnp.array([True, False]),
        )

    shifted = logits - logits.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    rest = np.delete(shifted[0], targets[0])
    wanted = np.log(np.exp(shifted[0]).sum()) - np.log(np.exp(rest).sum())
    assert p[0, targets[0]] > 1 - 1e-12
    got = losses(hidden)
    assert got[0] == pytest.approx(wanted, rel=1e-5)
    assert got[1] == pytest.approx(-np.log(p[1, targets[1]]), abs=1e-6)
    gradient = jax.grad(lambda x: losses(x)[0])(hidden)
    assert np.isfinite(gradient).all() and np.abs(gradient[0]).max() > 1e-3


def _settings(files: Any, output: pathlib.Path, **changes: Any) -> Any:
    values = {
        'calibration': str(files[0]),
        'output_dir': str(output),
        'batch_size': 4,
        'steps': 4,
        'checkpoint_every': 2,
        'gains': True,
        'unlikelihood': 0.5,
        'mesh': 'data:2,fsdp:4',
    }
    return config.RecoverConfig(**(values | changes)).resolved()


def _recover(cfg: Any) -> pathlib.Path | None:
    return loop.recover(cfg, demo.read_rows(cfg.calibration, split='train'), [])


def test_a_run_answers_once_and_goes_on_from_that(
    pruned: Any,
    calibration_files: Any,
    tmp_path: pathlib.Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Random weights come back to a token, and hardly ever to four of them.
    monkeypatch.setattr(start_answers, '_NGRAM', 1)
    cfg = _settings(calibration_files, tmp_path / 'run', model=str(pruned[1]))
    assert _recover(cfg) == tmp_path / 'run' / 'hf'
    assert 'repeat themselves within 64 tokens' in capsys.readouterr().err
    file = tmp_path / 'run' / start_answers.FILE
    rows = [json.loads(line) for line in file.open()]
    # Each token the likeliest, by generation itself.
    base = base_model.open_base_model(str(pruned[1]))
    decoder = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    data = demo.read_rows(cfg.calibration, split='train')
    renderer = chat.ChatRenderer(base.tokenizer(), date=cfg.date)
    questions = {row.query_id: renderer.prompt(row.messages[:-1]) for row in data}
    [answer] = generation.generate(
        decoder,
        masks_lib.DENSE,
        [questions[rows[0]['query_id']]],
        max_new_tokens=64,
        stop_ids=[],
    )
    assert [int(x) for x in answer][: len(rows[0]['tokens'])] == rows[0]['tokens']
    assert sum(row['repeated'] for row in rows) > 0
    metrics = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    steps = [json.loads(line) for line in metrics]
    assert all(step['unlikelihood'] > 0 for step in steps)
    # Gone on with after two steps, from the same answers: the same bits.
    parts = dataclasses.replace(cfg, output_dir=str(tmp_path / 'parts'), stop_after=2)
    assert _recover(parts) is None
    before = (tmp_path / 'parts' / start_answers.FILE).read_bytes()
    assert before == file.read_bytes()
    assert _recover(dataclasses.replace(parts, stop_after=None)) is not None
    one, two = ((tmp_path / name / 'hf/model.safetensors') for name in ('run', 'parts'))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize('damage', ['', '{}\n', 'tokens'])
def test_damaged_answers_are_given_again(
    pruned: Any,
    calibration_files: Any,
    tmp_path: pathlib.Path,
    damage: str,
    capsys: Any,
) -> None:
    cfg = _settings(
        calibration_files, tmp_path / 'run', model=str(pruned[1]), stop_after=1
    )
    assert _recover(cfg) is None
    file = tmp_path / 'run' / start_answers.FILE
    before = file.read_text()
    file.write_text(
        before.replace('"tokens": [', '"tokens": [0.5, ')
        if damage == 'tokens'
        else damage
    )
    assert _recover(dataclasses.replace(cfg, stop_after=2)) is None
    assert 'is damaged; its questions are asked again' in capsys.readouterr().err
    assert file.read_text() == before


def test_without_room_for_an_answer_nothing_is_asked(
    pruned: Any,
    calibration_files: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr(start_answers, 'TOKENS', 10**6)
    cfg = _settings(
        calibration_files, tmp_path / 'run', model=str(pruned[1]), stop_after=1
    )
    assert _recover(cfg) is None
    assert 'No calibration question leaves room' in capsys.readouterr().err
    assert not (tmp_path / 'run' / start_answers.FILE).exists()


def test_without_the_second_loss_nothing_is_asked(
    pruned: Any, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    cfg = _settings(
        calibration_files,
        tmp_path / 'run',
        model=str(pruned[1]),
        unlikelihood=0.0,
        stop_after=1,
    )
    assert _recover(cfg) is None
    assert not (tmp_path / 'run' / start_answers.FILE).exists()
    assert 'unlikelihood' not in (tmp_path / 'run' / 'metrics.jsonl').read_text()
