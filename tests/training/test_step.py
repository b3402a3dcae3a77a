"""The optimizer step: what it changes and how often it compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.data import chat, order, packing
from ppjax.learning.schedule import make_schedule
from ppjax.models import base_model, loading
from ppjax.training import step as step_lib
from ppjax.training import turns

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


def _learning(**changes):
    values = {
        'keep': _KEEP,
        'estimator': 'ste',
        'objective': 'ce',
        'anneal': 0.0,
        'weight_decay': 0.01,
        'remat': 'dots',
        'seed': 0,
    }
    return step_lib.Learning(**(values | changes))


def _turn(step, schedule, *, total=6):
    return turns.make_turn([0], [step], [total], [schedule], 1)


def _first_slot(batch):
    return jax.tree.map(lambda x: x[None], batch)


def _run(setting, *, micro_batches=1, steps=6, same=False, **changes):
    model, examples, batches = setting
    layout = packing.plan_layout(
        examples,
        batches,
        prefix=packing.common_prefix(examples),
        micro_batches=micro_batches,
    )
    schedule = make_schedule(learning_rate=1e-2, warmup=0.03, num_steps=6)
    learning = _learning(**changes)
    train_step = step_lib.make_train_step(
        learning, prefix=len(layout.prefix), chunk=layout.chunk
    )
    scores = jax.random.normal(jax.random.key(0), (1, 2, 40)) * 0.05
    state = step_lib.init_state(scores, learning)
    history = []
    for index in range(steps):
        batch = packing.pack(examples, batches[0 if same else index], layout)
        state, metrics = train_step(
            state, model, _first_slot(batch), _turn(index, schedule)
        )
        history.append(jax.tree.map(lambda x: x[0], jax.device_get(metrics)))
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
    train_step = step_lib.make_train_step(
        _learning(), prefix=len(layout.prefix), chunk=layout.chunk
    )
    state = step_lib.init_state(jnp.zeros((1, 2, 40)), _learning())
    batch = _first_slot(packing.pack(examples, batches[0], layout))
    turn = _turn(0, lambda step: 1e-2)
    jaxpr = jax.make_jaxpr(train_step)(state, model, batch, turn)
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
