"""What a whole persona takes, stage by stage: FLOPs in closed form, minutes and money.

Minutes follow from rates that the user states, or has measured with
launch/gpu_check.sh; nothing is compiled or run for them.
"""

import dataclasses
from typing import Any

from ppjax.masking import topk
from ppjax.models import config as config_lib
from ppjax.planning import chips, config, step_shape, useful_flops

_PER_HOUR, _PER_MINUTE = 3600, 60


def figures(
    cfg: config.PlanConfig,
    model: config_lib.ModelConfig,
    chip: chips.Chip,
    count: int,
    mask_flops: float,
) -> dict[str, Any]:
    """Stage -> FLOPs, generated tokens, minutes and price; and all of them together.

    Args:
        cfg: the settings, `price_per_hour` among them.
        model: the base model.
        chip: each of the devices; without a stated peak no minutes are known.
        count: how many there are. They are taken to share the work, and what they
            send each other is left out.
        mask_flops: of one step of mask learning.

    Returns:
        `stages`, `minutes` and `price` of those whose minutes are known, and
        `unknown`, the others' names.
    """
    flops = _flops(cfg, model, mask_flops)
    generated = {'rewriting': cfg.examples * cfg.answer_length}
    stages: dict[str, dict[str, Any]] = {}
    for name, own in flops.items():
        tokens = generated.get(name, 0)
        seconds = _seconds(cfg, chip, own, tokens)
        hours = None if seconds is None else seconds / count / _PER_HOUR
        stages[name] = {
            'flops': own,
            'generated_tokens': tokens,
            'minutes': None if hours is None else hours * _PER_HOUR / _PER_MINUTE,
            'price': None
            if hours is None or cfg.price_per_hour is None
            else hours * count * cfg.price_per_hour,
        }
    known = [stage for stage in stages.values() if stage['minutes'] is not None]
    return {
        'stages': stages,
        'minutes': sum(stage['minutes'] for stage in known),
        'price': sum(stage['price'] or 0.0 for stage in known),
        'unknown': [name for name, own in stages.items() if own['minutes'] is None],
    }


def _seconds(
    cfg: config.PlanConfig, chip: chips.Chip, flops: float, tokens: int
) -> float | None:
    """On one chip; None where a rate that it takes is not known."""
    rate = cfg.rewrite_tokens_per_s
    if chip.flops_per_s is None:
        return None
    seconds = flops / (chip.flops_per_s * cfg.utilisation)
    if not tokens:
        return seconds
    return None if rate is None else seconds + tokens / rate


def _flops(
    cfg: config.PlanConfig, model: config_lib.ModelConfig, mask_flops: float
) -> dict[str, float]:
    """Of each stage, generated tokens aside."""
    prefix, question = cfg.prompt_length, step_shape.QUESTION
    example = question + cfg.answer_length
    keep = topk.keep_size(model.d_ff, cfg.sparsity, 1)
    pruned = dataclasses.replace(model, d_ff=keep)

    def forward(
        of: config_lib.ModelConfig, count: int, length: int, answers: int = 0
    ) -> float:
        own = [length] * count
        return useful_flops.forward(of, prefix=prefix, own=own, answers=answers)

    # Rows of down_proj from k activations: their products, and a solve, a layer.
    tokens = prefix + cfg.examples * example
    gram = 2 * tokens * keep * (keep + model.d_model)
    solve = keep**3 / 3 + 2 * keep**2 * model.d_model
    recovered = cfg.recovery_steps * forward(
        pruned, cfg.batch_size, example, cfg.batch_size * cfg.answer_length
    )
    return {
        'scores': (1 + cfg.references) * forward(model, cfg.queries, question),
        # The prompt holds the general answer too.
        'rewriting': forward(model, cfg.examples, example),
        'mask': cfg.steps * mask_flops,
        'ridge': forward(model, cfg.examples, example)
        + forward(pruned, cfg.examples, example)
        + model.num_layers * (gram + solve),
        # Backward, gradients of activations and of weights are wanted.
        'recovery': 3 * recovered,
    }


def text(found: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [
        f'             {name}: {_minutes(stage)}'
        for name, stage in found['stages'].items()
        if stage['flops']
    ]
    total = {'minutes': found['minutes'], 'price': found['price']}
    without = f', without {", ".join(found["unknown"])}' if found['unknown'] else ''
    return [
        'Persona    minutes and price:',
        *lines,
        f'             all: {_minutes(total)}{without}',
    ]


def _minutes(stage: dict[str, Any]) -> str:
    if stage['minutes'] is None:
        return 'not known: a rate that it takes is not'
    return f'{stage["minutes"]:.1f} min, {stage["price"]:.2f}'
