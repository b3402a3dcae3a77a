"""A decoder with its blocks one by one, in the memory of the stacked ones.

A loop over stacked blocks copies each block's weights out of the stack before a CPU
multiplies with them: for one token that is most of the time. Arrays of their own are
multiplied where they lie. What is compiled is then longer by as many times as there are
blocks, so this is for the one program that runs most, the step that adds a token.
"""

from flax import nnx
import jax
import numpy as np

from ppjax.models import decoder as decoder_lib


def is_worth_it(model: decoder_lib.Decoder) -> bool:
    """Whether the weights lie on a CPU, whole."""
    devices = model.embedding.get_value().devices()
    return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def unstacked(model: decoder_lib.Decoder) -> decoder_lib.Decoder:
    """The same decoder; its blocks are not stacked.

    On a CPU they are views of the stacked ones, but for those that do not begin where a
    device wants them, which are copied: few and small ones.

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
    return found


def _apart(stacked: jax.Array) -> list[jax.Array]:
    """[L, ...] as L arrays."""
    device = next(iter(stacked.devices()))
    if device.platform != 'cpu':
        return list(stacked)
    # Read only, and kept alive by whoever reads it.
    whole = np.asarray(stacked)
    return [jax.device_put(own, device, may_alias=True) for own in whole]
