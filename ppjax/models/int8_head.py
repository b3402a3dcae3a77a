"""A decoder of int8 blocks whose unembedding is int8 too, for what only gives answers.

For one token a small model's unembedding is as much to read as a quarter of its blocks.
Learning keeps it as it is: its logits are what a loss is made of.
"""

from flax import nnx
import jax

from ppjax.models import decoder as decoder_lib
from ppjax.models import matrix as matrix_lib
from ppjax.models import unstacked


def with_int8_head(model: decoder_lib.Decoder) -> decoder_lib.Decoder:
    """The same decoder with an int8 unembedding, where it has int8 blocks on a CPU.

    An unembedding of its own is left out; one that is the embedding stays, for tokens
    are looked up there.

    Args:
        model: stays as it is, and is the result where nothing is to be done.
    """
    is_int8 = model.blocks.w_q.scale is not None
    if not (is_int8 and unstacked.is_on_one_cpu(model)):
        return model
    return unembedding_in_int8(model)


def unembedding_in_int8(model: decoder_lib.Decoder) -> decoder_lib.Decoder:
    """`with_int8_head`, whatever the model's blocks are and wherever it lies."""
    rows = model.embedding if model.head is None else model.head
    # A copy of the module, whose arrays are those of the model.
    found = jax.tree.unflatten(*reversed(jax.tree.flatten(model)))
    found.int8_head = nnx.data(jax.jit(matrix_lib.Table)(rows[...]))
    found.head = None
    return found
