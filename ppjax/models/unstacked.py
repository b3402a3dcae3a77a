"""A decoder with its blocks one by one, in the memory of the stacked ones.

A loop over stacked blocks copies each block's weights out of the stack before a CPU
multiplies with them: for one token that is a large part of the time. Arrays of their own
are multiplied where they lie. What is compiled is then longer by as many times as there
are blocks, so this is for the one program that runs most, the step that adds a token.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import numpy as np

from ppjax.models import decoder as decoder_lib


@jax.tree_util.register_pytree_node_class
class Flat:
    """A module as a bare list of arrays, which a call of a program is quick to take.

    A decoder of many blocks takes longer to be taken apart, before every call, than
    some of its blocks to run.
    """

    def __init__(self, leaves: Sequence[Any], structure: Any):
        """See `unstacked`."""
        self._leaves, self._structure = tuple(leaves), structure

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """For JAX."""
        return self._leaves, self._structure

    @classmethod
    def tree_unflatten(cls, structure: Any, leaves: Sequence[Any]) -> 'Flat':
        """For JAX."""
        return cls(leaves, structure)

    def module(self) -> Any:
        """The module that it is of."""
        return jax.tree.unflatten(self._structure, self._leaves)


# What programs of one token take.
Steps = decoder_lib.Decoder | Flat


def module(model: Steps) -> decoder_lib.Decoder:
    """The decoder, inside of a program."""
    return model.module() if isinstance(model, Flat) else model


def is_worth_it(model: decoder_lib.Decoder) -> bool:
    """Whether the weights lie on a CPU, whole, and are floats.

    A copy of int8 is a small part of its product.
    """
    return is_on_one_cpu(model) and model.blocks.w_q.scale is None


def is_on_one_cpu(model: decoder_lib.Decoder) -> bool:
    """Whether the weights lie on a CPU, whole."""
    devices = model.embedding.get_value().devices()
    return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def unstacked(model: decoder_lib.Decoder) -> Flat:
    """The same decoder, to be given to programs of steps; see `module`.

    On a CPU its arrays are views of the stacked ones, but for those that do not begin
    where a device wants them, which are copied: few and small ones.

    Args:
        model: on one device; its blocks stay as they are.
    """
    leaves, structure = jax.tree.flatten(model.blocks)
    layers = model.cfg.num_layers
    parts = [_apart(leaf) for leaf in leaves]
    blocks = [
        jax.tree.unflatten(structure, [part[layer] for part in parts])
        for layer in range(layers)
    ]
    # A copy of the module, whose arrays are those of the model.
    found = jax.tree.unflatten(*reversed(jax.tree.flatten(model)))
    found.blocks = nnx.List(blocks)
    return Flat(*jax.tree.flatten(found))


def _apart(stacked: jax.Array) -> list[jax.Array]:
    """[L, ...] as L arrays."""
    device = next(iter(stacked.devices()))
    if device.platform != 'cpu':
        return list(stacked)
    # Read only, and kept alive by whoever reads it.
    whole = np.asarray(stacked)
    return [jax.device_put(own, device, may_alias=True) for own in whole]
