"""Many prompts run batch by batch, behind what all of them start with."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax

from ppjax.models import decoder as decoder_lib
from ppjax.models import generation, shared_prefix
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding

Found = TypeVar('Found')


class Batch(NamedTuple):
    """What is run at a time.

    Attributes:
        model: the decoder, on the mesh.
        masks: what of it is masked.
        prefix: what all prompts start with.
        mesh: that rows are spread over.
        rows: numbers of the prompts; the last stands for padding too.
        own: what follows the prefix in each of them.
    """

    model: decoder_lib.Decoder
    masks: masks_lib.Masks
    prefix: shared_prefix.SharedPrefix
    mesh: jax.sharding.Mesh
    rows: list[int]
    own: list[Sequence[int]]


def run(
    call: Callable[[Batch], Iterable[Found]],
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prompts: Mapping[int, Sequence[int]],
    *,
    batch_size: int,
) -> Iterator[tuple[int, Found]]:
    """Runs all prompts, short ones first, so that a batch has little padding.

    Args:
        call: gives what it finds for each row of a batch, in their order.
        model: the decoder; rows are spread over all devices.
        masks: what of it is masked.
        prompts: number -> token ids, one at least; any numbers.
        batch_size: rows at a time, rounded up to a multiple of what they are spread
            over.

    Yields:
        (number of a prompt, what was found), each prompt once.
    """
    mesh = sharding.mesh_of(model)
    model = sharding.on_mesh(model, mesh)
    masks = sharding.replicate(masks, mesh)
    order = sorted(prompts, key=lambda number: (len(prompts[number]), number))
    shared = shared_prefix.shared_length([prompts[number] for number in order])
    start = prompts[order[0]][:shared]
    prefix = shared_prefix.compute(
        model, masks, start, slots=generation.bucket(max(shared, 1))
    )
    prefix = sharding.replicate(prefix, mesh)
    # All batches have one size, so that only lengths make new shapes.
    shards = sharding.row_shards(mesh)
    size = -(-min(batch_size, len(order)) // shards) * shards
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        padded = rows + rows[-1:] * (size - len(rows))
        own = [prompts[row][shared:] for row in padded]
        found = call(Batch(model, masks, prefix, mesh, padded, own))
        yield from zip(rows, found, strict=False)
