"""FLOPs that a mask learning step cannot do without, in closed form.

A multiply-add is two FLOPs; what counts is said in `evaluation.efficiency`, but here
attention counts only the pairs that its pattern lets see each other. Padding and
recomputation do not count. Only scores have a gradient, so the backward pass has no
product for a weight's gradient, and none below the lowest mask.
"""

from collections.abc import Sequence

from ppjax.models import config as config_lib
from ppjax.models import costs


def mask_step(
    cfg: config_lib.ModelConfig,
    *,
    prefix: int,
    own: Sequence[int],
    answers: int,
    dense_too: bool = False,
) -> float:
    """Of one step over examples that share a prefix, which is run once.

    Args:
        cfg: of the base model; masked channels are computed, as their gradient is
            wanted too.
        prefix: P, the tokens that all examples start with.
        own: each example's other tokens.
        answers: answer tokens of all examples, which alone are unembedded.
        dense_too: whether the dense model runs forward as well.
    """
    weights, attention, head = _parts(cfg, prefix, own, answers)
    whole = cfg.num_layers * (weights + attention) + head
    # Of a product with a frozen weight one gradient is wanted, of the two in
    # attention both; of the first block only that of its mask.
    first = 2 * (prefix + sum(own)) * cfg.d_model * cfg.d_ff
    backward = (cfg.num_layers - 1) * (weights + 2 * attention) + first + head
    return float(whole * (2 if dense_too else 1) + backward)


def forward(
    cfg: config_lib.ModelConfig, *, prefix: int, own: Sequence[int], answers: int
) -> float:
    """Of texts that share a prefix, run forward alone; see `mask_step`."""
    weights, attention, head = _parts(cfg, prefix, own, answers)
    return float(cfg.num_layers * (weights + attention) + head)


def _parts(
    cfg: config_lib.ModelConfig, prefix: int, own: Sequence[int], answers: int
) -> tuple[int, int, int]:
    """Of a block's weights, its attention, and the unembedding."""
    tokens = prefix + sum(own)
    pairs = _causal_pairs(prefix) + sum(
        length * prefix + _causal_pairs(length) for length in own
    )
    weights = 2 * tokens * costs.block_weights(cfg, costs.uniform(cfg)[0])
    attention = 4 * cfg.num_heads * cfg.head_dim * pairs
    head = 2 * answers * cfg.vocab_size * cfg.d_model
    return weights, attention, head


def _causal_pairs(length: int) -> int:
    return length * (length + 1) // 2
