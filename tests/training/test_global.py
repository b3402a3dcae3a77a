"""One mask from several personas' rows: batches of one prompt each, same loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppjax import demo
from ppjax.base import run_directory
from ppjax.data import packing
from ppjax.learning import data
from ppjax.masking import pmask
from ppjax.models import attention, base_model, loading
from ppjax.models import masks as masks_lib
from ppjax.training import config, loop
from ppjax.training import run as run_lib


def _settings(model, output, **changes):
    one, two = list(demo.personas())[:2]
    values = {
        'base_model': str(model),
        'calibration': f'demo:{one},demo:{two}',
        'output_dir': str(output),
        'align': 1,
        'batch_size': 4,
        'steps': 6,
    }
    return config.TrainConfig(**(values | changes))


def _rows(cfg, sizes):
    return [
        row
        for part, size in zip(cfg.calibration.split(','), sizes, strict=True)
        for row in demo.read_rows(part, split='train')[:size]
    ]


def _run(cfg, rows):
    base = base_model.open_base_model(cfg.base_model)
    prepared = data.prepare_data(
        base, rows, [], max_length=cfg.max_length, date=cfg.date
    )
    return run_lib.LearningRun(
        cfg, base, prepared, run_directory.RunDirectory(cfg.output_dir)
    )


@jax.jit
def _next_nll(model, mask, tokens):
    """-log p of every token [T] but the first, given those before it, [T - 1]."""
    hidden, _, _ = model(
        tokens[None],
        jnp.arange(len(tokens))[None],
        masks_lib.Masks(mask),
        attention.causal(1, len(tokens)),
    )
    return optax.softmax_cross_entropy_with_integer_labels(
        model.unembed(hidden)[0, :-1], tokens[1:]
    )


def _answer_nll(model, mask, example, width):
    """Of one example, not packed; what pads it up to one width, nothing sees."""
    tokens = np.zeros(width, np.int32)
    tokens[: len(example.tokens)] = example.tokens
    nll = np.asarray(_next_nll(model, mask, tokens))
    return nll[example.answer_start - 1 : len(example.tokens) - 1]


def test_steps_have_one_prompt_each_and_the_loss_of_their_examples(
    chatty_model, tmp_path, capfd
):
    # A learning rate that flips nothing: every step's mask is the start mask.
    cfg = _settings(chatty_model, tmp_path / 'run', learning_rate=1e-12)
    rows = _rows(cfg, (20, 13))
    loop.learn_mask(cfg, rows, [])
    said = capfd.readouterr().err
    assert '2 system prompts; each step draws from one of them.' in said
    logged = [
        json.loads(line)['loss'] for line in (tmp_path / 'run/metrics.jsonl').open()
    ]
    start = pmask.load(tmp_path / 'run' / 'results' / 'start_mask.pmask').mask

    run = _run(cfg, rows)
    train = run.data.train
    assert len({train[batch[0]].persona for _, batch in run.batches}) == 2
    model = loading.load_decoder(run.base.reader, run.base.config, dtype=jnp.float32)
    mask = jnp.asarray(start, jnp.float32)
    width = max(len(example.tokens) for example in train)
    for (_, batch), loss in zip(run.batches, logged, strict=True):
        assert len({train[i].persona for i in batch}) == 1
        nll = [_answer_nll(model, mask, train[i], width) for i in batch]
        assert loss == pytest.approx(np.concatenate(nll).mean(), rel=1e-5)


def test_steps_share_the_whole_prompt(chatty_model, tmp_path):
    cfg = _settings(chatty_model, tmp_path / 'run')
    run = _run(cfg, _rows(cfg, (20, 13)))
    for group in run.groups:
        own = [run.data.train[i] for i in group.examples]
        assert group.prefix == packing.common_prefix(own)
        assert group.prefix > 2 * run.data.prefix


def test_a_prompt_with_fewer_rows_than_a_batch_is_mixed_with_the_others(
    chatty_model, tmp_path
):
    cfg = _settings(chatty_model, tmp_path / 'run')
    run = _run(cfg, _rows(cfg, (20, 3)))
    (group,) = run.groups
    assert group.prefix == run.data.prefix
    seen = np.unique(np.concatenate([batch for _, batch in run.batches]))
    assert {run.data.train[i].persona for i in seen} == {
        example.persona for example in run.data.train
    }


def test_epochs_count_the_batches_of_every_prompt(chatty_model, tmp_path):
    cfg = _settings(chatty_model, tmp_path / 'run', steps=None, epochs=2)
    run = _run(cfg, _rows(cfg, (18, 7)))
    # 4 and 1 batches of 4 an epoch.
    assert run.total == 10
    assert [number for number, _ in run.batches].count(1) == 2
