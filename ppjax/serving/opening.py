"""An engine of a loaded model: its lanes, compiled and ready to answer."""

from collections.abc import Callable, Sequence
import dataclasses

import jax

from ppjax.base import memory
from ppjax.models import decoder as decoder_lib
from ppjax.serving import engine, lane, members, pinned, prefix_cache, programs


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much an engine may do at a time.

    Attributes:
        slots: rows of a lane.
        max_context: most tokens of prompt and answer together.
        queue: most requests that wait for a row.
        cache_bytes: most that known prefixes may hold.
    """

    slots: int
    max_context: int
    queue: int
    cache_bytes: int


def open_engine(
    model: decoder_lib.Decoder,
    sizes: Sizes,
    *,
    pins: Sequence[members.Member] = (),
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> engine.Engine:
    """An engine that has begun.

    Args:
        model: the dense decoder; on the mesh, if there is one.
        sizes: of the engine.
        pins: who gets a lane of its own smaller weights; none is dense.
        mesh: the devices; with pins there is none.
        progress: called with (programs compiled, programs in all).

    Raises:
        ValueError: if `max_context` is shorter than a block of known prefixes.
    """
    cfg = model.cfg
    shape = programs.Shape(sizes.slots, sizes.max_context)
    everybody = programs.Programs(model, shape, mesh=mesh)
    own = {}
    for member in pins:
        assert member.scale is not None and mesh is None
        small, scale_of = pinned.compact(model, member.scale)
        own[member.digest] = (programs.Programs(small, shape), scale_of)
    lanes = [everybody, *(found for found, _ in own.values())]
    progress(0, total := sum(one.count for one in lanes))
    done = 0
    for one in lanes:
        for _ in one.compile():
            progress(done := done + 1, total)
    memory.give_back()  # What compilers worked with.
    known = prefix_cache.PrefixCache(sizes.cache_bytes, programs.BLOCK)
    made = engine.Engine(
        lane.Lane(everybody, known, lane.whole_scale(cfg.num_layers, cfg.d_ff)),
        known,
        slots=sizes.slots,
        max_context=sizes.max_context,
        vocab_size=cfg.vocab_size,
        queue=sizes.queue,
        pinned={
            digest: lane.Lane(compiled, known, scale_of)
            for digest, (compiled, scale_of) in own.items()
        },
    )
    made.start()
    return made
