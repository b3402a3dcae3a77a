"""The optimizer step: what it changes, how often it compiles, its schedule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo, errors
from ppjax.data import chat, order, packing
from ppjax.models import base_model, loading
from ppjax.training import loop
from ppjax.training import step as step_lib

_KEEP = 24


@pytest.fixture(scope='module')
def setting(chatty_model):
    base = base_model.open_base_model(str(chatty_model))
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    renderer = chat.ChatRenderer(base.tokenizer(), date='2026-01-01')
    examples, _ = chat.render_rows(renderer, demo.rows('ferryman', 'train')[:24], 1024)
    lengths = np.array([len(example.tokens) for example in examples])
    batches = order.all_steps(0, 6, 8, lengths)
    return model, examples, batches


def _run(setting, *, micro_batches=1, steps=6, same=False):
    model, examples, batches = setting
    layout = packing.plan_layout(
        examples,
        batches,
        prefix=packing.common_prefix(examples),
        micro_batches=micro_batches,
    )
    optimizer, _ = step_lib.make_optimizer(
        learning_rate=1e-2, weight_decay=0.01, warmup=0.03, num_steps=6
    )
    train_step = step_lib.make_train_step(
        optimizer, keep=_KEEP, layout=layout, remat='dots'
    )
    scores = jax.random.normal(jax.random.key(0), (2, 40)) * 0.05
    state = step_lib.TrainState(scores, optimizer.init(scores))
    history = []
    for index in range(steps):
        batch = packing.pack(examples, batches[0 if same else index], layout)
        state, metrics = train_step(state, model, batch)
        history.append(jax.device_get(metrics))
    return train_step, state, history


def test_step_compiles_once_in_a_run(setting):
    train_step, _, _ = _run(setting)
    assert train_step._cache_size() == 1


def test_the_loss_falls_and_the_model_does_not_change(setting):
    model = setting[0]
    before = jax.tree.map(np.array, jax.tree.leaves(model))
    _, state, history = _run(setting, same=True)
    assert history[-1].loss < history[0].loss - 0.01
    assert any(0 < metrics.flip_fraction < 0.5 for metrics in history)
    for old, new in zip(before, jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert state.scores.dtype == jnp.float32


def test_gradient_accumulation_changes_nothing(setting):
    _, whole, first = _run(setting, steps=1)
    _, pieces, second = _run(setting, micro_batches=2, steps=1)
    np.testing.assert_allclose(first[0].loss, second[0].loss, rtol=1e-6)
    np.testing.assert_allclose(first[0].grad_norm, second[0].grad_norm, rtol=1e-5)
    # Adam's first step is the gradient's sign: only near-zero gradients may differ.
    np.testing.assert_allclose(whole.scores, pieces.scores, atol=1e-4)


def test_the_step_holds_no_weight_gradient(setting):
    """No float array as large as the embedding is made, but the embedding's own."""
    model, examples, batches = setting
    layout = packing.plan_layout(
        examples, batches, prefix=packing.common_prefix(examples)
    )
    optimizer, _ = step_lib.make_optimizer(
        learning_rate=1e-2, weight_decay=0.01, warmup=0.03, num_steps=6
    )
    train_step = step_lib.make_train_step(
        optimizer, keep=_KEEP, layout=layout, remat='dots'
    )
    scores = jnp.zeros((2, 40))
    state = step_lib.TrainState(scores, optimizer.init(scores))
    batch = packing.pack(examples, batches[0], layout)
    jaxpr = jax.make_jaxpr(train_step)(state, model, batch)
    width = model.embedding[...].shape
    made = [
        variable.aval.shape
        for equation in _equations(jaxpr.jaxpr)
        if equation.primitive.name in ('dot_general', 'scatter-add', 'add_any')
        for variable in equation.outvars
    ]
    weights = {width, width[::-1], (24, 40), (40, 24), (24, 32), (32, 24), (24, 16)}
    assert made
    assert not weights & set(made)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple) else (parameter,):
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from _equations(inner)


def test_schedule_warms_up_then_falls_to_zero():
    _, schedule = step_lib.make_optimizer(
        learning_rate=1e-2, weight_decay=0.01, warmup=0.03, num_steps=100
    )
    rates = [float(schedule(step)) for step in range(101)]
    np.testing.assert_allclose(rates[:3], [1e-2 / 3, 2e-2 / 3, 1e-2], rtol=1e-6)
    assert rates[3] == pytest.approx(1e-2)
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))
    assert rates[100] == pytest.approx(0, abs=1e-9)
    middle = 3 + 97 / 2
    assert np.interp(middle, range(101), rates) == pytest.approx(5e-3, rel=1e-2)


def test_non_finite_loss_names_step_and_examples():
    metrics = step_lib.StepMetrics(np.float32('nan'), np.float32(1), np.float32(0))
    with pytest.raises(errors.InputError, match=r'Step 7: .*a-1, b-2'):
        loop.check_finite(metrics, 7, ['a-1', 'b-2'])
    loop.check_finite(
        step_lib.StepMetrics(np.float32(2), np.float32(1), np.float32(0)), 7, []
    )
