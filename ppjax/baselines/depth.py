"""Depth pruning: the blocks whose absence costs least go at once.

Source: Shortened LLaMA, Kim et al., arXiv:2402.02834.
"""

from collections.abc import Callable

import numpy as np

from ppjax.base import progress as progress_lib
from ppjax.baselines import budget
from ppjax.models import config as config_lib
from ppjax.models import structure as structure_lib

# Perplexity without a block; first-order change of the loss (`gradients.Scores.blocks`).
CRITERIA = ('ppl', 'taylor')


def perplexities(
    cfg: config_lib.ModelConfig, mean_nll: Callable[[np.ndarray], float]
) -> np.ndarray:
    """Perplexity of the model without each block, [L].

    Args:
        cfg: of the model.
        mean_nll: nats per token of the texts under a mask of blocks [L].
    """
    found = np.zeros(cfg.num_layers)
    progress = progress_lib.Progress('Blocks left out', cfg.num_layers)
    for layer in range(cfg.num_layers):
        mask = np.ones(cfg.num_layers, np.float32)
        mask[layer] = 0
        found[layer] = np.exp(mean_nll(mask))
        progress.update(layer + 1, f'perplexity {found[layer]:.2f} without it')
    progress.close()
    return found


def kept(
    cfg: config_lib.ModelConfig,
    scores: np.ndarray,
    removed: int,
    among: budget.Range,
) -> structure_lib.Structure:
    """Without the blocks of the lowest scores, which are not taken again in between.

    Args:
        cfg: of the model.
        scores: [L]; that of a block is high where it is needed.
        removed: how many go.
        among: blocks that may go.
    """
    allowed = np.arange(among.start, among.stop)
    gone = allowed[np.argsort(scores[allowed], kind='stable')[:removed]]
    left = np.setdiff1d(np.arange(cfg.num_layers), gone)
    return structure_lib.uniform(cfg, layers=left.tolist())
