"""Gains: numbers that multiply what goes through frozen weights.

Of an FFN's channels and of what attention's heads found, before the weights that add
them to the stream; and of the norms, beside their own weights. All start at 1, change
nothing then, and are folded into those weights in the end.

Source: (IA)^3 of Liu et al., arXiv:2205.05638, which multiplies keys, values and FFN
activations. A gain before `w_o` does what one of values does, for each query head by
itself, and one of keys is left out: it would have to pass the rotation and, in Qwen3, a
norm before it could be folded.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ppjax.base import processes, settings
from ppjax.models import config as config_lib
from ppjax.models import masks as masks_lib

# What `--gain_targets` names -> those of `Masks`.
TARGETS = {
    'ffn': ('channels',),
    'attention': ('attention',),
    'norms': ('attn_norm', 'ffn_norm', 'final_norm'),
}

# Name of a mask -> float32, of the shape that `masks.shapes` says.
Gains = dict[str, jax.Array]


def parse_targets(text: str) -> tuple[str, ...]:
    """What `--gain_targets` names, each once.

    Raises:
        InputError: for a name that is none, or none at all.
    """
    return settings.names(text, 'gain_targets', TARGETS)


def init_gains(cfg: config_lib.ModelConfig, targets: Sequence[str]) -> Gains:
    """Gains that change nothing yet.

    Args:
        cfg: of the model.
        targets: names in `TARGETS`.
    """
    shapes = masks_lib.shapes(cfg)
    return {name: jnp.ones(shapes[name]) for kind in targets for name in TARGETS[kind]}


def fetched(gains: Gains) -> masks_lib.Masks:
    """Gains on the host; of several processes all must call this together."""
    return masks_lib.Masks(**jax.tree.map(processes.fetch, gains))
