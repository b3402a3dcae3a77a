"""Mask learning steps against plain PyTorch, in turn, on the same examples."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax import demo
from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import (
    config,
    inputs,
    matrix_peak,
    torch_mask_step,
    torch_model,
)
from ppjax.data import chat, order, packing
from ppjax.evaluation import timing
from ppjax.masking import topk
from ppjax.models import base_model, loading
from ppjax.personas import sources as persona_sources
from ppjax.planning import step_shape, useful_flops
from ppjax.training import starts as starts_lib
from ppjax.training import step as step_lib

_SCORE_SCALE = 0.1

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
    cfg: config.BenchConfig,
    base: base_model.BaseModel,
    examples: Sequence[chat.Example],
    batches: Sequence[np.ndarray],
) -> tuple[np.ndarray, int, packing.PackedShape, Callable[[int], float]]:
    """What both sides start from, and a function that takes one of our steps.

    Returns:
        (scores [L, F], k, shape, step number -> loss).
    """
    dtype, d_ff = jnp.dtype(cfg.dtype), base.config.d_ff
    model = loading.load_decoder(base.reader, base.config, dtype=dtype)
    [start] = starts_lib.Starts.of_personas([examples], seed=0)
    scores = start.activation(model) * _SCORE_SCALE
    keep = topk.keep_size(d_ff, cfg.sparsity, 64 if d_ff % 64 == 0 else 1)
    shape = packing.plan_shape(
        examples, batches, prefix=packing.common_prefix(examples)
    )
    learning = step_shape.plain_learning(keep, remat=cfg.remat)
    train_step = step_lib.make_train_step(learning, shape)
    before = state = step_lib.init_state(scores[None], learning)

    def take(number: int) -> float:
        nonlocal state
        # Packing is part of a step, as padding is of the other side's.
        packed = packing.pack(examples, batches[number], shape)
        batch = jax.tree.map(lambda x: x[None], packed)
        turn = step_shape.plain_turn(number, of=len(batches))
        state, metrics = train_step(state, model, batch, turn)
        return float(metrics.loss[0])

    # Compiles; the state it leaves is not used.
    take(0)
    state = before
    return np.asarray(scores), keep, shape, take


def _their_step(
    base: base_model.BaseModel,
    examples: Sequence[chat.Example],
    batches: Sequence[np.ndarray],
    scores: np.ndarray,
    keep: int,
    *,
    dtype: str,
    compiled: bool = False,
) -> Callable[[int], float]:
    """PyTorch's step number -> loss, warmed up as compiling did ours."""
    import torch

    learner = torch_mask_step.MaskLearner(
        torch_model.load(base).to(torch_model.device(), getattr(torch, dtype)),
        scores,
        keep,
        learning_rate=step_shape.LEARNING_RATE,
        weight_decay=step_shape.WEIGHT_DECAY,
        compiled=compiled,
    )
    # Of two lengths, so that what is compiled is not for one alone.
    for batch in (batches[0], batches[-1]):
        learner.gradient(torch_mask_step.padded(examples, batch))
    return lambda number: learner.step(
        torch_mask_step.padded(examples, batches[number])
    )


def _examples(
    cfg: config.BenchConfig, base: base_model.BaseModel
) -> list[chat.Example]:
    """Those of the first of `--names`.

    Raises:
        InputError: if they are too few for a step.
    """
    name = cfg.persona_names[0]
    source = cfg.calibration.replace('{persona}', name)
    rows = demo.read_rows(source, split='train')
    if cfg.persona:
        prompt = persona_sources.read_persona(cfg.persona).system_prompt
        rows = [row.with_system_prompt(prompt) for row in rows]
    examples, _ = chat.render_rows(inputs.renderer(cfg, base), rows, cfg.max_length)
    if len(examples) < cfg.batch_size:
        raise errors.InputError(
            f'--batch_size={cfg.batch_size}, and {source} has {len(examples)} rows of '
            f'up to {cfg.max_length} tokens.'
        )
    return examples


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Takes steps on both sides in turn and compares.

    PyTorch learns twice, from batches as ours and from the same examples batched by
    length; the ratio is to the fastest. With `--torch_compile` it learns a third time,
    compiled, from the batches by length; where that fails the result says why.

    Returns:
        Seconds, rates, their ratio, the losses of all steps, and the share of the
        matrix product's peak that our useful FLOPs reach.

    Raises:
        InputError: if there are too few examples for a step.
    """
    base = base_model.open_base_model(cfg.base_model)
    examples = _examples(cfg, base)
    own, by_length = _batches(examples, cfg.steps, cfg.batch_size)
    scores, keep, shape, take = _our_step(cfg, base, examples, own)
    theirs = functools.partial(
        _their_step, base, examples, scores=scores, keep=keep, dtype=cfg.dtype
    )
    orders = {PADDED: own, SORTED: by_length}
    sides = {OURS: take} | {name: theirs(order) for name, order in orders.items()}
    failed: dict[str, Any] = {}
    if cfg.torch_compile:
        orders[COMPILED] = by_length
        try:
            sides[COMPILED] = theirs(by_length, compiled=True)
        except Exception as error:  # noqa: BLE001  Compilers raise all kinds.
            said = str(error).strip().partition('\n')[0]
            failed[COMPILED] = {'failed': said}
    taken = timing.in_turn(sides, range(cfg.steps), progress_lib.counter('Mask steps'))
    seconds = {name: [spent for spent, _ in steps] for name, steps in taken.items()}
    totals = {name: sum(spent) for name, spent in seconds.items()}
    lengths = np.array([len(example.tokens) for example in examples])
    answers = np.array([example.num_answer_tokens for example in examples])
    useful = sum(
        useful_flops.mask_step(
            base.config,
            prefix=shape.prefix,
            own=(lengths[batch] - shape.prefix).tolist(),
            answers=int(answers[batch].sum()),
        )
        for batch in own
    )
    peak = matrix_peak.flops_per_s(jnp.dtype(cfg.dtype), size=matrix_peak.best_size())
    found: dict[str, Any] = {
        name: {
            'seconds': spent,
            'step_seconds': timing.spread(spent),
            'examples_per_s': cfg.steps * cfg.batch_size / totals[name],
            'answer_tokens_per_s': int(answers[own].sum()) / totals[name],
        }
        for name, spent in seconds.items()
    }
    fastest = min((name for name in sides if name != OURS), key=totals.__getitem__)
    return (
        found
        | failed
        | {
            'prefix_tokens': shape.prefix,
            'tokens_per_step': {OURS: shape.tokens_per_row * shape.rows}
            | {
                name: float(np.mean(lengths[order].max(axis=1)) * cfg.batch_size)
                for name, order in orders.items()
            },
            'losses': {
                name: [loss for _, loss in steps] for name, steps in taken.items()
            },
            'reference': fastest,
            'ratio_to_reference': totals[fastest] / totals[OURS],
            'ratios_of_steps_to_padded': [
                other / mine
                for mine, other in zip(seconds[OURS], seconds[PADDED], strict=True)
            ],
            'useful_flops_per_step': useful / cfg.steps,
            'matrix_peak_flops_per_s': peak,
            'utilisation': useful / totals[OURS] / peak,
        }
    )
