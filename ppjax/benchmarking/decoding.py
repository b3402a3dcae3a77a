"""Prefill and decoding against transformers or llama.cpp, dense and pruned, in turn."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from ppjax.base import errors, settings
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config, llama_answers, torch_model
from ppjax.evaluation import timing
from ppjax.masking import pmask, topk
from ppjax.models import base_model, int8_head, loading, sliced
from ppjax.models import masks as masks_lib

OURS, THEIRS, LLAMA = 'ppjax', 'pytorch', 'llama.cpp'

# (prompts [B, S], tokens T an answer) -> answers and their times.
Side = Callable[[np.ndarray, int], timing.Answered]


def _ours(base: base_model.BaseModel, dtype: str, int8: bool = False) -> Side:
    model = loading.load_decoder(
        base.reader, base.config, dtype=jnp.dtype(dtype), int8_matrices=int8
    )
    model = jax.block_until_ready(int8_head.with_int8_head(model))
    return functools.partial(timing.answer, model, masks_lib.DENSE)


class _Clock:
    """A stopping criterion that never stops, and notes when the first token came."""

    def __init__(self, torch: Any):
        self._torch = torch
        self.first = 0.0

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        del scores
        if not self.first:
            torch_model.wait_for(ids.device)
            self.first = time.perf_counter()
        return self._torch.zeros(len(ids), dtype=self._torch.bool, device=ids.device)


def _theirs(
    base: base_model.BaseModel,
    dtype: str,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
) -> Side:
    model = torch_model.load(base, tokenizer)
    import torch

    model = model.to(torch_model.device(), getattr(torch, dtype))
    # With the checkpoint's own its end-of-text token would end answers.
    model.generation_config = transformers.GenerationConfig()

    def run(prompts: np.ndarray, tokens: int) -> timing.Answered:
        clock = _Clock(torch)
        greedy = transformers.GenerationConfig(
            max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        began = time.perf_counter()
        inputs = torch.from_numpy(prompts).to(model.device)
        with torch.inference_mode():
            out = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=greedy,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        answers = out[:, prompts.shape[1] :].cpu().numpy()
        others = time.perf_counter() - clock.first
        return timing.Answered(clock.first - began, others, answers)

    return run


def _take_turns(
    cfg: config.BenchConfig, sides: Mapping[str, Side], prompts: Sequence[np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Seconds and rates of all sides, and their answers to all prompts.

    The first prompts compile, and are not counted.
    """
    rows, length = prompts[0].shape
    tokens = cfg.answer_length

    def answer(run: Side, turn: int) -> timing.Answered:
        return run(prompts[turn], tokens)

    found = timing.in_turn(
        {name: functools.partial(answer, run) for name, run in sides.items()},
        range(len(prompts)),
        progress_lib.counter(f'Answers, {rows} at a time'),
    )
    times, answers = {}, {}
    for name, own in found.items():
        prefill, decode = (
            timing.spread([getattr(answered, part) for _, answered in own[1:]])
            for part in ('first', 'others')
        )
        times[name] = {
            'prefill_seconds': prefill,
            'decode_seconds': decode,
            'prefill_tokens_per_s': rows * length / prefill['median'],
            'decode_tokens_per_s': rows * (tokens - 1) / decode['median'],
            'seconds': prefill['median'] + decode['median'],
        }
        answers[name] = np.concatenate([x.tokens for _, x in own])
    return times, answers


def _ratios(of: dict[str, Any], to: dict[str, Any]) -> dict[str, float]:
    """How many times as fast `of` is as `to`."""
    return {
        'prefill': of['prefill_tokens_per_s'] / to['prefill_tokens_per_s'],
        'decode': of['decode_tokens_per_s'] / to['decode_tokens_per_s'],
        'whole': to['seconds'] / of['seconds'],
    }


def _prompts(
    cfg: config.BenchConfig, base: base_model.BaseModel, batch: int
) -> list[np.ndarray]:
    """Random prompts int64 [B, S] of the rounds, and one batch more that compiles.

    Raises:
        InputError: if prompt and answer do not fit the model.
    """
    timing.check_fits(base.config, '', cfg.prompt_length, cfg.answer_length)
    rng = np.random.default_rng(0)
    shape = (batch, cfg.prompt_length)
    vocab = base.config.vocab_size
    return [rng.integers(vocab, size=shape) for _ in range(cfg.rounds + 1)]


def _same(one: np.ndarray, other: np.ndarray) -> float:
    """The share of answers [n, T] that two sides give alike."""
    return float(np.mean(np.all(one == other, axis=1)))


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Greedy answers to random prompts of one length, batch by batch.

    Returns:
        For each size of batch seconds, tokens a second, ratios, and the share of
        answers that are the same; and `ratio_to_reference`, of whole answers, by
        size.

    Raises:
        InputError: if prompt and answer do not fit the model, or llama.cpp is wanted
            and not there, or has no file.
    """
    against_llama = cfg.reference == LLAMA
    if against_llama and not cfg.files:
        raise errors.InputError(
            '--reference=llama.cpp serves a GGUF file: name one of the same model with '
            '--files=FILE.'
        )
    base = base_model.open_base_model(cfg.base_model)
    sizes = settings.numbers(cfg, 'batches', least=1)
    drawn = {size: _prompts(cfg, base, size) for size in sizes}
    ours = _ours(base, cfg.dtype, cfg.int8_base)
    theirs = None if against_llama else _theirs(base, cfg.dtype)
    name = LLAMA if against_llama else THEIRS
    found, ratios = {}, {}
    for size, prompts in drawn.items():
        with contextlib.ExitStack() as stack:
            other = theirs or stack.enter_context(
                llama_answers.answering(
                    str(cfg.files), size, cfg.prompt_length, cfg.answer_length
                )
            )
            times, answers = _take_turns(cfg, {OURS: ours, name: other}, prompts)
        own = _ratios(times[OURS], times[name])
        same = _same(answers[OURS], answers[name])
        found[size] = times | {'ratios': own, 'same_answers': same}
        ratios[size] = own['whole']
    return {'batches': found, 'ratio_to_reference': ratios}


def _pruned(
    cfg: config.BenchConfig, base: base_model.BaseModel
) -> base_model.BaseModel:
    """What `--mask` keeps, or any mask of `--sparsity`."""
    layers, d_ff = base.config.num_layers, base.config.d_ff
    if not cfg.mask:
        keep = topk.keep_size(d_ff, cfg.sparsity, 64 if d_ff % 64 == 0 else 1)
        # Which channels they are changes no time.
        kept = np.arange(d_ff)[None] < np.full((layers, 1), keep)
        return sliced.sliced_model(base, kept)
    mask = pmask.load(cfg.mask)
    mask.check_base(base.fingerprint(), layers, d_ff)
    if mask.granularity == pmask.BLOCKS:
        raise errors.InputError(
            f'--mask: {cfg.mask} is a mask of blocks; wanted one of channels.'
        )
    return mask.pruned(base)


def compare_pruned(cfg: config.BenchConfig) -> dict[str, Any]:
    """The same of the dense model and of the channels that a mask keeps.

    Returns:
        Seconds and tokens a second of `dense` and `pruned` in both runtimes, how many
        times as fast pruning makes each (`speedup`), and `ratio_to_reference` of ours
        to PyTorch for both models.

    Raises:
        InputError: if the mask is not one of the model's channels, or prompt and answer
            do not fit it.
    """
    base = base_model.open_base_model(cfg.base_model)
    pruned = _pruned(cfg, base)
    prompts = _prompts(cfg, base, cfg.batch_size)
    models = {'dense': base, 'pruned': pruned}
    makers: dict[str, Callable[[base_model.BaseModel, str], Side]] = {
        OURS: _ours,
        THEIRS: functools.partial(_theirs, tokenizer=base.tokenizer()),
    }
    sides = {
        f'{runtime}_{name}': make(model, cfg.dtype)
        for name, model in models.items()
        for runtime, make in makers.items()
    }
    times, answers = _take_turns(cfg, sides, prompts)
    pairs = {name: (f'{OURS}_{name}', f'{THEIRS}_{name}') for name in models}
    return times | {
        'same_answers': {
            name: _same(answers[ours], answers[theirs])
            for name, (ours, theirs) in pairs.items()
        },
        'speedup': {
            runtime: _ratios(times[f'{runtime}_pruned'], times[f'{runtime}_dense'])
            for runtime in makers
        },
        'ratio_to_reference': {
            name: _ratios(times[ours], times[theirs])['whole']
            for name, (ours, theirs) in pairs.items()
        },
    }
