"""Steps without the persona prompt: which, what they see, and that nothing else moves."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from ppjax import demo
from ppjax.base import errors, run_directory
from ppjax.data import calibration, chat, order, packing
from ppjax.learning import data
from ppjax.masking import pmask
from ppjax.models import base_model
from ppjax.recovery import config as recovery_config
from ppjax.recovery import loop as recovery_loop
from ppjax.training import config, loop
from ppjax.training import run as run_lib

_DATE = '2026-01-01'


def _settings(model, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': 'demo:ferryman',
        'output_dir': str(output),
        'align': 1,
        'batch_size': 4,
        'steps': 6,
        'checkpoint_every': 2,
        'prompt_dropout': 0.5,
    }
    return config.TrainConfig(**(values | changes))


def _rows(count=20, name='ferryman'):
    return demo.read_rows(f'demo:{name}', split='train')[:count]


def _run(cfg, rows):
    base = base_model.open_base_model(cfg.base_model)
    prepared = data.prepare_data(
        base,
        rows,
        [],
        max_length=cfg.max_length,
        date=cfg.date,
        short_prompt=cfg.dropped_prompt,
    )
    return run_lib.LearningRun(
        cfg, base, prepared, run_directory.RunDirectory(cfg.output_dir)
    )


def _losses(path):
    lines = [json.loads(line) for line in (path / 'metrics.jsonl').open()]
    return [line['loss'] for line in lines if line['stage'] in ('train', 'recover')]


@pytest.mark.parametrize('share', [0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_the_share_holds_everywhere_and_steps_know_nothing_of_the_others(share, seed):
    found = order.shortened_steps(seed, 200, share)
    assert found.dtype == bool
    for size in (1, 7, 40, 200):
        sums = np.convolve(found, np.ones(size, int), 'valid')
        assert np.abs(sums - share * size).max() < 1 + 1e-9
    np.testing.assert_array_equal(order.shortened_steps(seed, 60, share), found[:60])
    if 0 < share < 1:
        others = {bytes(order.shortened_steps(s, 40, share)) for s in range(9)}
        assert len(others) > 1


def test_rows_lose_their_system_message_or_get_a_shorter_one():
    [row] = _rows(1)
    bare = row.shortened('')
    assert bare.messages == row.messages[1:]
    assert row.shortened('You are Bram.').messages == (
        {'role': 'system', 'content': 'You are Bram.'},
        *row.messages[1:],
    )
    # One that never had any is left alone.
    assert bare.shortened('You are Bram.') is bare
    assert bare.shortened('') is bare


def test_without_dropout_nothing_changes(chatty_model, tmp_path):
    cfg = _settings(chatty_model, tmp_path, prompt_dropout=0.0)
    run = _run(cfg, _rows())
    [group] = run.groups
    want = order.grouped_steps(
        cfg.seed,
        run.total,
        cfg.batch_size,
        np.array([len(x.tokens) for x in run.data.train]),
        [np.arange(len(run.data.train))],
    )
    assert group.prefix == run.data.prefix and not run.data.shortened
    for (own, batch), (number, indices) in zip(run.batches, want, strict=True):
        assert own == number == 0
        np.testing.assert_array_equal(batch, indices)
    # The steps that keep the prompt are those of a run without dropout.
    dropping = _run(_settings(chatty_model, tmp_path), _rows())
    for taken, (_, batch) in enumerate(dropping.batches):
        short = len(run.data.train) if dropping.is_shortened(taken) else 0
        np.testing.assert_array_equal(batch - short, want[taken][1])


@pytest.mark.parametrize('short_prompt', [None, 'You are a ferryman.'])
def test_losses_are_transformers_of_the_same_chats(
    chatty_model, tmp_path, hf_answer_nll, short_prompt, capfd
):
    # All channels stay: the model is the dense one, whatever its scores.
    rows = [*_rows(12), *_rows(8, 'clockmaker')]
    rows[3] = dataclasses.replace(rows[3], messages=rows[3].messages[1:])
    cfg = _settings(
        chatty_model, tmp_path / 'run', sparsity=0.0, short_prompt=short_prompt
    )
    loop.learn_mask(cfg, rows, [])
    said = capfd.readouterr().err
    assert said.count('3 steps of 4 examples') == 2
    assert '3 steps of 4 examples without the persona prompt. A step runs' in said
    run = _run(cfg, rows)
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        chatty_model, dtype=torch.float32
    ).eval()
    renderer = chat.ChatRenderer(run.base.tokenizer(), date=_DATE)
    dropped = 0
    for taken, loss in enumerate(_losses(tmp_path / 'run')):
        own = [rows[i % len(rows)] for i in run.batches[taken][1]]
        if run.is_shortened(taken):
            dropped += 1
            own = [row.shortened(short_prompt or '') for row in own]
            assert all(row.system_prompt == (short_prompt or '') for row in own) or any(
                row.query_id == rows[3].query_id for row in own
            )
        with torch.no_grad():
            want = hf_answer_nll(hf, [renderer.example(row) for row in own])
        assert loss == pytest.approx(float(want.mean()), rel=1e-5)
    assert dropped == 3


def test_shortened_steps_share_a_prefix_of_their_own(chatty_model, tmp_path):
    rows = [*_rows(12), *_rows(8, 'clockmaker')]
    run = _run(_settings(chatty_model, tmp_path, steps=40), rows)
    full, short = run.groups[:2], run.groups[2:]
    assert [group.shortened for group in run.groups] == [False, False, True, True]
    for long, group in zip(full, short, strict=True):
        np.testing.assert_array_equal(group.examples, long.examples + 20)
        own = [run.learned[i] for i in group.examples]
        assert group.prefix == packing.common_prefix(own) < long.prefix / 2
        assert [x.query_id for x in own] == [
            run.data.train[i].query_id for i in long.examples
        ]
        for i in long.examples:
            before, after = run.data.train[i], run.data.shortened[i]
            np.testing.assert_array_equal(
                before.tokens[before.answer_start :], after.tokens[after.answer_start :]
            )
    assert sum(map(run.is_shortened, range(40))) == 20
    assert {own for own, _ in run.batches} == {0, 1, 2, 3}


def test_resumed_it_is_the_same_run(chatty_model, tmp_path):
    settings = {'learning_rate': 0.3}
    cfg = _settings(chatty_model, tmp_path / 'whole', **settings)
    whole = loop.learn_mask(cfg, _rows(), [])
    halved = _settings(chatty_model, tmp_path / 'halved', **settings)
    paused = dataclasses.replace(halved, stop_after=3)
    assert loop.learn_mask(paused, _rows(), []) is None
    again = loop.learn_mask(halved, _rows(), [])
    assert again.read_bytes() == whole.read_bytes()
    assert _losses(tmp_path / 'halved') == _losses(tmp_path / 'whole')
    with pytest.raises(errors.InputError, match='--prompt_dropout'):
        other = dataclasses.replace(halved, prompt_dropout=0.0)
        loop.learn_mask(other, _rows(), [])


def test_side_by_side_each_persona_drops_its_own(chatty_model, tmp_path):
    """Three take two places in turn, so that steps mix those with and without."""
    names = tuple(demo.personas())
    settings = {
        'calibration': 'demo:{persona}',
        'personas': ','.join(names),
        'personas_per_step': 2,
        'short_prompt': 'You are {persona}.',
        'steps': 4,
    }
    cfg = _settings(chatty_model, tmp_path / 'cast', **settings)
    made = loop.learn_masks(cfg, {name: (_rows(16, name), []) for name in names})
    for name in names[1:2]:
        alone = dataclasses.replace(
            cfg.of_persona(name), output_dir=str(tmp_path / name)
        )
        assert alone.short_prompt == f'You are {name}.'
        mask = pmask.load(loop.learn_mask(alone, _rows(16, name), []))
        together = pmask.load(made[name])
        assert (mask.mask == together.mask).mean() > 0.97
        assert mask.system_prompt == together.system_prompt
        np.testing.assert_allclose(
            _losses(tmp_path / 'cast' / 'personas' / name),
            _losses(tmp_path / name),
            rtol=1e-4,
        )


def test_recovery_drops_prompts_too(
    chatty_model, tmp_path, calibration_files, hf_answer_nll
):
    cfg = recovery_config.RecoverConfig(
        base_model=str(chatty_model),
        calibration=str(calibration_files[0]),
        output_dir=str(tmp_path / 'run'),
        lora_rank=2,
        batch_size=4,
        micro_batches=2,
        steps=4,
        learning_rate=1e-12,
        prompt_dropout=0.5,
        system_prompt='',
        mesh='data:2,fsdp:4',
    )
    rows = calibration.read_rows(calibration_files[0])
    recovery_loop.recover(cfg, rows, [])
    losses = _losses(tmp_path / 'run')
    hf_files = tmp_path / 'run' / 'hf'
    assert json.loads((hf_files / 'persona.json').read_text()) == {'system_prompt': ''}
    assert 'used without a system message now' in (hf_files / 'README.md').read_text()
    base = base_model.open_base_model(str(chatty_model))
    renderer = chat.ChatRenderer(base.tokenizer(), date=_DATE)
    lengths = np.array([len(renderer.example(row).tokens) for row in rows])
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        chatty_model, dtype=torch.float32
    ).eval()
    dropped = order.shortened_steps(cfg.seed, 4, 0.5)
    assert dropped.sum() == 2
    batches = order.all_steps(cfg.seed, 4, 4, lengths)
    for batch, short, loss in zip(batches, dropped, losses, strict=True):
        own = [rows[i].shortened('') if short else rows[i] for i in batch]
        with torch.no_grad():
            want = hf_answer_nll(hf, [renderer.example(row) for row in own])
        assert loss == pytest.approx(float(want.mean()), rel=1e-4)


def test_the_shared_mask_keeps_every_prompt(chatty_model, tmp_path):
    cfg = _settings(
        chatty_model,
        tmp_path,
        calibration='demo:{persona}',
        personas='ferryman,clockmaker',
        shared_steps=3,
        short_prompt='You are {persona}.',
    )
    shared = cfg.of_shared()
    assert (shared.prompt_dropout, shared.short_prompt) == (0.0, None)
    assert cfg.of_persona('ferryman').prompt_dropout == 0.5


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'prompt_dropout': 0.0, 'short_prompt': 'You.'}, 'is for --prompt_dropout'),
        ({'objective': 'kl'}, 'goes with --objective=ce, not kl'),
        ({'objective': 'ce+kl'}, 'goes with --objective=ce'),
        ({'prompt_dropout': 1.1}, r'--prompt_dropout.*\[0, 1\]'),
        ({'short_prompt': 'You are {persona}.'}, '--personas, and none are given'),
    ],
)
def test_flags_that_mean_nothing_are_refused(chatty_model, tmp_path, changes, said):
    with pytest.raises(errors.InputError, match=said):
        _settings(chatty_model, tmp_path, **changes)


def test_a_short_prompt_must_be_short(chatty_model, tmp_path):
    cfg = _settings(chatty_model, tmp_path, short_prompt='word ' * 600, max_length=400)
    with pytest.raises(errors.InputError, match='give a shorter --short_prompt'):
        _run(cfg, _rows(8))
