"""Meshes of devices, and one table that says how every parameter lies over them.

A parameter's path gives its logical axes, a logical axis the mesh axis that it is
split over. What matches no rule, or cannot be split evenly, is an error: nothing is
replicated because it was forgotten.
"""

import math
import re
from typing import Any, TypeVar

import jax
from jax.experimental import mesh_utils
import numpy as np

from ppjax.base import errors, processes, ranges

Tree = TypeVar('Tree')
Model = TypeVar('Model', bound=Any)

# Copies that take different rows; copies that also share out the weights; parts of
# one layer's product.
AXES = ('data', 'fsdp', 'tensor')

_MESH_AXES: dict[str, str | None] = {
    'layers': None,
    'vocab': 'tensor',
    'embed': 'fsdp',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'head_dim': None,
    'mlp': 'tensor',
    # Vectors over the model width: too small to be worth a gather.
    'norm': None,
    'rank': None,
}
# Over which an embedding's words are split.
VOCAB_AXIS = _MESH_AXES['vocab']
_PARAM_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r'embedding|head', ('vocab', 'embed')),
    (r'final_norm', ('norm',)),
    (r'blocks/(attn|ffn)_norm', ('layers', 'norm')),
    (r'blocks/[qk]_norm', ('layers', 'head_dim')),
    (r'blocks/w_q', ('layers', 'embed', 'heads')),
    (r'blocks/w_[kv]', ('layers', 'embed', 'kv_heads')),
    (r'blocks/w_o', ('layers', 'heads', 'embed')),
    (r'blocks/w_(gate|up)', ('layers', 'embed', 'mlp')),
    (r'blocks/w_down', ('layers', 'mlp', 'embed')),
    # Square, over the stream: one of its axes is enough to spread.
    (r'blocks/turn_(attention|ffn)', ('layers', 'embed', 'norm')),
    (r'last_turn', ('embed', 'norm')),
    (r'last_down', ('mlp', 'norm')),
    (r'last_bias', ('norm',)),
    (r'scales/w_q', ('layers', 'heads')),
    (r'scales/w_[kv]', ('layers', 'kv_heads')),
    (r'scales/w_(gate|up)', ('layers', 'mlp')),
    (r'scales/w_(o|down)', ('layers', 'embed')),
    (r'scales/turn_(attention|ffn)', ('layers', 'norm')),
    (r'blocks/b_q', ('layers', 'heads')),
    (r'blocks/b_[kv]', ('layers', 'kv_heads')),
    (r'blocks/b_(gate|up)', ('layers', 'mlp')),
    (r'blocks/b_(o|down)', ('layers', 'norm')),
    (r'adapters/w_(q|k|v|gate|up)/a', ('layers', 'embed', 'rank')),
    (r'adapters/w_o/a', ('layers', 'heads', 'rank')),
    (r'adapters/w_down/a', ('layers', 'mlp', 'rank')),
    (r'adapters/w_q/b', ('layers', 'rank', 'heads')),
    (r'adapters/w_[kv]/b', ('layers', 'rank', 'kv_heads')),
    (r'adapters/w_(gate|up)/b', ('layers', 'rank', 'mlp')),
    (r'adapters/w_(o|down)/b', ('layers', 'rank', 'embed')),
    (r'gains/channels', ('layers', 'mlp')),
    (r'gains/attention', ('layers', 'heads')),
    (r'gains/(attn|ffn)_norm', ('layers', 'norm')),
    (r'gains/final_norm', ('norm',)),
    (r'\d+/count', ()),
)
# The optimizer's moments lie as the weights that they belong to.
_MOMENTS = r'(?:\d+/(?:mu|nu)/)?'


def make_mesh(text: str | None, devices: list[jax.Device]) -> jax.sharding.Mesh:
    """The mesh that `--mesh` asks for.

    Args:
        text: sizes of `AXES` such as 'data:2,fsdp:4'; axes not named have size 1,
            and one size may be -1 for the devices that are left. None shares the
            weights out over all devices.
        devices: all of them are used.

    Raises:
        InputError: if the text is none, or its product is not their number.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in (text or 'fsdp:-1').split(','):
        name, _, size = part.strip().partition(':')
        if name not in AXES or not re.fullmatch(r'-1|[1-9]\d*', size):
            raise errors.InputError(
                f'--mesh={text!r}: {part!r} is not AXIS:SIZE with an axis of '
                f'{", ".join(AXES)}.'
            )
        sizes[name] = -1 if size == '-1' else ranges.whole(size)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        count = '1 device' if len(devices) == 1 else f'{len(devices)} devices'
        raise errors.InputError(
            f'--mesh={text!r} does not make use of the {count} here: '
            'the product of its sizes must be their number; one size may be -1.'
        )
    grid = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(
        grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES)
    )


def default_mesh(text: str | None) -> jax.sharding.Mesh:
    """The mesh of `--mesh`, where a CPU's devices are used only if it says so.

    Several devices of a CPU are simulated, and share its cores; those of several
    processes are there to be used.

    Raises:
        InputError: see `make_mesh`.
    """
    devices = jax.devices()
    alone = processes.count() == 1
    if text is None and devices[0].platform == 'cpu' and alone:
        devices = devices[:1]
    return make_mesh(text, devices)


def inference_mesh(text: str | None) -> jax.sharding.Mesh | None:
    """The mesh that a model to be only run is loaded onto.

    Without a text none: it is loaded onto one device, and copied to all (`mesh_of`).
    Devices of several processes share its weights out.

    Raises:
        InputError: see `make_mesh`.
    """
    if text is None and processes.count() == 1:
        return None
    return make_mesh(text, jax.devices())


def lies_on(model: Any) -> jax.sharding.Mesh | None:
    """The mesh that a decoder was loaded onto, if it was."""
    where = model.embedding[...].sharding
    mesh = getattr(where, 'mesh', None)
    if isinstance(mesh, jax.sharding.Mesh) and mesh.axis_names == AXES:
        return mesh
    return None


def mesh_of(model: Any) -> jax.sharding.Mesh:
    """The mesh that a decoder lies on; where on none, all devices for its rows."""
    return lies_on(model) or make_mesh('data:-1', jax.devices())


def on_mesh(model: Model, mesh: jax.sharding.Mesh) -> Model:
    """A decoder where `mesh_of` says: as it lies there, or whole on every device."""
    return replicate(model, mesh) if lies_on(model) is None else model


def replicate(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Puts every array, the same in every process, whole on every device."""
    return spread(tree, replicated(mesh))


def shard_rows(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Spreads the first axis of every array; it must be a multiple of `row_shards`."""
    return spread(tree, first_axis(mesh))


def text_of(mesh: jax.sharding.Mesh) -> str:
    """Its axes for people, without those of size 1; '' for one device."""
    return ', '.join(f'{name} {size}' for name, size in mesh.shape.items() if size > 1)


def row_shards(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """How many parts the rows of a micro-batch are split into."""
    return int(mesh.shape['data'] * mesh.shape['fsdp'])


def first_axis(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Where arrays [B, ...] lie whose first axis is rows: over `data` and `fsdp`."""
    return jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(('data', 'fsdp'))
    )


def rows(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Where arrays [A, B, ...] of micro-batches lie: B over `data` and `fsdp`."""
    spec = jax.sharding.PartitionSpec(None, ('data', 'fsdp'))
    return jax.sharding.NamedSharding(mesh, spec)


def slot_rows(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """As `rows`, for arrays [N, A, B, ...] of several personas."""
    spec = jax.sharding.PartitionSpec(None, None, ('data', 'fsdp'))
    return jax.sharding.NamedSharding(mesh, spec)


def key_value_heads(
    mesh: jax.sharding.Mesh, heads: int, *, before: int = 2
) -> jax.sharding.NamedSharding:
    """A cache's keys or values with their heads spread as those of the weights are.

    Args:
        mesh: the devices.
        heads: K. Where they cannot be shared out evenly, every device has all.
        before: axes before that of the heads.
    """
    axis = _MESH_AXES['kv_heads']
    if heads % mesh.shape[axis]:
        axis = None
    spec = jax.sharding.PartitionSpec(*[None] * before, axis)
    return jax.sharding.NamedSharding(mesh, spec)


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Whole on every device."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _axes_of(path: str) -> tuple[str, ...] | None:
    for pattern, axes in _PARAM_AXES:
        if re.fullmatch(f'{_MOMENTS}(?:{pattern})', path):
            return axes
    return None


def spec_of(
    path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> jax.sharding.PartitionSpec:
    """How the parameter at a path is split.

    Args:
        path: such as 'blocks/w_q', or '0/mu/blocks/w_q' in an optimizer's state.
        shape: its shape.
        mesh: with `AXES`.

    Raises:
        ValueError: if no rule matches the path, or its rank is not the rule's.
        InputError: if an axis cannot be split evenly.
    """
    axes = _axes_of(path)
    if axes is None:
        raise ValueError(f'No sharding rule matches {path!r} of shape {shape}.')
    if len(axes) != len(shape):
        raise ValueError(f'{path!r} has shape {shape}, its rule is for {axes}.')
    for axis, length in zip(axes, shape, strict=True):
        name = _MESH_AXES[axis]
        if name is not None and length % mesh.shape[name]:
            raise errors.InputError(
                f'--mesh: {path} cannot be split: its {axis} axis has length '
                f'{length}, which {name}:{mesh.shape[name]} does not divide.'
            )
    return jax.sharding.PartitionSpec(*(_MESH_AXES[axis] for axis in axes))


def shardings(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """A tree of the same structure that says where each of its arrays lies.

    Raises:
        ValueError, InputError: see `spec_of`.
    """

    def sharding(path: tuple[Any, ...], value: Any) -> jax.sharding.NamedSharding:
        spec = spec_of(_text(path), value.shape, mesh)
        return jax.sharding.NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _text(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


def place(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Puts every array of a tree of parameters where it belongs."""
    return jax.tree.map(spread, tree, shardings(tree, mesh))


def spread(tree: Tree, where: jax.sharding.Sharding) -> Tree:
    """Puts arrays, the same in every process, where they belong.

    Of host arrays a process sends its own devices' parts, and hears nothing of the
    others; what lies on devices of all processes is sent around among them.
    """
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def put(value: Any) -> jax.Array:
        if isinstance(value, jax.Array):
            if not value.is_fully_addressable:
                return jax.device_put(value, where)
            if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(jax.random.key_data(value)))
        own = np.asarray(value)
        parts = where.addressable_devices_indices_map(own.shape)
        return jax.make_array_from_single_device_arrays(
            own.shape,
            where,
            [jax.device_put(own[index], device) for device, index in parts.items()],
        )

    return jax.tree.map(put, tree)
