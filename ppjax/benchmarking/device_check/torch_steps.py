"""The same steps in PyTorch: the same examples, shapes, dtype and number of scores."""

from typing import Any

import numpy as np

from ppjax.base import errors
from ppjax.benchmarking import torch_mask_step, torch_model
from ppjax.benchmarking.device_check import shapes, steps
from ppjax.benchmarking.device_check import sizes as sizes_lib
from ppjax.evaluation import timing
from ppjax.masking import topk
from ppjax.planning import chips, step_shape

_WARM_UP = 2


def device() -> dict[str, Any]:
    """What PyTorch computes on; see `machine.device`.

    Raises:
        InputError: if PyTorch is not installed.
    """
    torch_model.check_installed()
    import torch

    where = torch_model.device()
    is_gpu = where.type == 'cuda'
    kind = torch.cuda.get_device_name(where) if is_gpu else where.type
    return {
        'platform': 'gpu' if is_gpu else where.type,
        'kind': kind,
        'is_gpu': is_gpu,
    }


def _learned(
    sizes: sizes_lib.Sizes,
    name: str,
    before: dict[str, Any],
    part: str,
    *,
    is_compiled: bool = False,
) -> dict[str, Any]:
    """One model's step.

    Raises:
        InputError: if there is no PyTorch, or it has no GPU where sizes are full, or a
            tiny model was to be compiled, which takes a CPU a minute.
    """
    if is_compiled and sizes.is_tiny:
        raise errors.InputError('torch.compile is left out where models are tiny.')
    where = device()
    import torch

    if not (where['is_gpu'] or sizes.is_tiny):
        raise errors.InputError(
            f'PyTorch {torch.__version__} has no CUDA device: there is nothing to '
            'compare with.'
        )
    shaped, step = sizes.shaped(name), sizes.step(name)
    cfg = shaped.config
    model = torch_model.random(dict(shaped.hf), dtype=sizes.dtype)
    learner = torch_mask_step.MaskLearner(
        model,
        np.random.default_rng(1).normal(size=(cfg.num_layers, cfg.d_ff)),
        topk.keep_size(cfg.d_ff, steps.SPARSITY, 1),
        learning_rate=step_shape.LEARNING_RATE,
        weight_decay=step_shape.WEIGHT_DECAY,
        compiled=is_compiled,
        dynamic=False,
    )
    # All are equally long: nothing is padded.
    batch = torch_mask_step.padded(step.examples(cfg.vocab_size), range(step.batch))
    first, loss = timing.timed(learner.step, batch)
    for _ in range(_WARM_UP - 1):
        learner.step(batch)
    spent = [timing.timed(learner.step, batch)[0] for _ in range(sizes.steps)]
    seconds = timing.spread(spent)
    measured = steps.rates(
        step, cfg, seconds['median'], chips.of_kind(where['kind']).flops_per_s
    )
    ours = before.get(part, {}).get('examples_per_s')
    return shaped.figures() | {
        'pytorch': torch.__version__,
        'is_compiled': is_compiled,
        'dtype': sizes.dtype,
        'first_step_seconds': first,
        'step_seconds': seconds,
        **measured,
        'loss': loss,
        'peak_memory_bytes': (
            torch.cuda.max_memory_allocated() if where['is_gpu'] else None
        ),
        'our_part': part,
        'ours_to_pytorch': ours / measured['examples_per_s'] if ours else None,
    }


def measure_3b(sizes: sizes_lib.Sizes, before: dict[str, Any]) -> dict[str, Any]:
    return _learned(sizes, shapes.LLAMA_3B, before, 'mask_step_3b')


def measure_8b(sizes: sizes_lib.Sizes, before: dict[str, Any]) -> dict[str, Any]:
    return _learned(sizes, shapes.LLAMA_8B, before, 'mask_step_8b')


def measure_3b_compiled(
    sizes: sizes_lib.Sizes, before: dict[str, Any]
) -> dict[str, Any]:
    return _learned(sizes, shapes.LLAMA_3B, before, 'mask_step_3b', is_compiled=True)


def measure_8b_compiled(
    sizes: sizes_lib.Sizes, before: dict[str, Any]
) -> dict[str, Any]:
    return _learned(sizes, shapes.LLAMA_8B, before, 'mask_step_8b', is_compiled=True)
