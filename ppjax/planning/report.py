"""A plan as figures and as text."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from ppjax.models import config as config_lib
from ppjax.models import weights
from ppjax.planning import chips, compiled, config, keep_sizes, stages

_GIB = 2**30
_SPARSITIES = (0.25, 0.5)


def figures(
    cfg: config.PlanConfig,
    model: config_lib.ModelConfig,
    chip: chips.Chip,
    count: int,
    fit: compiled.Fit,
) -> dict[str, Any]:
    """All that the plan says, in bytes, FLOPs and seconds.

    Args:
        cfg: what was planned.
        model: the base model.
        chip: each of the devices.
        count: how many there are.
        fit: what the compiler said of the step.
    """
    shape = cfg.shape(model.num_layers)
    entries = model.num_layers * model.d_ff
    # Each slot has a batch and a prefix of its own.
    flops = cfg.slots * shape.useful_flops(model, dense_too='kl' in cfg.objective)
    seconds = None
    if chip.flops_per_s is not None:
        seconds = flops / (chip.flops_per_s * count * cfg.utilisation)
    return {
        'fits': fit.fits,
        'chip': chip.name,
        'chips': count,
        'mesh': cfg.mesh,
        'step': dataclasses.asdict(shape)
        | {
            name: getattr(fit.packed, name)
            for name in ('rows', 'micro_batches', 'tokens_per_row')
        }
        | {
            name: getattr(cfg, name)
            for name in ('dtype', 'remat', 'int8_base', 'objective')
        }
        | {'personas': cfg.num_personas, 'personas_per_step': cfg.slots},
        'parameters': weights.num_parameters(model),
        'weights_bytes': fit.weights,
        'mask_bytes': -(-entries // 8),
        # Scores and Adam's two moments, float32, whole on every device.
        'optimizer_bytes': 3 * 4 * entries * cfg.num_personas,
        'bytes_per_chip': fit.memory,
        'collectives_per_step': {
            kind: dataclasses.asdict(traffic) for kind, traffic in fit.traffic.items()
        },
        'useful_flops_per_step': flops,
        'peak_flops_per_s': chip.flops_per_s,
        'utilisation': cfg.utilisation,
        'step_seconds': seconds,
        'steps': cfg.steps,
        'hours': None if seconds is None else seconds * cfg.steps / 3600,
        'persona': None
        if cfg.price_per_hour is None
        else stages.figures(cfg, model, chip, count, flops),
        'keep_sizes': {
            str(sparsity): [
                own._asdict() for own in keep_sizes.legal(model.d_ff, sparsity)
            ]
            for sparsity in _SPARSITIES
        },
        'compile_seconds': fit.seconds,
    }


def _bytes(size: int | None) -> str:
    if size is None:
        return 'unknown'
    if size >= _GIB // 10:
        return f'{size / _GIB:.2f} GiB'
    return f'{size / 2**20:.2f} MiB'


def text(found: dict[str, Any]) -> str:
    """Figures as lines for people."""
    step, memory = found['step'], found['bytes_per_chip']
    kind = f'int8 and {step["dtype"]}' if step['int8_base'] else step['dtype']
    model = (
        f'{found["parameters"]:,} parameters, '
        f'{_bytes(found["weights_bytes"])} in {kind}; a mask file '
        f'{found["mask_bytes"] / 1e3:.1f} KB, scores and moments '
        f'{_bytes(found["optimizer_bytes"])} on every chip'
    )
    shape = (
        f'{step["batch"]} examples of {step["persona"]} shared and '
        f'{step["answer"]} answer tokens in {step["rows"]} rows of '
        f'{step["tokens_per_row"]}, {step["micro_batches"]} micro-batches, remat '
        f'{step["remat"]}'
    )
    if step['personas'] > 1:
        shape += (
            f', of each of {step["personas_per_step"]} of {step["personas"]} personas'
        )
    devices = f'{found["chips"]} x {found["chip"]}, mesh {found["mesh"] or "fsdp:-1"}'
    lines = [f'Model      {model}', f'Devices    {devices}', f'Step       {shape}']
    if found['fits']:
        there = ''
        if memory['available'] is not None:
            there = f' of {_bytes(memory["available"])}'
        lines.append(
            f'Memory     fits: a chip peaks at {_bytes(memory["peak"])}{there} ({_bytes(memory["arguments"])} weights '
            f'and inputs, {_bytes(memory["temporaries"])} temporaries)'
        )
        for kind, traffic in found['collectives_per_step'].items():
            lines.append(
                f'           {kind}: {traffic["count"]} a step, '
                f'{_bytes(traffic["bytes"])} on each chip'
            )
    else:
        lines.append(
            f'Memory     DOES NOT FIT: {_bytes(memory["peak"])} or more wanted a chip, '
            f'{_bytes(memory["available"])} there'
        )
    rate = f'{found["useful_flops_per_step"]:.3g} useful FLOPs a step'
    if found['step_seconds'] is None:
        lines.append(f'Time       {rate}; the peak of {found["chip"]} is not known')
    else:
        lines.append(
            f'Time       {rate}; at {found["utilisation"]:.0%} of '
            f'{found["peak_flops_per_s"] / 1e12:.0f} TFLOP/s a chip '
            f'{found["step_seconds"]:.2f} s a step, {found["hours"]:.2f} h for '
            f'{found["steps"]} steps'
        )
    if found['persona'] is not None:
        lines += stages.text(found['persona'])
    for sparsity, sizes in found['keep_sizes'].items():
        lines.append(f'Keep       --sparsity={sparsity}:')
        lines += [f'             {_keep_text(own)}' for own in sizes]
    lines.append(f'Compiled in {found["compile_seconds"]:.0f} s.')
    return '\n'.join(lines)


def _keep_text(own: dict[str, Any]) -> str:
    parallel: Sequence[int] = own['tensor_parallel']
    formats: Sequence[str] = own['quantisation']
    return (
        f'--align={own["align"]}: {own["keep"]} channels ({own["removed"]:.2%} removed); '
        f'tensor parallel {", ".join(map(str, parallel)) or "none"}; '
        f'{"; ".join(formats) or "no block format"}'
    )
