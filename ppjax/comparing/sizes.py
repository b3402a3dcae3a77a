"""How large a cell's model is, and what it computes (paper, Table 11)."""

from collections.abc import Sequence
import pathlib
from typing import Any

from ppjax.base import json_lines
from ppjax.baselines import results as prune_results
from ppjax.models import base_model, costs

# Of the paper's Table 11; with the first the dense model's 1.458 TFLOP come out.
PROMPT, ANSWER = 254.7, 320


def measure(model: pathlib.Path | str, first: pathlib.Path | None) -> dict[str, Any]:
    """Parameters and FLOPs of a model.

    Args:
        model: its folder, or the name of the dense one.
        first: the run directory that it was pruned in; None of the dense one. What is
            padded with zeros there counts as gone.
    """
    cfg = base_model.open_base_model(str(model)).config
    sizes: Sequence[costs.BlockSize] = costs.uniform(cfg)
    pruned = json_lines.stored_object(first / prune_results.FILE) if first else None
    if pruned and not pruned.get('is_uniform', True):
        sizes = [
            costs.BlockSize(block['channels'], block['groups'])
            for block in pruned['blocks']
        ]
    prefill = costs.prefill_flops(cfg, sizes, PROMPT)
    decoded = costs.decode_flops(cfg, sizes, PROMPT + ANSWER / 2)
    return {
        'parameters': costs.parameters(cfg, sizes)._asdict(),
        'prefill_flops': prefill,
        'total_flops': prefill + 2 * costs.head_entries(cfg) + (ANSWER - 1) * decoded,
        'flops_of_answer_token': decoded,
    }
