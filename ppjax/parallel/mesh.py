"""The devices that rows of a batch are spread over."""

from typing import TypeVar

import jax
import numpy as np

Tree = TypeVar('Tree')

DATA = 'data'


def data_mesh() -> jax.sharding.Mesh:
    """All devices along one axis, `data`."""
    return jax.sharding.Mesh(np.array(jax.devices()), (DATA,))


def replicate(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Puts every array whole on every device."""
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, whole)


def shard_rows(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Spreads the first axis of every array; it must be a multiple of the devices."""
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DATA))
    return jax.device_put(tree, rows)
