"""The sharding table: every parameter has a rule, and what cannot be split is said."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from ppjax.base import errors
from ppjax.models import weights
from ppjax.parallel import execution, sharding
from ppjax.recovery import lora

_MOMENT = '0/mu/'


def _mesh(text: str) -> jax.sharding.Mesh:
    return sharding.make_mesh(text, jax.devices())


def _paths(tree: object) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator='/'), leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


@pytest.mark.parametrize(
    ('text', 'shape'),
    [
        (None, (1, 8, 1)),
        ('data:2,fsdp:4', (2, 4, 1)),
        ('tensor:2, data:-1', (4, 1, 2)),
        ('data:2,fsdp:2,tensor:2', (2, 2, 2)),
    ],
)
def test_mesh_of_a_text(text: str | None, shape: tuple[int, ...]) -> None:
    mesh = sharding.make_mesh(text, jax.devices())
    assert mesh.axis_names == ('data', 'fsdp', 'tensor')
    assert mesh.devices.shape == shape
    assert sharding.row_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('fsdp:3', r"'fsdp:3' does not make use of the 8 devices"),
        ('data:2', '8 devices'),
        ('data:16', '8 devices'),
        ('data:-1,fsdp:-1', '8 devices'),
        ('data:3,fsdp:-1', '8 devices'),
        ('model:8', "'model:8' is not AXIS:SIZE with an axis of data, fsdp, tensor"),
        ('fsdp', "'fsdp' is not AXIS:SIZE"),
        ('fsdp:0', "'fsdp:0' is not"),
        ('fsdp:8,', "'' is not"),
    ],
)
def test_a_mesh_that_does_not_fit(text: str, message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        _mesh(text)


def test_every_parameter_of_every_architecture_has_a_rule(any_tiny) -> None:
    mesh = _mesh('data:2,fsdp:2,tensor:2')
    found = weights.weights_of(any_tiny.decoder)
    adapters = lora.init_adapters(
        any_tiny.config, list(lora.TARGETS), 2, jax.random.key(0)
    )
    for tree in (found, {'adapters': adapters}):
        state = jax.eval_shape(optax.adamw(lambda step: 0.1).init, tree)
        for path, shape in _paths(tree):
            # 97 words cannot be split; all else can be.
            length = (98, *shape[1:]) if 97 in shape else shape
            spec = sharding.spec_of(path, length, mesh)
            assert len(spec) == len(shape)
            assert sharding.spec_of(_MOMENT + path, length, mesh) == spec
        for path, shape in _paths(state):
            length = (98, *shape[1:]) if 97 in shape else shape
            sharding.spec_of(path, length, mesh)


def test_arrays_lie_as_the_table_says(tiny_models) -> None:
    mesh = _mesh('data:2,fsdp:4')
    found = weights.weights_of(tiny_models('llama-tied').decoder)
    placed = sharding.place(found, mesh)
    w_q, embedding = placed['blocks']['w_q'], placed['embedding']
    assert w_q.sharding.spec == P(None, 'fsdp', 'tensor')
    assert w_q.addressable_shards[0].data.shape == (3, 6, 40)
    assert embedding.addressable_shards[0].data.shape == (97, 6)
    assert placed['final_norm'].is_fully_replicated
    np.testing.assert_array_equal(w_q, found['blocks']['w_q'])


def test_what_cannot_be_split_is_named() -> None:
    with pytest.raises(
        errors.InputError,
        match=r'blocks/w_up cannot be split: its mlp axis has length 51, which '
        'tensor:2 does not divide',
    ):
        sharding.spec_of('blocks/w_up', (3, 24, 51), _mesh('fsdp:4,tensor:2'))


def test_a_path_without_a_rule_is_refused() -> None:
    mesh = _mesh('fsdp:8')
    for path in ('blocks/w_router', 'w_q', 'blocks/w_q/a', 'x/blocks/w_q'):
        with pytest.raises(ValueError, match=f"No sharding rule matches '{path}'"):
            sharding.spec_of(path, (2, 8, 8), mesh)
    with pytest.raises(ValueError, match='has shape'):
        sharding.spec_of('blocks/w_q', (8, 8), mesh)


def test_without_a_mesh_nothing_is_constrained() -> None:
    x = jnp.ones((3, 2))
    assert execution.spread_rows(x) is x
    with jax.set_mesh(_mesh('data:2,fsdp:4')):
        spread = jax.jit(lambda x: execution.spread_rows(x * 2))(jnp.ones((8, 2)))
    assert spread.sharding.spec == P(('data', 'fsdp'))


def test_looked_up_rows_come_in_one_exchange() -> None:
    mesh = _mesh('data:2,fsdp:2,tensor:2')
    where = jax.sharding.NamedSharding(mesh, P('tensor', 'fsdp'))
    table = jax.device_put(jnp.arange(16 * 6.0).reshape(16, 6), where)
    tokens = sharding.shard_rows(np.arange(40).reshape(8, 5) % 16, mesh)

    @jax.jit
    def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return execution.spread_looked_up(jnp.take(table, tokens, axis=0))

    with jax.set_mesh(mesh):
        found = look_up(table, tokens)
        program = look_up.lower(table, tokens).compile().as_text()
    np.testing.assert_array_equal(found, np.asarray(table)[np.asarray(tokens)])
    assert found.sharding.spec[0] == ('data', 'fsdp')
    assert 'all-to-all' in program
