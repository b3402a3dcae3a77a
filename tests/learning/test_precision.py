"""What float32 means: products of it are exact, and sums over tokens are made in it."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.learning import measure
from ppjax.masking import granularity, score_init
from ppjax.models import attention, products, shared_prefix
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.recovery import lora
from ppjax.synthesis import sensitivity
from ppjax.training import step as step_lib
from ppjax.training import turns

_PACKAGE = pathlib.Path(products.__file__).parents[1]
_HIGHEST = jax.lax.Precision.HIGHEST


@pytest.fixture(scope='module')
def packed(make_examples):
    examples = make_examples(8, prefix=6)
    shape = packing.plan_shape(
        examples, [np.arange(8)], prefix=packing.common_prefix(examples), rows=2
    )
    return packing.pack(examples, np.arange(8), shape), shape


def _model(tiny_models, dtype, *, int8_matrices=False):
    cfg = tiny_models('qwen3-biased').config
    return decoder_lib.Decoder(
        cfg, dtype=dtype, key=jax.random.key(0), int8_matrices=int8_matrices
    )


def _train(model, packed, *, objective='ce+kl', estimator='ste', kind='channels'):
    """(step, its arguments)."""
    batch, shape = packed
    learning = step_lib.Learning(
        keep=2,
        estimator=estimator,
        objective=objective,
        anneal=0.0,
        weight_decay=0.01,
        remat='dots',
        seed=0,
        granularity=kind,
    )
    step = step_lib.make_train_step(learning, shape)
    size = granularity.KINDS[kind].shape(model.cfg.num_layers, model.cfg.d_ff)
    state = step_lib.init_state(jnp.zeros((1, *size)), learning)
    turn = turns.make_turn([0], [0], [6], [lambda step: 1e-2], 1)
    return step, (state, model, jax.tree.map(lambda x: x[None], batch), turn)


def _weight_gradient(packed):
    """A recovery step's gradient, by whatever is trained: (function of a model)."""
    batch, shape = packed
    rows = batch.first()

    def loss(model):
        losses = loss_lib.answer_losses(
            model, masks_lib.DENSE, rows, shape, remat='dots', objective='ce'
        )
        return jnp.sum(losses * rows.weights)

    return jax.grad(loss, allow_int=True)


def _programs(tiny_models, packed, dtype):
    """Name -> (function, its arguments): all that runs a decoder or scores it."""
    batch, shape = packed
    model = _model(tiny_models, dtype)
    adapters = lora.init_adapters(model.cfg, list(lora.TARGETS), 2, jax.random.key(3))
    narrow = jnp.zeros((3, 1, 2, 8), dtype)
    cache = shared_prefix.empty_cache(model, 1, 16)
    tokens = jnp.zeros((1, 4), jnp.int32)

    def cached(model, attend):
        hidden, *_ = model(tokens, tokens, masks_lib.DENSE, attend, cache=cache)
        return model.unembed(hidden)

    squares = measure.make_gradient_squares(shape, 'dots', granularity.BLOCKS)
    return {
        'train': _train(model, packed),
        'blocks': _train(model, packed, kind='blocks'),
        'soft': _train(model, packed, estimator='soft_topk'),
        'int8': _train(_model(tiny_models, dtype, int8_matrices=True), packed),
        'recovery': (_weight_gradient(packed), (model,)),
        'adapters': (
            lambda pairs: _weight_gradient(packed)(lora.adapt(model, pairs, 2.0)),
            (adapters,),
        ),
        'activation': (
            measure.make_tap_sums(shape, score_init.square_sum_tap),
            (model, batch, 6, 0.1),
        ),
        'influence': (
            measure.make_tap_sums(shape, score_init.cosine_sum_tap),
            (model, batch, 6, 0.1),
        ),
        'taylor': (squares, (model, batch)),
        'cached': (lambda model: cached(model, attention.Cached(tokens)), (model,)),
        'prompt': (
            lambda model: cached(model, attention.Prompt(tokens, 4, jnp.int32(2))),
            (model,),
        ),
        'prefixed': (
            lambda model: cached(model, attention.Prefixed(jnp.int32(2), tokens + 1)),
            (model,),
        ),
        'sensitivity': (
            lambda x: sensitivity._distance(x, x, first=1, last=3),
            (narrow,),
        ),
    }


def _inexact(found):
    """Products of float32 that a device may round."""
    return [
        equation
        for equation in found
        if equation.primitive.name in ('dot_general', 'conv_general_dilated')
        and equation.invars[0].aval.dtype == jnp.float32
        and equation.params['precision'] != (_HIGHEST, _HIGHEST)
    ]


def _narrow_sums(found):
    """Sums that are made in less than float32."""
    return [
        equation
        for equation in found
        if equation.primitive.name in ('reduce_sum', 'cumsum', 'dot_general')
        and equation.outvars[0].aval.dtype == jnp.bfloat16
        # Not where an axis of one is dropped.
        and equation.outvars[0].aval.size != equation.invars[0].aval.size
    ]


def test_float32_products_are_exact_in_every_program(tiny_models, packed, equations):
    programs = _programs(tiny_models, packed, jnp.float32)
    for name, (function, args) in programs.items():
        found = equations(function, *args)
        assert any(x.primitive.name == 'dot_general' for x in found), name
        assert not _inexact(found), name
    step, args = programs['train']
    lowered = step.lower(*args).as_text()
    lines = [line for line in lowered.splitlines() if 'stablehlo.dot_general' in line]
    assert lines
    assert all('precision = [HIGHEST, HIGHEST]' in line for line in lines)


def test_sums_are_float32_whatever_the_activations_are(tiny_models, packed, equations):
    for name, (function, args) in _programs(tiny_models, packed, jnp.bfloat16).items():
        assert not _narrow_sums(equations(function, *args)), name


def test_a_table_gets_its_gradient_in_float32(tiny_models, packed, equations):
    model = _model(tiny_models, jnp.bfloat16)
    spread = [
        equation.outvars[0].aval
        for equation in equations(_weight_gradient(packed), model)
        if equation.primitive.name == 'scatter-add'
    ]
    tables = [x for x in spread if x.shape == model.embedding[...].shape]
    assert [x.dtype for x in tables] == [jnp.float32]


def test_what_is_not_exact_would_be_found(tiny_models, packed, equations, monkeypatch):
    plain = jnp.einsum

    def rounded(equation, x, y, precision=None, **options):
        return plain(equation, x, y, **options)

    monkeypatch.setattr(products.jnp, 'einsum', rounded)
    step, args = _train(_model(tiny_models, jnp.float32), packed)
    assert _inexact(equations(step, *args))
    monkeypatch.undo()
    monkeypatch.setattr(products, 'scaled', lambda x, by: x * by.astype(x.dtype))
    step, args = _train(_model(tiny_models, jnp.bfloat16), packed)
    assert _narrow_sums(equations(step, *args))


def test_a_long_sum_keeps_its_small_terms():
    """4,097 tokens that each add 1 to a mask bit: bfloat16 stops at 256."""
    x = jnp.ones((1, 4097, 2), jnp.bfloat16)

    def total(by):
        return jnp.sum(products.scaled(x, by[None, None, :]).astype(jnp.float32))

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(2)), 4097)

    def looked_up(table):
        tokens = jnp.zeros(4097, jnp.int32)
        return jnp.sum(products.looked_up(table, tokens).astype(jnp.float32))

    got = jax.grad(looked_up)(jnp.ones((3, 2), jnp.bfloat16))
    np.testing.assert_array_equal(got[0], jnp.bfloat16(4097))
    np.testing.assert_array_equal(got[1:], 0)


def test_products_are_made_in_one_place():
    names = {'einsum', 'dot', 'matmul', 'tensordot', 'vdot', 'dot_general', 'inner'}
    makers = {
        str(path.relative_to(_PACKAGE))
        for path in _PACKAGE.rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and getattr(node.value, 'id', getattr(node.value, 'attr', '')) != 'np'
    }
    # The other measures what a device's products reach.
    assert makers == {'models/products.py', 'benchmarking/matrix_peak.py'}
