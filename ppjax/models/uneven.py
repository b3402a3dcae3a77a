"""Which axis of a block's weights runs over what, where blocks differ in size."""

from ppjax.models import config as config_lib
from ppjax.models import costs, loading

# Parameter -> axis, as files hold it: over FFN channels, key/value heads, query heads.
CHANNELS = {'w_gate': 0, 'w_up': 0, 'b_gate': 0, 'b_up': 0, 'w_down': 1}
KEYS = {'w_k': 0, 'w_v': 0, 'b_k': 0, 'b_v': 0}
QUERIES = {'w_q': 0, 'b_q': 0, 'w_o': 1}


def shapes(
    cfg: config_lib.ModelConfig, sizes: list[costs.BlockSize]
) -> dict[str, tuple[int, ...]]:
    """Every tensor with its shape in a file where each block has its own size.

    Args:
        cfg: of the widest blocks.
        sizes: of all blocks.
    """
    found = loading.tensor_shapes(cfg)
    per_group = cfg.num_heads // cfg.num_kv_heads * cfg.head_dim
    for layer, size in enumerate(sizes):
        for axes, length in (
            (CHANNELS, size.channels),
            (KEYS, size.groups * cfg.head_dim),
            (QUERIES, size.groups * per_group),
        ):
            for attribute, axis in axes.items():
                name = loading.BLOCK_WEIGHTS[attribute].hf_name.format(layer)
                if name in found:
                    shape = list(found[name])
                    shape[axis] = length
                    found[name] = tuple(shape)
    return found
