"""Many prompts run batch by batch, behind what all of them start with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from ppjax.models import decoder as decoder_lib
from ppjax.models import generation, shared_prefix
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding


class Behind(NamedTuple):
    """What prompts are run with, on all devices.

    Attributes:
        model: the decoder.
        masks: what of it is masked.
        prefix: what all prompts start with.
        shared: P, the tokens of the prefix.
        mesh: that rows are spread over.
    """

    model: decoder_lib.Decoder
    masks: masks_lib.Masks
    prefix: shared_prefix.SharedPrefix
    shared: int
    mesh: jax.sharding.Mesh


def behind(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prompts: Sequence[Sequence[int]],
) -> Behind:
    """Runs what all prompts, one at least, start with, short of the shortest's last."""
    mesh = sharding.mesh_of(model)
    model = sharding.on_mesh(model, mesh)
    masks = sharding.replicate(masks, mesh)
    shared = shared_prefix.shared_length(prompts)
    prefix = shared_prefix.compute(
        model, masks, prompts[0][:shared], slots=generation.bucket(max(shared, 1))
    )
    return Behind(model, masks, sharding.replicate(prefix, mesh), shared, mesh)


def batches(
    prompts: Mapping[int, Sequence[int]], batch_size: int, mesh: jax.sharding.Mesh
) -> Iterator[tuple[list[int], list[int]]]:
    """Numbers of prompts to run at a time, short ones first for little padding.

    All batches have one size, so that only lengths make new shapes.

    Args:
        prompts: number -> token ids.
        batch_size: rows at a time, rounded up to a multiple of what they are spread
            over.
        mesh: that is.

    Yields:
        (numbers, the same padded to the size by the last), each number once.
    """
    shards = sharding.row_shards(mesh)
    size = -(-min(batch_size, len(prompts)) // shards) * shards
    order = sorted(prompts, key=lambda number: (len(prompts[number]), number))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, rows + rows[-1:] * (size - len(rows))
