"""Mask learning on eight devices against one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.data import order, packing
from ppjax.learning import schedule
from ppjax.masking import pmask, topk
from ppjax.models import decoder as decoder_lib
from ppjax.models import weights
from ppjax.parallel import sharding
from ppjax.training import config, loop, turns
from ppjax.training import step as step_lib

_STEPS, _BATCH, _KEEP = 10, 8, 26
_MESHES = {
    'llama': ('data:8', 'fsdp:8', 'fsdp:4,tensor:2', 'data:2,fsdp:2,tensor:2'),
    # Its biases are split along these axes too.
    'qwen2': ('fsdp:8', 'data:2,fsdp:2,tensor:2'),
}
_LEARNING = step_lib.Learning(
    keep=_KEEP,
    estimator='ste',
    objective='ce',
    anneal=0.0,
    weight_decay=0.01,
    remat='dots',
    seed=0,
)
# Scores that sums in another order may put on either side of the k-th.
_TIE = 1e-3


@dataclasses.dataclass(frozen=True)
class _Learned:
    losses: np.ndarray  # [steps]
    gradient: np.ndarray  # of the first step, [L, F]
    scores: np.ndarray  # [L, F]
    spec: Any  # of a weight that a mesh splits


def _learn(cfg, examples, mesh) -> _Learned:
    decoder = decoder_lib.Decoder(cfg, dtype=jnp.float32, key=jax.random.key(2))
    if mesh is not None:
        placed = sharding.place(weights.weights_of(decoder), mesh)
        decoder = weights.decoder_of(cfg, placed)
    lengths = np.array([len(example.tokens) for example in examples])
    batches = order.all_steps(0, _STEPS, _BATCH, lengths)
    shape = packing.plan_shape(
        examples,
        batches,
        prefix=packing.common_prefix(examples),
        rows=1 if mesh is None else sharding.row_shards(mesh),
    )
    step = step_lib.make_train_step(_LEARNING, shape, mesh=mesh)
    start = jax.random.normal(jax.random.key(0), (1, cfg.num_layers, cfg.d_ff)) * 0.05
    state = step_lib.init_state(start, _LEARNING)
    rate = schedule.make_schedule(learning_rate=1e-2, warmup=0.03, num_steps=_STEPS)
    losses, gradient = [], None
    for number, chosen in enumerate(batches):
        packed = packing.pack(examples, chosen, shape)
        batch = jax.tree.map(lambda x: x[None], packed)
        turn = turns.make_turn([0], [number], [_STEPS], [rate], 1)
        state, metrics = step(state, decoder, batch, turn)
        losses.append(float(metrics.loss[0]))
        if gradient is None:
            # Adam's first moment is a tenth of the first gradient.
            gradient = 10 * np.asarray(state.optimizer[0].mu[0])
    return _Learned(
        np.array(losses),
        gradient,
        np.asarray(state.scores[0]),
        decoder.blocks.w_up.values[...].sharding,
    )


@pytest.fixture(scope='module')
def examples(make_examples):
    return make_examples(40, prefix=6)


@pytest.fixture(scope='module')
def one_device(tiny_models, examples):
    """Family -> (its config, what one device learns)."""
    found = {}
    for family in _MESHES:
        # Grouped queries; 104 divides by what meshes split a vocabulary into.
        cfg = dataclasses.replace(tiny_models(family).config, vocab_size=104)
        assert cfg.num_kv_heads < cfg.num_heads
        found[family] = cfg, _learn(cfg, examples, None)
    return found


@pytest.mark.parametrize(
    ('family', 'mesh'),
    [(family, mesh) for family, meshes in _MESHES.items() for mesh in meshes],
)
def test_eight_devices_learn_what_one_does(one_device, examples, family, mesh):
    cfg, one = one_device[family]
    eight = _learn(cfg, examples, sharding.make_mesh(mesh, jax.devices()))
    assert len(eight.spec.device_set) == 8
    assert eight.spec.is_fully_replicated == (mesh == 'data:8')
    np.testing.assert_allclose(eight.losses, one.losses, rtol=1e-5)
    error = np.linalg.norm(eight.gradient - one.gradient)
    assert error <= 1e-5 * np.linalg.norm(one.gradient)
    masks = [np.asarray(topk.topk_mask(x.scores, _KEEP)) for x in (eight, one)]
    ordered = np.sort(one.scores, axis=-1)
    threshold = ordered[:, -_KEEP : cfg.d_ff - _KEEP + 1]
    clear = np.abs(one.scores - threshold) > _TIE
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(masks[0][clear], masks[1][clear])


def _settings(model, files, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(output),
        'align': 1,
        'batch_size': 4,
        'steps': 4,
        'checkpoint_every': 2,
        'score_scale': 0.1,
    }
    return config.TrainConfig(**(values | changes))


def _run(cfg):
    train = demo.read_rows(cfg.calibration, split='train')
    heldout = demo.read_rows(cfg.heldout, split='test')
    return loop.learn_mask(cfg, train, heldout)


def test_a_run_goes_on_on_another_mesh(
    chatty_model, calibration_files, tmp_path, capfd
):
    whole = _run(_settings(chatty_model, calibration_files, tmp_path / 'one'))
    assert 'Devices:' not in capfd.readouterr().err
    broken = tmp_path / 'broken'
    first = _settings(
        chatty_model, calibration_files, broken, mesh='fsdp:8', stop_after=2
    )
    assert _run(first) is None
    assert 'Devices: fsdp 8.' in capfd.readouterr().err
    second = _settings(
        chatty_model, calibration_files, broken, mesh='data:2,fsdp:2,tensor:-1'
    )
    mask = _run(second)
    text = capfd.readouterr().err
    assert 'at step 2 of 4' in text
    assert 'Devices: data 2, fsdp 2, tensor 2.' in text
    ours, theirs = pmask.load(mask).mask, pmask.load(whole).mask
    # A tie, broken by rounding, moves two bits.
    assert (ours != theirs).sum() <= 2


def test_personas_side_by_side_on_a_mesh(chatty_model, calibration_files, tmp_path):
    names = list(demo.personas())[:2]
    rows = {
        name: (demo.rows(name, 'train')[:24], demo.rows(name, 'test')[:4])
        for name in names
    }

    def learn(folder, mesh):
        cfg = _settings(
            chatty_model,
            ('demo:{persona}', 'demo:{persona}'),
            tmp_path / folder,
            personas=','.join(names),
            mesh=mesh,
        )
        found = loop.learn_masks(cfg, rows)
        return [pmask.load(found[name]).mask for name in names]

    for ours, theirs in zip(
        learn('eight', 'data:4,fsdp:2'), learn('one', None), strict=True
    ):
        assert (ours != theirs).sum() <= 2


def test_a_mesh_that_does_not_fit_leaves_nothing(
    tiny_models, calibration_files, tmp_path
):
    cfg = _settings(
        tiny_models('llama').path,
        calibration_files,
        tmp_path / 'run',
        mesh='fsdp:4,tensor:2',
    )
    with pytest.raises(errors.InputError, match=r'embedding cannot be split.*97'):
        _run(cfg)
    assert not (tmp_path / 'run').exists()
