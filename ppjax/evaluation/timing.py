"""Prefill and decoding measured, several models in turn in one run.

Machines are noisy: models take turns, and the median over rounds counts. A ratio of two
medians of one run says more than either time.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import dataclasses
import time
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.masking import apply
from ppjax.models import attention, generation
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import rope as rope_lib
from ppjax.pages import formats

Given = ParamSpec('Given')
Item = TypeVar('Item')
Name = TypeVar('Name', bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one model, one of each a round.

    Attributes:
        prefill: from the prompt to the first token.
        decode: of each further token, on average.
    """

    prefill: list[float]
    decode: list[float]

    def as_json(self) -> dict[str, Any]:
        return {
            'prefill_seconds': spread(self.prefill),
            'decode_seconds_per_token': spread(self.decode),
            'decode_tokens_per_s': 1 / float(np.median(self.decode)),
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and ends."""
    return {'median': float(np.median(values)), 'min': min(values), 'max': max(values)}


def timed(
    act: Callable[Given, Item], *args: Given.args, **options: Given.kwargs
) -> tuple[float, Item]:
    """Seconds that a call took, and what it gave."""
    began = time.perf_counter()
    found = act(*args, **options)
    return time.perf_counter() - began, found


def in_turn(
    sides: Mapping[Name, Callable[[int], Item]],
    turns: Sequence[int],
    progress: Callable[[int, int], None],
) -> dict[Name, list[tuple[float, Item]]]:
    """Every side's seconds and what it gave, turn by turn.

    Each turn another goes first: one that always came second would pay for what the
    first one left behind.

    Args:
        sides: called with the turn.
        turns: their numbers. What compiles at its first call should take one more.
        progress: called with (calls done, calls in all).
    """
    found: dict[Name, list[tuple[float, Item]]] = {name: [] for name in sides}
    names, done = list(sides), 0
    for turn in turns:
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(timed(sides[name], turn))
            done += 1
            progress(done, len(turns) * len(names))
    return found


class Answered(NamedTuple):
    """Greedy answers to prompts, and how long they took.

    Attributes:
        first: seconds from the prompts to the first tokens.
        others: seconds for the others.
        tokens: [B, T].
    """

    first: float
    others: float
    tokens: np.ndarray


def answer(
    decoder: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prompts: np.ndarray,
    tokens: int,
) -> Answered:
    """Answers prompts [B, S] with T tokens each, which no stop token ends."""
    began = time.perf_counter()
    answers = generation.stream(
        decoder, masks, prompts.tolist(), max_new_tokens=tokens, stop_ids=()
    )
    drawn = [next(answers)]
    first = time.perf_counter()
    drawn += list(answers)
    others = time.perf_counter() - first
    return Answered(first - began, others, np.stack(drawn, axis=1))


def check_fits(
    cfg: config_lib.ModelConfig, name: str, prompt_length: int, answer_length: int
) -> None:
    """Raises:
    InputError: if prompt and answer do not fit the model, so that generation would
        stop short and its time be divided by all of the answer.
    """
    if prompt_length + answer_length > cfg.max_position:
        raise errors.InputError(
            f'The {name}model has {cfg.max_position} positions; '
            f'--prompt_length={prompt_length} and --answer_length={answer_length} '
            'do not fit.'
        )


def measure(
    models: Mapping[str, apply.LoadedModel],
    *,
    prompt_length: int,
    answer_length: int,
    rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], None],
) -> dict[str, Times]:
    """Times a random prompt and the greedy answer to it, one row at a time.

    Args:
        models: by name.
        prompt_length: S.
        answer_length: T, at least 2; no stop token ends it.
        rounds: each runs every model, in turn first.
        seed: of the prompt.
        progress: called with (runs done, runs in all).

    Raises:
        InputError: if prompt and answer do not fit the model.
    """
    for name, model in models.items():
        check_fits(model.decoder.cfg, f'{name} ', prompt_length, answer_length)
    rng = np.random.default_rng(seed)

    def side(model: apply.LoadedModel) -> Callable[[int], Answered]:
        def run(_: int) -> Answered:
            vocab = model.decoder.cfg.vocab_size
            prompt = rng.integers(vocab, size=(1, prompt_length))
            return answer(model.decoder, model.masks, prompt, answer_length)

        return run

    sides = {name: side(model) for name, model in models.items()}
    times = {}
    for name, own in in_turn(sides, range(-1, rounds), progress).items():
        counted = [answered for _, answered in own[1:]]
        times[name] = Times(
            [answered.first for answered in counted],
            [answered.others / (answer_length - 1) for answered in counted],
        )
    return times


def xla_prefill_flops(model: apply.LoadedModel, tokens: int) -> float | None:
    """XLA's own count for the blocks over a prompt of S tokens; None if it has none.

    Of one compiled block, L times, since the loop over layers is counted once. Unlike
    `costs.prefill_flops` it counts norms, softmax and element-wise products.
    """
    decoder = model.decoder
    block = jax.tree.map(lambda x: x[0], decoder.blocks)
    cfg = decoder.cfg
    x = jax.ShapeDtypeStruct(
        (1, tokens, cfg.d_model), decoder.embedding.get_value().dtype
    )

    def run(block: Any, x: jax.Array) -> jax.Array:
        frequencies = rope_lib.inverse_frequencies(
            cfg.head_dim, cfg.rope_theta, cfg.rope_scaling
        )
        rope = rope_lib.rotation(jnp.arange(tokens)[None], frequencies)
        attend = attention.causal(1, tokens)
        return block(x, masks_lib.DENSE, rope, attend, None)[0]

    analysis = jax.jit(run).lower(block, x).compile().cost_analysis()
    flops = formats.number((analysis or {}).get('flops'))
    return flops * cfg.num_layers if flops else None
