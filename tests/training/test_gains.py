"""Gains learned with a mask, and after it: the steps, and the runs."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.data import packing
from ppjax.learning import loss
from ppjax.masking import pmask, topk
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib
from ppjax.training import config, joint, loop, turns
from ppjax.training import run as run_lib
from ppjax.training import step as step_lib

_KEEP, _RATE, _GAIN_RATE, _DECAY = 24, 1e-2, 3e-2, 0.5


def _steps(tiny, make_examples, count, *, objective='ce', **changes):
    """States of `count` steps on one batch, the first state included."""
    examples = make_examples(8, prefix=6)
    shape = packing.plan_shape(
        examples, [np.arange(8)], prefix=packing.common_prefix(examples)
    )
    batch = packing.pack(examples, np.arange(8), shape)
    values: dict[str, Any] = {
        'keep': _KEEP,
        'estimator': 'ste',
        'objective': objective,
        'anneal': 0.0,
        'weight_decay': _DECAY,
        'remat': 'none',
        'seed': 0,
        'gains': True,
    }
    learning = step_lib.Learning(**(values | changes))
    size = tiny.config.num_layers, tiny.config.d_ff
    scores = jax.random.normal(jax.random.key(0), (1, *size)) * 0.05
    gains = 1 + jax.random.normal(jax.random.key(1), (1, *size)) * 0.3
    train_step = step_lib.make_train_step(learning, shape)
    states = [step_lib.init_state(scores, learning, gains)]
    for step in range(count):
        rate, gain_rate = [lambda _: _RATE], [lambda _: _GAIN_RATE]
        turn = turns.make_turn([0], [step], [count], rate, 1, gain_rate)
        first_slot = jax.tree.map(lambda x: x[None], batch)
        states.append(train_step(states[-1], tiny.decoder, first_slot, turn)[0])

    def of_channels(channels):
        losses = loss.answer_losses(
            tiny.decoder,
            masks_lib.Masks(channels=channels),
            batch.first(),
            shape,
            remat='none',
            objective=objective,
        )
        weights = batch.first().weights
        return jnp.sum(losses * weights) / jnp.sum(weights)

    return states, jax.jit(jax.grad(of_channels))


@pytest.mark.parametrize('objective', ['ce', 'ce+kl'])
def test_a_step_is_adams_of_both_gradients(tiny_models, make_examples, objective):
    (old, new), grad = _steps(
        tiny_models('llama'), make_examples, 1, objective=objective
    )
    z, g = np.asarray(old.scores[0]), np.asarray(old.gains[0])
    order = np.argsort(-z, axis=-1)[:, :_KEEP]
    mask = np.zeros(z.shape, np.float32)
    np.put_along_axis(mask, order, 1, axis=-1)
    of_c = np.asarray(grad(jnp.asarray(mask * g)))

    def direction(x):
        # Adam's first, without its bias.
        return x / (np.abs(x) + 1e-8)

    want = z - _RATE * (direction(of_c * g) + _DECAY * z)
    clear = np.abs(of_c * g) > 1e-5
    assert clear.mean() > 0.8
    np.testing.assert_allclose(new.scores[0][clear], want[clear], atol=1e-4, rtol=0)
    want = g - _GAIN_RATE * direction(of_c * mask)
    clear = (np.abs(of_c) > 1e-5) | (mask == 0)
    np.testing.assert_allclose(new.gains[0][clear], want[clear], atol=1e-4, rtol=0)


@pytest.mark.parametrize('estimator', ['ste', 'soft_topk'])
def test_after_its_steps_the_mask_stands_still(tiny_models, make_examples, estimator):
    states, grad = _steps(
        tiny_models('qwen2'), make_examples, 4, mask_steps=2, estimator=estimator
    )
    for before, after, moves in zip(
        states[:-1], states[1:], (True, True, False, False), strict=True
    ):
        old, new = ((x.scores, x.optimizer) for x in (before, after))
        same = jax.tree.map(np.array_equal, old, new)
        assert all(jax.tree.leaves(same)) != moves
        assert not np.array_equal(before.gains, after.gains)
    # Gains are learned for the mask that is exported, whatever the estimator draws.
    mask = topk.topk_mask(states[3].scores[0], _KEEP)
    moment = [x.gain_optimizer.mu[0] for x in states[3:]]
    of_gains = (moment[1] - 0.9 * moment[0]) / 0.1
    want = grad(mask * states[3].gains[0]) * mask
    np.testing.assert_allclose(of_gains, want, atol=1e-5, rtol=1e-4)


def test_without_gains_the_state_is_that_of_older_checkpoints():
    learning = step_lib.Learning(4, 'ste', 'ce', 0.0, 0.0, 'none', 0)
    state = step_lib.init_state(jnp.zeros((1, 2, 8)), learning)
    assert state._fields == ('scores', 'optimizer')
    assert state.gains is None
    # Nor does a turn have more arrays than before.
    turn = turns.make_turn([0], [0], [1], [lambda step: 1e-2], 1)
    assert len(jax.tree.leaves(turn)) == 5


def _settings(model, files, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(output),
        'align': 1,
        'batch_size': 4,
        'steps': 6,
        'checkpoint_every': 2,
        'heldout_every': 3,
        'gains': True,
        'mask_steps': 4,
        'gain_learning_rate': 0.1,
    }
    return config.TrainConfig(**(values | changes))


def _learn(cfg):
    train = demo.read_rows(cfg.calibration, split='train')
    return loop.learn_mask(cfg, train, demo.read_rows(cfg.heldout, split='test'))


@pytest.fixture(scope='module')
def finished(chatty_model, calibration_files, tmp_path_factory):
    run = tmp_path_factory.mktemp('gains') / 'whole'
    _learn(_settings(chatty_model, calibration_files, run))
    return run


def _measured(run, chatty_model, calibration_files, channels):
    """Nats a token of the run's held-out rows, by its own measurement."""
    cfg = _settings(chatty_model, calibration_files, run)
    base = base_model.open_base_model(cfg.base_model)
    rows = [demo.read_rows(f, split='test') for f in (cfg.calibration, cfg.heldout)]
    [own] = loop._runs(cfg, base, {'': (rows[0], rows[1])})
    [heldout] = joint.Joint([own], own.directory, loop._mesh(cfg, base))._heldouts()
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    return heldout.measure(model, channels).mean


def test_what_is_measured_is_what_the_file_says(
    finished, chatty_model, calibration_files
):
    mask = pmask.load(finished / 'mask.pmask')
    assert mask.gains is not None
    assert mask.gains.shape == (2, 30)
    assert np.abs(mask.gains - 1).mean() > 0.05
    found = json.loads((finished / 'results/likelihood.json').read_text())
    nll = [
        _measured(finished, chatty_model, calibration_files, own.decoder_masks())
        for own in (mask, dataclasses.replace(mask, gains=None))
    ]
    assert found['models']['learned']['nll'] == pytest.approx(nll[0], rel=1e-6)
    assert abs(nll[0] - nll[1]) > 1e-3
    lines = (finished / 'metrics.jsonl').read_text().splitlines()
    steps = [x for x in map(json.loads, lines) if x['stage'] == 'train']
    # The mask's schedule spans its own steps.
    assert [x['learning_rate'] > 0 for x in steps] == [True] * 4 + [False] * 2
    assert [x['flip_fraction'] for x in steps[4:]] == [0, 0]


def test_a_paused_run_goes_on_to_the_same_gains(
    finished, chatty_model, calibration_files, tmp_path
):
    run = tmp_path / 'run'
    cfg = _settings(chatty_model, calibration_files, run)
    assert _learn(dataclasses.replace(cfg, stop_after=3)) is None
    _learn(cfg)
    assert (run / 'mask.pmask').read_bytes() == (finished / 'mask.pmask').read_bytes()
    with pytest.raises(errors.InputError, match='gain_learning_rate'):
        _learn(dataclasses.replace(cfg, gain_learning_rate=0.2))


def test_a_mesh_learns_the_same(finished, chatty_model, calibration_files, tmp_path):
    cfg = _settings(
        chatty_model, calibration_files, tmp_path, mesh='data:2,fsdp:2,tensor:2'
    )
    ours, theirs = (pmask.load(x) for x in (_learn(cfg), finished / 'mask.pmask'))
    assert (ours.mask != theirs.mask).sum() <= 2
    both = ours.mask & theirs.mask
    np.testing.assert_allclose(
        ours.scaled()[both], theirs.scaled()[both], atol=2e-3, rtol=0
    )


def test_gains_of_a_given_mask(finished, chatty_model, calibration_files, tmp_path):
    """The mask stays as it is, and its gains are learned on."""
    start = finished / 'mask.pmask'
    cfg = _settings(
        chatty_model,
        calibration_files,
        tmp_path / 'run',
        score_init=str(start),
        mask_steps=0,
        steps=2,
    )
    given, learned = pmask.load(start), pmask.load(_learn(cfg))
    began = pmask.load(tmp_path / 'run/results/start_mask.pmask')
    for own in (began, learned):
        np.testing.assert_array_equal(own.mask, given.mask)
    np.testing.assert_array_equal(began.gains, given.gains)
    assert not np.array_equal(learned.gains, given.gains)
    # Other gains make another run.
    other = dataclasses.replace(given, gains=learned.gains)
    hashes = {run_lib.masks_hash([own], gains=True) for own in (given, other)}
    assert len(hashes) == 2
    bare = dataclasses.replace(given, gains=None)
    hashes = {run_lib.masks_hash([own], gains=False) for own in (given, other, bare)}
    assert len(hashes) == 1


def test_gains_of_several_masks_are_their_mean(
    finished, chatty_model, calibration_files, tmp_path
):
    given = pmask.load(finished / 'mask.pmask')
    without = dataclasses.replace(given, mask=given.mask[:, ::-1].copy(), gains=None)
    files = [tmp_path / f'{name}.pmask' for name in 'ab']
    for file, own in zip(files, (given, without), strict=True):
        pmask.save(file, own)
    cfg = _settings(
        chatty_model,
        calibration_files,
        tmp_path / 'run',
        score_init=','.join(map(str, files)),
        stop_after=1,
    )
    _learn(cfg)
    began = pmask.load(tmp_path / 'run/results/start_mask.pmask')
    want = np.ones(given.mask.shape)
    want[given.mask] = given.gains.reshape(-1)
    both = given.mask & without.mask
    want[both] = (want[both] + 1) / 2
    np.testing.assert_array_equal(
        began.gains, want[began.mask].astype(np.float16).reshape(began.gains.shape)
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'granularity': 'blocks', 'mask_steps': None}, 'gains are of channels'),
        ({'gains': False}, '--mask_steps leaves'),
        ({'mask_steps': -1}, 'mask_steps'),
    ],
)
def test_refused(changes, message):
    with pytest.raises(errors.InputError, match=message):
        _settings('m', ('a', 'b'), 'out', **changes)
