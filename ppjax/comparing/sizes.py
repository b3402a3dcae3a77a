"""How large a cell's model is, and what it computes (paper, Table 11)."""

import pathlib
from typing import Any

from ppjax.models import base_model, costs, structure

# Of the paper's Table 11; with the first the dense model's 1.458 TFLOP come out.
PROMPT, ANSWER = 254.7, 320


def measure(model: pathlib.Path | str) -> dict[str, Any]:
    """Parameters and FLOPs of a model; what is filled up with zeros counts as gone.

    Args:
        model: its folder, or the name of the dense one.
    """
    base = base_model.open_base_model(str(model))
    cfg, sizes = base.config, structure.of_weights(base).sizes
    prefill = costs.prefill_flops(cfg, sizes, PROMPT)
    decoded = costs.decode_flops(cfg, sizes, PROMPT + ANSWER / 2)
    return {
        'parameters': costs.parameters(cfg, sizes)._asdict(),
        'prefill_flops': prefill,
        'total_flops': prefill + 2 * costs.head_entries(cfg) + (ANSWER - 1) * decoded,
        'flops_of_answer_token': decoded,
    }
