"""Mask learning steps: what the plan says of them, and what they take.

The program that is planned is the one that runs.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.benchmarking.device_check import machine, shapes
from ppjax.benchmarking.device_check import sizes as sizes_lib
from ppjax.data import packing
from ppjax.evaluation import timing
from ppjax.masking import topk
from ppjax.models import decoder as decoder_lib
from ppjax.models import fused_attention
from ppjax.planning import chips, compiled, report, step_shape
from ppjax.planning import config as plan_config
from ppjax.training import step as step_lib

SPARSITY = 0.25
# Of a chip's memory weights alone may take so much; the step needs some too.
_WEIGHTS_SHARE = 0.9
_WARM_UP = 2
_GB = 1e9


def rates(
    step: step_shape.Shape, cfg: Any, seconds: float, peak: float | None
) -> dict[str, Any]:
    """What a step's seconds come to.

    `tokens_per_s` counts every example whole, as a padded batch would hold it;
    `useful_flops` are those of the packed step, whoever takes it.
    """
    flops = step.useful_flops(cfg)
    return {
        'examples_per_s': step.batch / seconds,
        'tokens_per_s': step.batch * (step.persona + step.own) / seconds,
        'answer_tokens_per_s': step.batch * step.answer / seconds,
        'useful_flops_per_step': flops,
        'mfu': None if peak is None else flops / seconds / peak,
        'mfu_of_peak_flops_per_s': peak,
    }


def _arguments(
    step: step_shape.Shape,
    model: decoder_lib.Decoder,
    packed: packing.PackedShape,
    learning: step_lib.Learning,
) -> tuple[Any, ...]:
    cfg = model.cfg
    examples = step.examples(cfg.vocab_size)
    batch = packing.pack(examples, np.arange(step.batch), packed)
    shape = (1, cfg.num_layers, cfg.d_ff)
    state = step_lib.init_state(jax.random.normal(jax.random.key(1), shape), learning)
    slots = jax.tree.map(lambda x: x[None], batch)
    return state, model, slots, step_shape.plain_turn()


def _check_fits(
    shaped: shapes.Shaped, parameters: int, itemsize: int, chip: chips.Chip
) -> None:
    there, wanted = chip.memory, parameters * itemsize
    if there is not None and wanted > _WEIGHTS_SHARE * there:
        raise errors.InputError(
            f'{shaped.name}: weights of {wanted / _GB:.1f} GB, and the device lends '
            f'{there / _GB:.1f} GB.'
        )


def _learned(
    sizes: sizes_lib.Sizes, shaped: shapes.Shaped, *, remat: str
) -> dict[str, Any]:
    """One model's step, planned and measured.

    Raises:
        InputError: if the device's memory cannot hold its weights.
    """
    cfg, step = shaped.config, sizes.step(shaped.name)
    device, dtype = jax.devices()[0], jnp.dtype(sizes.dtype)
    chip = chips.of_device(device)
    figures = shaped.figures()
    _check_fits(shaped, figures['parameters'], dtype.itemsize, chip)
    plan = plan_config.PlanConfig(
        base_model=shaped.name,
        batch_size=step.batch,
        prompt_length=step.persona,
        answer_length=step.answer,
        dtype=sizes.dtype,
        remat=remat,
        sparsity=SPARSITY,
    )
    fit = compiled.compile_step(plan, cfg, [device], available=chip.memory)
    planned = report.figures(plan, cfg, chip, 1, fit)
    if fit.program is None:
        raise errors.InputError(
            f'{shaped.name}: the compiler finds that the step does not fit the memory.'
        )
    learning = step_shape.plain_learning(
        topk.keep_size(cfg.d_ff, SPARSITY, 1), remat=remat
    )
    model = shapes.random_model(cfg, dtype)
    args = _arguments(step, model, fit.packed, learning)
    program, losses = fit.program, []

    def run(_: int) -> None:
        _, metrics = jax.block_until_ready(program(*args))
        losses.append(float(metrics.loss[0]))

    for number in range(_WARM_UP):
        run(number)
    spent = [timing.timed(run, number)[0] for number in range(sizes.steps)]
    seconds = timing.spread(spent)
    memory = machine.memory()
    peak = planned['bytes_per_chip']['peak']
    measured = rates(step, cfg, seconds['median'], chip.flops_per_s)
    return figures | {
        'step': planned['step'] | {'sparsity': SPARSITY},
        'attention': fused_attention.wanted() or 'plain',
        'compile_seconds': fit.seconds,
        'step_seconds': seconds,
        **measured,
        # Scores are not carried on, so every step has the same one.
        'loss': losses[-1],
        'is_finite': bool(np.isfinite(losses).all()),
        'peak_memory_bytes': memory['peak'],
        'memory_limit_bytes': memory['limit'],
        'plan': {
            'fits': fit.fits,
            'peak_memory_bytes': peak,
            'peak_memory_measured_to_planned': (
                memory['peak'] / peak if memory['peak'] and peak else None
            ),
            'at_utilisation': planned['utilisation'],
            'step_seconds': planned['step_seconds'],
            'step_seconds_measured_to_planned': (
                seconds['median'] / planned['step_seconds']
                if planned['step_seconds']
                else None
            ),
        },
    }


def measure_3b(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    return _learned(sizes, sizes.shaped(shapes.LLAMA_3B), remat='dots')


def measure_8b(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    return _learned(sizes, sizes.shaped(shapes.LLAMA_8B), remat='dots')


def measure_32b(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    return _learned(sizes, sizes.shaped(shapes.QWEN_32B), remat='full')


def _beside(
    found: dict[str, Any], before: Mapping[str, Any], part: str
) -> dict[str, Any]:
    """Figures with their ratio to those of the plain step, where it was measured."""
    plain = before.get(part, {}).get('examples_per_s')
    ratio = found['examples_per_s'] / plain if plain else None
    return found | {'speed_to_plain': ratio, 'plain_part': part}


def measure_kept(sizes: sizes_lib.Sizes, before: dict[str, Any]) -> dict[str, Any]:
    """The 3B step with nothing recomputed, beside the one that recomputes."""
    found = _learned(sizes, sizes.shaped(shapes.LLAMA_3B), remat='none')
    return _beside(found, before, 'mask_step_3b')


def measure_fused(sizes: sizes_lib.Sizes, before: dict[str, Any]) -> dict[str, Any]:
    """The 3B step with fused attention.

    Raises:
        InputError: if there is none for this device.
    """
    shaped = sizes.shaped(shapes.LLAMA_3B)
    check_fused(shaped.config.head_dim, sizes.dtype)
    found = _learned(sizes, shaped, remat='dots')
    return _beside(found, before, 'mask_step_3b')


def check_fused(head_dim: int, dtype: str) -> None:
    """Raises:
    InputError: if cuDNN's attention is not for this device.
    """
    if not fused_attention.applies(fused_attention.CUDNN, head_dim, jnp.dtype(dtype)):
        raise errors.InputError('cuDNN computes no attention on this device.')
