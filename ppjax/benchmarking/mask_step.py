"""Mask learning steps against plain PyTorch, in turn, on the same examples."""

from collections.abc import Callable, Mapping, Sequence
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import progress as progress_lib
from ppjax.benchmarking import (
    matrix_peak,
    torch_mask_step,
    torch_model,
)
from ppjax.data import chat, order, packing
from ppjax.evaluation import timing
from ppjax.masking import topk
from ppjax.models import base_model, loading
from ppjax.planning import useful_flops
from ppjax.training import starts as starts_lib
from ppjax.training import step as step_lib
from ppjax.training import turns

_LEARNING_RATE, _WEIGHT_DECAY = 1e-2, 0.01
_SCORE_SCALE = 0.1
_PEAK_SIZE = 4096

OURS, PADDED, SORTED = 'ppjax', 'pytorch_padded', 'pytorch_sorted'
COMPILED = 'pytorch_sorted_compiled'


def _batches(
    examples: Sequence[chat.Example], steps: int, batch_size: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The run's own batches, and the same examples batched by length."""
    lengths = np.array([len(example.tokens) for example in examples])
    own = order.all_steps(0, steps, batch_size, lengths)
    drawn = np.concatenate(own)
    by_length = drawn[np.argsort(lengths[drawn], kind='stable')]
    return own, list(by_length.reshape(steps, batch_size))


def _our_step(
    base: base_model.BaseModel,
    examples: Sequence[chat.Example],
    batches: Sequence[np.ndarray],
    *,
    sparsity: float,
    dtype: str,
    remat: str,
) -> tuple[np.ndarray, int, packing.PackedShape, Callable[[int], float]]:
    """What both sides start from, and a function that takes one of our steps.

    Returns:
        (scores [L, F], k, shape, step number -> loss).
    """
    cfg = base.config
    model = loading.load_decoder(base.reader, cfg, dtype=jnp.dtype(dtype))
    [start] = starts_lib.Starts.of_personas([examples], seed=0)
    scores = start.activation(model) * _SCORE_SCALE
    keep = topk.keep_size(cfg.d_ff, sparsity, 64 if cfg.d_ff % 64 == 0 else 1)
    shape = packing.plan_shape(
        examples, batches, prefix=packing.common_prefix(examples)
    )
    learning = step_lib.Learning(
        keep=keep,
        estimator='ste',
        objective='ce',
        anneal=0.0,
        weight_decay=_WEIGHT_DECAY,
        remat=remat,
        seed=0,
    )
    train_step = step_lib.make_train_step(learning, shape)
    state = step_lib.init_state(scores[None], learning)

    def take(number: int) -> float:
        nonlocal state
        # Packing is part of a step, as padding is of the other side's.
        packed = packing.pack(examples, batches[number], shape)
        batch = jax.tree.map(lambda x: x[None], packed)
        turn = turns.make_turn(
            [0], [number], [len(batches)], [lambda _: _LEARNING_RATE], slots=1
        )
        state, metrics = train_step(state, model, batch, turn)
        return float(metrics.loss[0])

    # Compiles; the state it leaves is not used.
    before = state
    take(0)
    state = before
    return np.asarray(scores), keep, shape, take


def _learners(
    base: base_model.BaseModel,
    examples: Sequence[chat.Example],
    orders: Mapping[str, Sequence[np.ndarray]],
    scores: np.ndarray,
    keep: int,
    dtype: str,
) -> tuple[dict[str, torch_mask_step.MaskLearner], dict[str, Any]]:
    """PyTorch's sides, warmed up as compiling did ours, and why others failed."""
    import torch

    learners: dict[str, torch_mask_step.MaskLearner] = {}
    failed: dict[str, Any] = {}
    for name, batches in orders.items():
        learner = torch_mask_step.MaskLearner(
            torch_model.load(base).to(getattr(torch, dtype)),
            scores,
            keep,
            learning_rate=_LEARNING_RATE,
            weight_decay=_WEIGHT_DECAY,
            compiled=name == COMPILED,
        )
        try:
            # Of two lengths, so that what is compiled is not for one alone.
            for batch in (batches[0], batches[-1]):
                learner.gradient(torch_mask_step.padded(examples, batch))
        except Exception as error:  # Compilers have errors of all kinds.
            if name != COMPILED:
                raise
            failed[name] = {'failed': str(error).strip().partition('\n')[0]}
        else:
            learners[name] = learner
    return learners, failed


def compare(
    base: base_model.BaseModel,
    examples: Sequence[chat.Example],
    *,
    steps: int,
    batch_size: int,
    sparsity: float,
    dtype: str,
    remat: str,
    torch_compile: bool = False,
) -> dict[str, Any]:
    """Takes steps on both sides in turn and compares.

    PyTorch learns twice, from batches as ours and from the same examples batched by
    length; the ratio is to the fastest.

    Args:
        base: the model.
        examples: of one persona.
        steps: of each side.
        batch_size: examples a step.
        sparsity: share of channels removed.
        dtype: of both sides' weights and activations.
        remat: of ours; see `Decoder.__call__`.
        torch_compile: whether PyTorch learns a third time, compiled, from the batches
            by length. Where that fails the result says why.

    Returns:
        Seconds, rates, their ratio, the losses of all steps, and the share of the
        matrix product's peak that our useful FLOPs reach.
    """
    own, by_length = _batches(examples, steps, batch_size)
    scores, keep, shape, take = _our_step(
        base, examples, own, sparsity=sparsity, dtype=dtype, remat=remat
    )
    orders = {PADDED: own, SORTED: by_length}
    if torch_compile:
        orders[COMPILED] = by_length
    learners, failed = _learners(base, examples, orders, scores, keep, dtype)

    def theirs(name: str, number: int) -> float:
        batch = torch_mask_step.padded(examples, orders[name][number])
        return learners[name].step(batch)

    sides: dict[str, Callable[[int], float]] = {OURS: take}
    sides |= {name: functools.partial(theirs, name) for name in learners}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number in progress_lib.over(range(steps), 'Mask steps'):
        for name, run in sides.items():
            began = time.perf_counter()
            losses[name].append(run(number))
            seconds[name].append(time.perf_counter() - began)
    peak = matrix_peak.flops_per_s(jnp.dtype(dtype), size=_PEAK_SIZE)
    useful = sum(
        useful_flops.mask_step(
            base.config,
            prefix=shape.prefix,
            own=[len(examples[item].tokens) - shape.prefix for item in batch],
            answers=sum(examples[item].num_answer_tokens for item in batch),
        )
        for batch in own
    )
    answers = sum(examples[item].num_answer_tokens for batch in own for item in batch)

    def rates(name: str) -> dict[str, Any]:
        total = sum(seconds[name])
        return {
            'seconds': seconds[name],
            'step_seconds': timing.spread(seconds[name]),
            'examples_per_s': steps * batch_size / total,
            'answer_tokens_per_s': answers / total,
        }

    found: dict[str, Any] = {name: rates(name) for name in sides} | failed
    fastest = min(learners, key=lambda name: sum(seconds[name]))
    return found | {
        'prefix_tokens': shape.prefix,
        'tokens_per_step': {
            OURS: shape.tokens_per_row * shape.rows,
            **{
                name: float(
                    np.mean(
                        [
                            max(len(examples[item].tokens) for item in batch)
                            * len(batch)
                            for batch in batches
                        ]
                    )
                )
                for name, batches in orders.items()
            },
        },
        'losses': losses,
        'reference': fastest,
        'ratio_to_reference': sum(seconds[fastest]) / sum(seconds[OURS]),
        'ratios_of_steps_to_padded': [
            other / mine
            for mine, other in zip(seconds[OURS], seconds[PADDED], strict=True)
        ],
        'useful_flops_per_step': useful / steps,
        'matrix_peak_flops_per_s': peak,
        'utilisation': useful / sum(seconds[OURS]) / peak,
    }
