"""A plan as figures and as text."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from ppjax.evaluation import efficiency
from ppjax.models import config as config_lib
from ppjax.planning import chips, compiled, keep_sizes, useful_flops

_GIB = 2**30
_SPARSITIES = (0.25, 0.5)


def figures(
    cfg: config_lib.ModelConfig,
    chip: chips.Chip,
    count: int,
    wanted: compiled.Wanted,
    fit: compiled.Fit,
    *,
    utilisation: float,
    steps: int,
) -> dict[str, Any]:
    """All that the plan says, in bytes, FLOPs and seconds.

    Args:
        cfg: of the base model.
        chip: each of the devices.
        count: how many there are.
        wanted: the step.
        fit: what the compiler said of it.
        utilisation: the share of the chips' stated peak that useful FLOPs reach.
        steps: of the whole run.
    """
    shape = wanted.shape
    sizes = efficiency.measure(
        cfg,
        cfg.d_ff,
        dtype=wanted.dtype,
        prompt_length=shape.persona,
        answer_length=shape.answer,
    )
    entries = cfg.num_layers * cfg.d_ff
    flops = useful_flops.mask_step(
        cfg,
        prefix=shape.persona,
        own=[shape.own] * shape.batch,
        answers=shape.answer * shape.batch,
        dense_too='kl' in wanted.objective,
    )
    # Each slot has a batch and a prefix of its own.
    flops *= wanted.slots
    seconds = None
    if chip.flops_per_s is not None:
        seconds = flops / (chip.flops_per_s * count * utilisation)
    return {
        'fits': fit.fits,
        'chip': chip.name,
        'chips': count,
        'mesh': wanted.mesh,
        'step': dataclasses.asdict(shape)
        | {
            'rows': fit.packed.rows,
            'micro_batches': fit.packed.micro_batches,
            'tokens_per_row': fit.packed.tokens_per_row,
            'dtype': wanted.dtype,
            'remat': wanted.remat,
            'int8_base': wanted.int8_base,
            'objective': wanted.objective,
            'personas': wanted.personas,
            'personas_per_step': wanted.slots,
        },
        'parameters': sizes.dense.parameters,
        'weights_bytes': fit.weights,
        'mask_bytes': -(-entries // 8),
        # Scores and Adam's two moments, float32, whole on every device.
        'optimizer_bytes': 3 * 4 * entries * wanted.personas,
        'bytes_per_chip': {
            'peak': fit.peak,
            'arguments': fit.arguments,
            'temporaries': fit.temporaries,
            'available': fit.available,
        },
        'collectives_per_step': {
            kind: dataclasses.asdict(traffic) for kind, traffic in fit.traffic.items()
        },
        'useful_flops_per_step': flops,
        'peak_flops_per_s': chip.flops_per_s,
        'utilisation': utilisation,
        'step_seconds': seconds,
        'steps': steps,
        'hours': None if seconds is None else seconds * steps / 3600,
        'keep_sizes': {
            str(sparsity): [
                own._asdict() for own in keep_sizes.legal(cfg.d_ff, sparsity)
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
