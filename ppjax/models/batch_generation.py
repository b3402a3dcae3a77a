"""Answers to many prompts: batch by batch, behind what all of them start with."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses

from ppjax.models import decoder as decoder_lib
from ppjax.models import generation, shared_prefix
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Generated:
    """The answer to one prompt.

    Attributes:
        index: of the prompt.
        tokens: the answer, its stop token left out.
        finished: whether a stop token ended it, and not a limit.
        failure: why the prompt could not be answered; '' where it was.
    """

    index: int
    tokens: list[int]
    finished: bool
    failure: str = ''


def generate_all(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    batch_size: int,
    sampling: generation.Sampling = generation.GREEDY,
    seed: int = 0,
    streams: Sequence[int] | None = None,
) -> Iterator[Generated]:
    """Answers every prompt once.

    Prompts are sorted by length, so that a batch has little padding; what all of them
    start with is computed once; the rows of a batch are spread over all devices. In
    float32 an answer does not depend on the batch it was written in.

    Args:
        model: the decoder.
        masks: what of it is masked; no row has its own.
        prompts: lists of token ids, of any lengths; none is empty.
        max_new_tokens: at most this many tokens an answer, the stop token included.
        stop_ids: the tokens that end an answer.
        batch_size: rows at a time, rounded up to a multiple of what they are spread
            over.
        sampling: how tokens are drawn.
        seed: of the draws.
        streams: a number below 2^32 a prompt, which with the seed fixes its draws;
            its index by default.

    Yields:
        First the prompts that leave no room in the model, as failures; then the
        answers as their batches are done, those to short prompts first.

    Raises:
        InputError: if a prompt has tokens that the model does not embed.
        ValueError: if a prompt is empty, or a number of tokens or rows is not positive.
        AssertionError: if a mask has another shape.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
    masks.check(model.cfg)
    stops = frozenset(stop_ids)
    streams = range(len(prompts)) if streams is None else streams
    room = model.cfg.max_position
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < room]
    # In the shared prefix, where generation itself does not look, too.
    generation.check_prompts(model.cfg, [prompts[index] for index in fitting])
    for index, prompt in enumerate(prompts):
        if len(prompt) >= room:
            reason = f'its prompt of {len(prompt)} tokens leaves no room in the model'
            yield Generated(index, [], False, reason)
    if not fitting:
        return
    mesh = sharding.mesh_of(model)
    model = sharding.on_mesh(model, mesh)
    masks = sharding.replicate(masks, mesh)
    shared = shared_prefix.shared_length([prompts[index] for index in fitting])
    prefix = shared_prefix.compute(
        model,
        masks,
        prompts[fitting[0]][:shared],
        slots=generation.bucket(max(shared, 1)),
    )
    prefix = sharding.replicate(prefix, mesh)
    # All batches have one size, so that only lengths make new shapes.
    shards = sharding.row_shards(mesh)
    size = -(-min(batch_size, len(fitting)) // shards) * shards
    order = sorted(fitting, key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        padded = rows + rows[-1:] * (size - len(rows))
        answers = generation.generate(
            model,
            masks,
            [prompts[row][shared:] for row in padded],
            max_new_tokens=max_new_tokens,
            stop_ids=stops,
            sampling=sampling,
            seed=seed,
            prefix=prefix,
            streams=[streams[row] for row in padded],
            mesh=mesh,
        )
        for row, answer in zip(rows, answers, strict=False):
            finished = answer[-1] in stops
            yield Generated(row, answer[:-1] if finished else answer, finished)
