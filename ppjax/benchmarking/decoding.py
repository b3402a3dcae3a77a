"""Prefill and decoding against transformers' generate, dense and pruned, in turn."""

from collections.abc import Callable, Sequence
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import torch_model
from ppjax.evaluation import timing
from ppjax.models import base_model, generation, loading, sliced
from ppjax.models import masks as masks_lib

OURS, THEIRS = 'ppjax', 'pytorch'

# (prompts [B, S], tokens an answer) -> (seconds to the first tokens, seconds for the
# others, the answers [B, T]).
Side = Callable[[np.ndarray, int], tuple[float, float, np.ndarray]]


def _ours(base: base_model.BaseModel, dtype: str) -> Side:
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.dtype(dtype))
    jax.block_until_ready(model)

    def run(prompts: np.ndarray, tokens: int) -> tuple[float, float, np.ndarray]:
        began = time.perf_counter()
        answers = generation.stream(
            model, masks_lib.DENSE, prompts.tolist(), max_new_tokens=tokens, stop_ids=()
        )
        drawn = [next(answers)]
        first = time.perf_counter()
        drawn += list(answers)
        return first - began, time.perf_counter() - first, np.stack(drawn, axis=1)

    return run


class _Clock:
    """A stopping criterion that never stops, and notes when the first token came."""

    def __init__(self, torch: Any):
        self._torch = torch
        self.first = 0.0

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        del scores
        self.first = self.first or time.perf_counter()
        return self._torch.zeros(len(ids), dtype=self._torch.bool)


def _theirs(
    base: base_model.BaseModel,
    dtype: str,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
) -> Side:
    model = torch_model.load(base, tokenizer)
    import torch

    model = model.to(getattr(torch, dtype))
    # With the checkpoint's own its end-of-text token would end answers.
    model.generation_config = transformers.GenerationConfig()

    def run(prompts: np.ndarray, tokens: int) -> tuple[float, float, np.ndarray]:
        clock = _Clock(torch)
        settings = transformers.GenerationConfig(
            max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        inputs = torch.from_numpy(prompts)
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=settings,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        ended = time.perf_counter()
        answers = out[:, prompts.shape[1] :].numpy()
        return clock.first - began, ended - clock.first, answers

    return run


def _take_turns(
    sides: dict[str, Side],
    prompts: Sequence[np.ndarray],
    tokens: int,
    label: str,
) -> dict[str, Any]:
    """Seconds of all sides; the first prompts compile, and are not counted."""
    names = list(sides)
    first: dict[str, list[float]] = {name: [] for name in names}
    others: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, list[np.ndarray]] = {name: [] for name in names}
    progress = progress_lib.Progress(label, len(prompts) * len(names))
    for turn, batch in enumerate(prompts):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            to_first, rest, drawn = sides[name](batch, tokens)
            answers[name].append(drawn)
            if turn:
                first[name].append(to_first)
                others[name].append(rest)
            progress.update(sum(len(drawn) for drawn in answers.values()))
    progress.close()
    rows, length = prompts[0].shape
    found: dict[str, Any] = {}
    for name in names:
        prefill, rest = (statistics.median(values[name]) for values in (first, others))
        found[name] = {
            'prefill_seconds': timing.spread(first[name]),
            'decode_seconds': timing.spread(others[name]),
            'prefill_tokens_per_s': rows * length / prefill,
            'decode_tokens_per_s': rows * (tokens - 1) / rest,
            'seconds': prefill + rest,
        }
    return found | {
        'answers': {
            name: np.concatenate(drawn).tolist() for name, drawn in answers.items()
        }
    }


def _ratios(of: dict[str, Any], to: dict[str, Any]) -> dict[str, float]:
    """How many times as fast `of` is as `to`."""
    return {
        'prefill': of['prefill_tokens_per_s'] / to['prefill_tokens_per_s'],
        'decode': of['decode_tokens_per_s'] / to['decode_tokens_per_s'],
        'whole': to['seconds'] / of['seconds'],
    }


def _prompts(
    base: base_model.BaseModel, batch: int, length: int, tokens: int, rounds: int
) -> list[np.ndarray]:
    """Random prompts int64 [B, S] of the rounds, and one batch more that compiles.

    Raises:
        InputError: if prompt and answer do not fit the model.
    """
    if length + tokens > base.config.max_position:
        raise errors.InputError(
            f'The model has {base.config.max_position} positions; '
            f'--prompt_length={length} and --answer_length={tokens} do not fit.'
        )
    rng = np.random.default_rng(0)
    shape = (batch, length)
    vocab = base.config.vocab_size
    return [rng.integers(vocab, size=shape) for _ in range(rounds + 1)]


def _same(answers: dict[str, Any], one: str, other: str) -> float:
    """The share of answers that two sides give alike."""
    pairs = list(zip(answers[one], answers[other], strict=True))
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


def compare(
    base: base_model.BaseModel,
    *,
    batches: Sequence[int],
    prompt_length: int,
    answer_length: int,
    rounds: int,
    dtype: str,
) -> dict[str, Any]:
    """Greedy answers to random prompts of one length, batch by batch.

    Args:
        base: the model.
        batches: prompts at a time, each in turn.
        prompt_length: S.
        answer_length: T, at least 2; nothing ends an answer before.
        rounds: both sides answer so many batches of each size that count.
        dtype: of both sides' weights and activations.

    Returns:
        For each size of batch seconds, tokens a second, ratios, and the share of
        answers that are the same; and `ratio_to_reference`, of whole answers, by
        size.

    Raises:
        InputError: if prompt and answer do not fit the model.
    """
    drawn = {
        size: _prompts(base, size, prompt_length, answer_length, rounds)
        for size in batches
    }
    sides = {OURS: _ours(base, dtype), THEIRS: _theirs(base, dtype)}
    found: dict[str, Any] = {'batches': {}}
    for size, prompts in drawn.items():
        label = f'Answers, {size} at a time'
        times = _take_turns(sides, prompts, answer_length, label)
        same = _same(times.pop('answers'), OURS, THEIRS)
        times |= {'ratios': _ratios(times[OURS], times[THEIRS]), 'same_answers': same}
        found['batches'][size] = times
    return found | {
        'ratio_to_reference': {
            size: times['ratios']['whole'] for size, times in found['batches'].items()
        }
    }


def compare_pruned(
    base: base_model.BaseModel,
    mask: np.ndarray,
    *,
    batch: int,
    prompt_length: int,
    answer_length: int,
    rounds: int,
    dtype: str,
) -> dict[str, Any]:
    """The same of the dense model and of the channels that a mask keeps.

    Args:
        base: the dense model.
        mask: bool [L, F].
        batch: prompts at a time.
        prompt_length: and the other arguments: see `compare`.

    Returns:
        Seconds and tokens a second of `dense` and `pruned` in both runtimes, how many
        times as fast pruning makes each (`speedup`), and `ratio_to_reference` of ours
        to PyTorch for both models.

    Raises:
        InputError: if prompt and answer do not fit the model.
    """
    prompts = _prompts(base, batch, prompt_length, answer_length, rounds)
    models = {'dense': base, 'pruned': sliced.sliced_model(base, mask)}
    makers: dict[str, Callable[[base_model.BaseModel, str], Side]] = {
        OURS: _ours,
        THEIRS: functools.partial(_theirs, tokenizer=base.tokenizer()),
    }
    sides = {
        f'{runtime}_{name}': make(model, dtype)
        for name, model in models.items()
        for runtime, make in makers.items()
    }
    times = _take_turns(sides, prompts, answer_length, 'Answers')
    answers = times.pop('answers')
    return times | {
        'same_answers': {
            name: _same(answers, f'{OURS}_{name}', f'{THEIRS}_{name}')
            for name in models
        },
        'speedup': {
            runtime: _ratios(times[f'{runtime}_pruned'], times[f'{runtime}_dense'])
            for runtime in makers
        },
        'ratio_to_reference': {
            name: _ratios(times[f'{OURS}_{name}'], times[f'{THEIRS}_{name}'])['whole']
            for name in models
        },
    }
