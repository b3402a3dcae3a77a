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
    shape = packing.plan_shape(
        examples,
        batches,
        prefix=packing.common_prefix(examples),
        micro_batches=micro_batches,
    )
    schedule = make_schedule(learning_rate=1e-2, warmup=0.03, num_steps=6)
    learning = _learning(**changes)
    train_step = step_lib.make_train_step(learning, shape)
    scores = jax.random.normal(jax.random.key(0), (1, 2, 40)) * 0.05
    state = step_lib.init_state(scores, learning)
    history = []
    for index in range(steps):
        batch = packing.pack(examples, batches[0 if same else index], shape)
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


def _weight_shapes(model):
    """Of single matrices: the axis of layers is scanned over."""
    tables = {model.embedding[...].shape, model.head[...].shape}
    blocks = {x.shape[1:] for x in jax.tree.leaves(model.blocks)}
    return {tuple(sorted(shape)) for shape in tables | blocks if len(shape) == 2}


def _made(equations, model, make_examples):
    """Shapes that a step sums or multiplies into, without the axes of one."""
    examples = make_examples(8, prefix=6)
    shape = packing.plan_shape(
        examples, [np.arange(8)], prefix=packing.common_prefix(examples)
    )
    learning = _learning()
    train_step = step_lib.make_train_step(learning, shape)
    state = step_lib.init_state(jnp.zeros((1, 3, 52)), learning)
    batch = _first_slot(packing.pack(examples, np.arange(8), shape))
    return {
        tuple(sorted(size for size in variable.aval.shape if size > 1))
        for equation in equations(
            train_step, state, model, batch, _turn(0, lambda step: 1e-2)
        )
        if equation.primitive.name in ('dot_general', 'scatter-add', 'add_any')
        for variable in equation.outvars
    }


def test_the_step_forms_no_weight_gradient(
    tiny_models, make_examples, equations, monkeypatch
):
    """Nothing of any weight's size is made; it is where weights are differentiated."""
    model = tiny_models('llama').decoder
    weights = _weight_shapes(model)
    assert len(weights) == 4
    assert not weights & _made(equations, model, make_examples)

    plain = jax.value_and_grad

    def with_weights(loss):
        def both(values, model, *args):
            value, (grad, of_model) = plain(loss, argnums=(0, 1))(values, model, *args)
            norm = sum(jnp.sum(x) for x in jax.tree.leaves(of_model))
            return value, jax.tree.map(lambda x: x + 0 * norm, grad)

        return both

    monkeypatch.setattr(step_lib.jax, 'value_and_grad', with_weights)
    assert weights <= _made(equations, model, make_examples)
