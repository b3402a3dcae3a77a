"""Products with float32 accumulation against float64 and against the plain einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.models import products

_LINEAR = ('btd,df->btf', (2, 5, 24), (24, 7))
_TABLE = ('td,vd->tv', (6, 24), (11, 24))
_LOGITS = ('bkth,bskh->bkts', (2, 3, 4, 8), (2, 5, 3, 8))
_ALL = pytest.mark.parametrize('shapes', [_LINEAR, _TABLE, _LOGITS])


def _operands(shapes, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    equation, left, right = shapes
    x = jax.random.normal(keys[0], left).astype(dtype)
    y = jax.random.normal(keys[1], right).astype(dtype)
    out = jax.eval_shape(lambda: jnp.einsum(equation, x, y)).shape
    return equation, x, y, jax.random.normal(keys[2], out).astype(dtype)


def _gradients(function, x, y, cotangent):
    found, pull = jax.vjp(function, x, y)
    return found, *pull(cotangent.astype(found.dtype))


@_ALL
def test_float32_is_the_plain_einsum(shapes):
    equation, x, y, cotangent = _operands(shapes, jnp.float32)
    got = _gradients(lambda x, y: products.product(equation, x, y), x, y, cotangent)
    want = _gradients(lambda x, y: jnp.einsum(equation, x, y), x, y, cotangent)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@_ALL
@pytest.mark.parametrize('out', [jnp.bfloat16, jnp.float32])
def test_bfloat16_is_rounded_once(shapes, out):
    equation, x, y, cotangent = _operands(shapes, jnp.bfloat16)
    got = _gradients(
        lambda x, y: products.product(equation, x, y, out), x, y, cotangent
    )
    left, right = equation.split('->')[0].split(',')
    result = equation.split('->')[1]
    x, y, cotangent = (np.asarray(a, np.float64) for a in (x, y, cotangent))
    want = [
        np.einsum(equation, x, y),
        np.einsum(f'{result},{right}->{left}', cotangent, y),
        np.einsum(f'{result},{left}->{right}', cotangent, x),
    ]
    assert [a.dtype for a in got] == [out, jnp.bfloat16, jnp.bfloat16]
    for one, other in zip(got, want, strict=True):
        # Half a unit in the last of bfloat16's 8 bits; float32's sums add next to
        # nothing, save where terms cancel.
        step = 2.0**-8 if one.dtype == jnp.bfloat16 else 2.0**-20
        np.testing.assert_allclose(
            np.asarray(one, np.float64), other, rtol=step, atol=1e-5
        )


def test_a_frozen_weight_gets_no_gradient():
    equation, x, y, _ = _operands(_LINEAR, jnp.bfloat16)

    def loss(x, y):
        return jnp.sum(products.product(equation, x, y, jnp.float32) ** 2)

    def dots(jaxpr):
        return str(jaxpr).count('dot_general')

    assert dots(jax.make_jaxpr(jax.grad(loss))(x, y)) == 2
    assert dots(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, y)) == 3


def test_the_backward_products_are_narrow_too(equations):
    equation, x, y, _ = _operands(_LINEAR, jnp.bfloat16)

    def loss(x):
        return jnp.sum(products.product(equation, x, y, jnp.float32) ** 2)

    found = [
        eqn
        for eqn in equations(jax.grad(loss), x)
        if eqn.primitive.name == 'dot_general'
    ]
    assert len(found) == 2
    for eqn in found:
        assert [var.aval.dtype for var in eqn.invars] == [jnp.bfloat16] * 2
        assert eqn.outvars[0].aval.dtype == jnp.float32


def test_mixed_operands_are_refused():
    with pytest.raises(TypeError, match='float32 and bfloat16'):
        products.product('td,vd->tv', jnp.ones((2, 3)), jnp.ones((4, 3), jnp.bfloat16))


@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('rows', [1, 3, products.FEW_ROWS, products.FEW_ROWS + 1])
def test_products_with_int8(rows, transposed):
    rng = np.random.default_rng(rows)
    # One column much larger than the others, as a stream has.
    x = rng.normal(size=(rows, 96)).astype(np.float32)
    x[:, 5] *= 50
    w = rng.integers(-127, 128, (96, 40)).astype(np.int8)
    found = jax.jit(products.with_int8, static_argnames='transposed')(
        x, w.T if transposed else w, transposed=transposed
    )
    want = x.astype(np.float64) @ w
    # Half of a finer step in every column, and float32's own rounding.
    limit = np.abs(x).max(axis=1) / 64516 * np.abs(w.astype(int)).sum(axis=0).max()
    assert found.dtype == jnp.float32
    assert (np.abs(found - want) <= 1.01 * limit[:, None]).all()
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-4 * np.abs(want).max())


def test_a_row_with_int8_depends_on_no_other():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 33)).astype(np.float32)
    x[2], x[4] = 0, np.nan
    w = rng.integers(-127, 128, (33, 12)).astype(np.int8)
    together = np.asarray(products.with_int8(jnp.asarray(x), w))
    for row, own in enumerate(together):
        alone = products.with_int8(jnp.asarray(x[row : row + 1]), w)
        np.testing.assert_allclose(own, alone[0], rtol=1e-6)
    np.testing.assert_array_equal(together[2], 0)
    assert np.isnan(together[4]).all()
    assert np.isfinite(np.delete(together, 4, axis=0)).all()


@pytest.mark.parametrize('transposed', [False, True])
def test_a_gradient_through_int8_is_the_plain_ones(transposed):
    rng = np.random.default_rng(1)
    x, pull = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 9), (4, 6)))
    w = jnp.asarray(rng.integers(-127, 128, (9, 6)), jnp.int8)

    def loss(x, product):
        return jnp.sum(jnp.tanh(product(x) / 100) * pull)

    held = w.T if transposed else w
    found = jax.value_and_grad(loss)(
        x, lambda x: products.with_int8(x, held, transposed=transposed)
    )
    want = jax.value_and_grad(loss)(x, lambda x: x @ w.astype(jnp.float32))
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize('rows', [4, products.FEW_ROWS + 1])
def test_with_int8_learning_and_accelerators_widen_to_the_others_dtype(rows):
    rng = np.random.default_rng(2)
    x, pull = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        for shape in ((rows, 9), (rows, 6))
    )
    w = jnp.asarray(rng.integers(-127, 128, (9, 6)), jnp.int8)

    def plain(x):
        return products.product('ti,io->to', x, w.astype(jnp.bfloat16), jnp.float32)

    found = _gradients(lambda x, _: products.with_int8(x, w), x, x, pull)[:2]
    want = _gradients(lambda x, _: plain(x), x, x, pull)[:2]
    for one, other in zip(found, want, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    # On an accelerator no matrix is widened to float32.
    of_few = jax.jit(products.with_int8).trace(x, w)
    text = of_few.lower(lowering_platforms=('cuda',)).as_text()
    assert 'tensor<9x6xbf16>' in text
    assert 'tensor<9x6xf32>' not in text


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('size', [8, 96, 97])
def test_a_product_of_one_token(size, dtype):
    keys = jax.random.split(jax.random.key(size), 3)
    x = jax.random.normal(keys[0], (size,)).astype(dtype)
    w = jax.random.normal(keys[1], (size, 7)).astype(dtype)
    pull = jax.random.normal(keys[2], (7,)).astype(dtype)
    found, back = jax.vjp(products.with_one, x, w)
    want, plain = jax.vjp(lambda x, w: products.product('i,io->o', x, w), x, w)
    assert found.dtype == dtype
    tolerance = {'rtol': 1e-5, 'atol': 1e-5}
    for one, other in zip((found, *back(pull)), (want, *plain(pull)), strict=True):
        np.testing.assert_allclose(
            one.astype(jnp.float32), other.astype(jnp.float32), **tolerance
        )
