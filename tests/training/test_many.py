"""Many personas in one run: each mask is that of a run of its own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.data import chat, packing
from ppjax.masking import pmask
from ppjax.models import base_model, loading
from ppjax.training import config, loop, turns
from ppjax.training import step as step_lib

# Of an entry of a stage, what others beside it must not move.
_FIGURES = {
    'train': ('loss', 'grad_norm', 'learning_rate'),
    'heldout': ('heldout_nll',),
}


def _names():
    return tuple(demo.personas())


def _settings(model, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': 'demo:{persona}',
        'heldout': 'demo:{persona}',
        'output_dir': str(output),
        'personas': ','.join(_names()),
        'personas_per_step': 2,
        'align': 1,
        'batch_size': 4,
        'steps': 5,
        'heldout_every': 5,
        'checkpoint_every': 2,
    }
    return config.TrainConfig(**(values | changes))


def _rows(cfg):
    return (
        demo.read_rows(cfg.calibration, split='train')[:16],
        demo.read_rows(cfg.heldout, split='test')[:4],
    )


def _learn(cfg):
    return loop.learn_masks(
        cfg, {name: _rows(cfg.of_persona(name)) for name in cfg.persona_names}
    )


def _metrics(run):
    return [json.loads(line) for line in (run / 'metrics.jsonl').open()]


@pytest.fixture(scope='module')
def finished(chatty_model, tmp_path_factory):
    run = tmp_path_factory.mktemp('many') / 'run'
    cfg = _settings(chatty_model, run)
    return cfg, run, _learn(cfg)


def test_masks_equal_those_of_single_runs(finished, chatty_model, tmp_path):
    cfg, _, masks = finished
    assert list(masks) == list(_names())
    found = {}
    for name, path in masks.items():
        own = cfg.of_persona(name)
        single = dataclasses.replace(own, output_dir=str(tmp_path / name))
        alone = loop.learn_mask(single, *_rows(single))
        found[name] = pmask.load(path)
        np.testing.assert_array_equal(found[name].mask, pmask.load(alone).mask)
        assert found[name].system_prompt == pmask.load(alone).system_prompt
        for joint_entry, own_entry in zip(
            _metrics(path.parent), _metrics(alone.parent), strict=True
        ):
            figures = _FIGURES[own_entry['stage']]
            assert [joint_entry[x] for x in figures] == pytest.approx(
                [own_entry[x] for x in figures], rel=1e-4
            )
        joint_nll, own_nll = (
            json.loads((folder / 'results/likelihood.json').read_text())['models']
            for folder in (path.parent, alone.parent)
        )
        for model, value in own_nll.items():
            assert joint_nll[model]['nll'] == pytest.approx(value['nll'], rel=1e-5)
    different = [
        (found[a].mask != found[b].mask).any() for a in found for b in found if a != b
    ]
    assert all(different)


def test_each_persona_has_an_ordinary_run_directory(finished):
    _, run, masks = finished
    status = json.loads((run / 'status.json').read_text())
    assert (status['state'], status['step']) == ('done', 8)
    for name, path in masks.items():
        assert path == run / 'personas' / name / 'mask.pmask'
        for file in ('config.flags', 'results/start_mask.pmask'):
            assert (path.parent / file).is_file()
        text = (path.parent / 'config.flags').read_text()
        assert f'--calibration=demo:{name}\n' in text
        assert '--personas=' not in text


def test_one_killed_before_it_said_that_it_was_done_says_so_later(finished):
    cfg, run, _ = finished
    status = run / 'personas' / _names()[-1] / 'status.json'
    before = json.loads(status.read_text())
    status.unlink()
    _learn(cfg)
    after = json.loads(status.read_text())
    for name in ('state', 'step', 'total_steps'):
        assert after[name] == before[name]
    assert after['state'] == 'done'


def test_paused_and_resumed_run_is_bit_identical(finished, chatty_model, tmp_path):
    _, _, masks = finished
    run = tmp_path / 'paused'
    assert _learn(_settings(chatty_model, run, stop_after=3)) is None
    again = _learn(_settings(chatty_model, run))
    for name, path in again.items():
        np.testing.assert_array_equal(
            pmask.load(path).mask, pmask.load(masks[name]).mask
        )
        ours, theirs = (
            [(e['step'], e.get('loss'), e.get('heldout_nll')) for e in _metrics(x)]
            for x in (path.parent, masks[name].parent)
        )
        assert ours == theirs


def test_personas_of_different_size_take_their_own_number_of_steps(
    chatty_model, tmp_path
):
    first, second, _ = _names()
    cfg = _settings(
        chatty_model,
        tmp_path / 'run',
        personas=f'{first},{second}',
        steps=None,
        epochs=1.0,
    )
    sizes = {first: 8, second: 16}
    rows = {}
    for name, size in sizes.items():
        train, heldout = _rows(cfg.of_persona(name))
        rows[name] = (train[:size], heldout)
    masks = loop.learn_masks(cfg, rows)
    for name, size in sizes.items():
        steps = [e['step'] for e in _metrics(masks[name].parent) if 'loss' in e]
        assert steps == list(range(1, size // 4 + 1))


def test_a_persona_without_a_slot_is_not_moved(chatty_model):
    base = base_model.open_base_model(str(chatty_model))
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    renderer = chat.ChatRenderer(base.tokenizer(), date='2026-01-01')
    examples, _ = chat.render_rows(renderer, demo.rows('ferryman', 'train')[:4], 1024)
    batch = np.arange(4)
    shape = packing.plan_shape(
        examples, [batch], prefix=packing.common_prefix(examples)
    )
    packed = packing.pack(examples, batch, shape)
    learning = step_lib.Learning(
        keep=24,
        estimator='ste',
        objective='ce',
        anneal=0.0,
        weight_decay=0.5,
        remat='none',
        seed=0,
    )
    train_step = step_lib.make_train_step(learning, shape)
    scores = jax.random.normal(jax.random.key(0), (3, 2, 40))
    state = step_lib.init_state(scores, learning)
    empty = jax.tree.map(np.zeros_like, packed)
    slots = jax.tree.map(lambda *x: np.stack(x), packed, empty)
    turn = turns.make_turn([2], [0, 0, 0], [5, 5, 5], [lambda step: 0.1] * 3, 2)
    assert turn.persona.tolist() == [2, 0]
    new, _ = train_step(state, model, slots, turn)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(before[:2], after[:2])
        assert (np.asarray(before[2]) != np.asarray(after[2])).any()


@pytest.mark.parametrize(
    ('totals', 'per_step'), [([5, 5, 5], 2), ([1, 9, 2], 2), ([3], 4), ([2] * 7, 3)]
)
def test_turns_give_every_persona_its_steps(totals, per_step):
    plan = turns.plan_turns(totals, per_step)
    assert all(0 < len(turn) <= per_step for turn in plan)
    for persona, total in enumerate(totals):
        own = [turn[persona] for turn in plan if persona in turn]
        assert own == list(range(total))
    # No plan is shorter.
    assert len(plan) == max(*totals, -(-sum(totals) // per_step), 0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'personas': 'a,a'}, 'names one twice'),
        ({'personas': 'a,../b'}, r"'../b' is no name"),
        ({'calibration': 'x.jsonl'}, r'--calibration must hold \{persona\}'),
        ({'heldout': 'x.jsonl'}, r'--heldout must hold \{persona\}'),
        ({'personas_per_step': 0}, '--personas_per_step must be at least 1'),
    ],
)
def test_bad_settings_are_named(chatty_model, tmp_path, changes, message):
    with pytest.raises(errors.InputError, match=message):
        _settings(chatty_model, tmp_path / 'run', **changes)


def test_an_unknown_persona_is_named(chatty_model, tmp_path):
    cfg = _settings(chatty_model, tmp_path / 'run', personas='nobody')
    with pytest.raises(errors.InputError, match="no demo persona 'nobody'"):
        _learn(cfg)
    assert not (tmp_path / 'run').exists()
