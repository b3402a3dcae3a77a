"""Answers to many prompts: batch by batch, behind what all of them start with."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses

from ppjax.models import decoder as decoder_lib
from ppjax.models import generation, prompt_batches
from ppjax.models import masks as masks_lib


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
    prompts: Sequence[Sequence[int] | str],
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
        prompts: lists of token ids, of any lengths, or why there is none; none is
            empty.
        max_new_tokens: at most this many tokens an answer, the stop token included.
        stop_ids: the tokens that end an answer.
        batch_size: rows at a time, rounded up to a multiple of what they are spread
            over.
        sampling: how tokens are drawn.
        seed: of the draws.
        streams: a number below 2^32 a prompt, which with the seed fixes its draws;
            its index by default.

    Yields:
        First the prompts that are none or leave no room, as failures; then the
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
    fitting = {
        index: prompt
        for index, prompt in enumerate(prompts)
        if not isinstance(prompt, str) and len(prompt) < room
    }
    # In the shared prefix, where generation itself does not look, too.
    generation.check_prompts(model.cfg, list(fitting.values()))
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            yield Generated(index, [], False, prompt)
        elif index not in fitting:
            reason = f'its prompt of {len(prompt)} tokens leaves no room in the model'
            yield Generated(index, [], False, reason)
    if not fitting:
        return
    on = prompt_batches.behind(model, masks, list(fitting.values()))
    for rows, padded in prompt_batches.batches(fitting, batch_size, on.mesh):
        answers = generation.generate(
            on.model,
            on.masks,
            [fitting[row][on.shared :] for row in padded],
            max_new_tokens=max_new_tokens,
            stop_ids=stops,
            sampling=sampling,
            seed=seed,
            prefix=on.prefix,
            streams=[streams[row] for row in padded],
            mesh=on.mesh,
        )
        for row, answer in zip(rows, answers, strict=False):
            finished = answer[-1] in stops
            yield Generated(row, answer[:-1] if finished else answer, finished)
