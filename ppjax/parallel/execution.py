"""Functions that are compiled for a mesh, called under it, and lie there as they should.

Left alone, the compiler follows the weights; under a mesh (`call`) the decoder says where
its activations go.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from ppjax.parallel import sharding


class Compiled(Protocol):
    """A function that `jax.jit` or `OverMesh` compiles."""

    def __call__(self, *args: Any) -> Any: ...

    def lower(self, *args: Any) -> Any: ...


class OverMesh:
    """A compiled function of a model and a batch of rows, over a mesh of devices.

    Called like the function; its results are small, and all devices get them whole.
    """

    def __init__(
        self,
        mesh: jax.sharding.Mesh,
        function: Callable[..., Any],
        batch: int,
        where: jax.sharding.Sharding,
    ):
        """Args: see `jit_over`."""
        self._mesh, self._batch, self._where = mesh, batch, where
        self._compiled = jax.jit(function, out_shardings=sharding.replicated(mesh))

    def __call__(self, *args: Any) -> Any:
        own = list(args)
        own[self._batch] = sharding.spread(own[self._batch], self._where)
        return call(self._mesh, self._compiled, *own)

    def lower(self, *args: Any) -> Any:
        """As `jax.jit`'s, from shapes that say where their arrays lie."""
        with jax.set_mesh(self._mesh):
            return self._compiled.lower(*args)


def jit_over(
    mesh: jax.sharding.Mesh | None,
    function: Callable[..., Any],
    *,
    batch: int,
    where: Callable[[jax.sharding.Mesh], jax.sharding.Sharding] = sharding.rows,
) -> Compiled:
    """Compiles a function of a model and a batch of rows for a mesh.

    Args:
        mesh: the devices; None for one.
        function: whose results are small.
        batch: number of the argument that is a batch, on the host.
        where: how its arrays lie, from the mesh.
    """
    if mesh is None:
        return jax.jit(function)
    return OverMesh(mesh, function, batch, where(mesh))


def call(
    mesh: jax.sharding.Mesh | None,
    compiled: Callable[..., Any],
    *args: Any,
    **more: Any,
) -> Any:
    """Calls a compiled function of what lies on a mesh, under it.

    There the decoder keeps its activations spread by rows. Without a mesh it is just
    called.
    """
    if mesh is None or mesh.size == 1:
        return compiled(*args, **more)
    with jax.set_mesh(mesh):
        found = compiled(*args, **more)
    # The devices of a CPU share its threads: the collectives of two programs at a time
    # can wait for each other for ever.
    if mesh.devices.flat[0].platform == 'cpu':
        jax.block_until_ready(found)
    return found


def spread_rows(x: jax.Array) -> jax.Array:
    """Keeps activations [B, ...] spread by rows where `jax.set_mesh` is in force.

    Left alone, the compiler follows the weights instead: every device would hold a
    part of the width of all rows, and gather activations again and again. Rows that
    cannot be spread evenly are left to it.
    """
    return _constrain(x, ('data', 'fsdp')) if _rows_divide(x) else x


def spread_looked_up(x: jax.Array) -> jax.Array:
    """`spread_rows` of what was looked up in an embedding, [B, T, D].

    A device finds a part of the width, for rows of others too. The compiler knows no
    way from there to whole rows but through a whole copy; by way of rows spread over
    `data` alone it is one exchange.
    """
    if _rows_divide(x):
        x = _constrain(x, 'data', None, 'fsdp')
    return spread_rows(x)


def whole(x: jax.Array) -> jax.Array:
    """Keeps a small result whole on every device, for the host of each to read."""
    return _constrain(x)


def gather_tables(tree: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the embedding and the unembedding of their whole width.

    Rows spread over `fsdp` look up and multiply all of it. Gathered here it is done
    once a step, and not for every chunk of logits.
    """
    return {
        name: _constrain(value, sharding.VOCAB_AXIS)
        if name in ('embedding', 'head')
        else value
        for name, value in tree.items()
    }


def _rows_divide(x: jax.Array) -> bool:
    """Whether a mesh is in force that rows [B, ...] can be spread over evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and x.shape[0] % sharding.row_shards(mesh) == 0


def _constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(*axes))
