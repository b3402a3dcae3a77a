"""What runs of the frozen model: Eq. 2 scoring, and generation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.benchmarking.device_check import machine, shapes
from ppjax.benchmarking.device_check import sizes as sizes_lib
from ppjax.evaluation import timing
from ppjax.models import masks as masks_lib
from ppjax.synthesis import prompt_tokens, sensitivity


def scoring(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    """Queries under a target and its references, at some numbers of tokens a call."""
    shaped = sizes.shaped(shapes.LLAMA_3B)
    cfg, rng = shaped.config, np.random.default_rng(0)

    def tokens(length: int) -> np.ndarray:
        return rng.integers(cfg.vocab_size, size=length).astype(np.int32)

    prompts = prompt_tokens.PromptTokens(
        prefixes=tuple(
            tuple(tokens(sizes.prompt).tolist()) for _ in range(sizes.personas)
        ),
        suffixes=tuple(tokens(sizes.query) for _ in range(sizes.queries)),
        rendered=tuple(range(sizes.queries)),
        too_long=0,
        refused=0,
    )
    model = shapes.random_model(cfg, jnp.dtype(sizes.dtype))
    layers = sensitivity.parse_layers(None, cfg.num_layers)
    calls: dict[str, dict[str, Any]] = {}
    for number in sizes.call_tokens:

        def run(_: int, number: int = number) -> np.ndarray:
            scorer = sensitivity.Scorer(
                model, prompts, layers=layers, batch_tokens=number
            )
            return np.concatenate([scores for _, scores in scorer.score()])

        first, scores = timing.timed(run, 0)
        spent = timing.spread(
            [timing.timed(run, turn)[0] for turn in range(sizes.rounds)]
        )
        calls[str(number)] = {
            'first_seconds': first,
            'seconds': spent,
            'examples_per_s': sizes.queries / spent['median'],
            'query_tokens_per_s': sizes.queries
            * sizes.query
            * sizes.personas
            / spent['median'],
            'is_finite': bool(np.isfinite(scores).all()),
        }
    return shaped.figures() | {
        'dtype': sizes.dtype,
        'personas': sizes.personas,
        'persona_tokens': sizes.prompt,
        'queries': sizes.queries,
        'query_tokens': sizes.query,
        'by_tokens_a_call': calls,
        'examples_per_s': max(own['examples_per_s'] for own in calls.values()),
        'peak_memory_bytes': machine.memory()['peak'],
    }


def generation(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    """Greedy answers of the dense model to random prompts, rows at a time."""
    shaped = sizes.shaped(shapes.LLAMA_3B)
    cfg, rng = shaped.config, np.random.default_rng(0)
    length, answer = sizes.generated_prompt, sizes.generated_answer
    model = shapes.random_model(cfg, jnp.dtype(sizes.dtype))
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model))
    batches: dict[str, dict[str, Any]] = {}
    for rows in sizes.generated:

        def run(_: int, rows: int = rows) -> timing.Answered:
            prompts = rng.integers(cfg.vocab_size, size=(rows, length))
            return timing.answer(model, masks_lib.DENSE, prompts, answer)

        first, _answered = timing.timed(run, 0)
        taken = [run(turn) for turn in range(sizes.rounds)]
        prefill, decode = (
            timing.spread([getattr(answered, part) for answered in taken])
            for part in ('first', 'others')
        )
        step_seconds = decode['median'] / (answer - 1)
        batches[str(rows)] = {
            'first_seconds': first,
            'prefill_seconds': prefill,
            'decode_seconds': decode,
            'prefill_tokens_per_s': rows * length / prefill['median'],
            'decode_tokens_per_s': rows / step_seconds,
            # Each step reads every weight once.
            'weight_bytes_per_s': weights / step_seconds,
        }
    return shaped.figures() | {
        'dtype': sizes.dtype,
        'prompt_tokens': length,
        'answer_tokens': answer,
        'by_rows': batches,
        'peak_memory_bytes': machine.memory()['peak'],
    }
