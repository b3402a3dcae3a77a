"""Prefill and decoding measured, several models in turn in one run.

Machines are noisy: models take turns, and the median over rounds counts. A ratio of two
medians of one run says more than either time.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.masking import apply
from ppjax.models import attention, generation
from ppjax.models import rope as rope_lib
from ppjax.pages import formats


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


def _seconds(
    model: apply.LoadedModel, prompt: list[int], tokens: int
) -> tuple[float, float]:
    """(to the first token, for the others)."""
    began = time.perf_counter()
    answer = generation.stream(
        model.decoder, model.masks, [prompt], max_new_tokens=tokens, stop_ids=()
    )
    next(answer)
    first = time.perf_counter()
    for _ in answer:
        pass
    return first - began, time.perf_counter() - first


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
        positions = model.decoder.cfg.max_position
        if prompt_length + answer_length > positions:
            # Generation would stop short, and the time be divided by all of T.
            raise errors.InputError(
                f'The {name} model has {positions} positions; '
                f'--prompt_length={prompt_length} and --answer_length={answer_length} '
                'do not fit.'
            )
    rng = np.random.default_rng(seed)
    times = {name: Times([], []) for name in models}
    names = list(models)
    total = (rounds + 1) * len(names)
    for turn in range(-1, rounds):  # The first compiles, and is not counted.
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for place, name in enumerate(order):
            model = models[name]
            prompt = rng.integers(model.decoder.cfg.vocab_size, size=prompt_length)
            first, others = _seconds(model, prompt.tolist(), answer_length)
            if turn >= 0:
                times[name].prefill.append(first)
                times[name].decode.append(others / (answer_length - 1))
            progress((turn + 1) * len(names) + place + 1, total)
    return times


def xla_prefill_flops(model: apply.LoadedModel, tokens: int) -> float | None:
    """XLA's own count for the blocks over a prompt of S tokens; None if it has none.

    Of one compiled block, L times, since the loop over layers is counted once. Unlike
    `efficiency.prefill_flops` it counts norms, softmax and element-wise products.
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
        return block(x, None, rope, attention.causal(1, tokens), None)[0]

    analysis = jax.jit(run).lower(block, x).compile().cost_analysis()
    flops = formats.number((analysis or {}).get('flops'))
    return flops * cfg.num_layers if flops else None
