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
