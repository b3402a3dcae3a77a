"""Adapt-Pruner: many small steps, in which blocks that do little give up more.

Source: Adapt-Pruner, Pan et al., arXiv:2502.03460, and its released code.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.baselines import budget, selection
from ppjax.baselines import gradients as gradients_lib
from ppjax.models import config as config_lib
from ppjax.models import costs
from ppjax.models import structure as structure_lib

# A block keeps a hundredth at least.
_MOST = 0.99
# Steps of which so many times T bring nothing are given up.
_PATIENCE = 4
# Halvings of the last step; the budget is met to a channel long before.
_HALVINGS = 40


class Measured(NamedTuple):
    """What one step goes by, of the model as it is pruned by then.

    Attributes:
        scores: of the units.
        cosines: of each block's input and output, mean over tokens, [L].
    """

    scores: gradients_lib.Scores
    cosines: np.ndarray


class Step(NamedTuple):
    """What one step did, for the results.

    Attributes:
        ratios: what of each block is gone, [L].
        blocks: parameters of blocks that are left.
    """

    ratios: list[float]
    blocks: int


def influence(cosines: np.ndarray) -> np.ndarray:
    """I [L] in [-1, 1] with mean 0, high for blocks that turn the stream.

    I_l = -mean_t cos(block input, block output), less its mean over blocks, divided by
    the largest size.
    """
    centred = -(cosines - cosines.mean())
    most = np.abs(centred).max()
    return centred / most if most > 0 else centred


def sizes(
    cfg: config_lib.ModelConfig,
    ratios: np.ndarray,
    within: Sequence[costs.BlockSize],
) -> list[costs.BlockSize]:
    """What each block's own ratio leaves of it; what is gone stays so."""
    wanted = [budget.narrow_block(cfg, float(ratio)) for ratio in ratios]
    return [
        costs.BlockSize(min(x.channels, y.channels), min(x.groups, y.groups))
        for x, y in zip(wanted, within, strict=True)
    ]


def prune(
    cfg: config_lib.ModelConfig,
    measure: Callable[[structure_lib.Structure, int], Measured],
    target: int,
    *,
    iterations: int,
    amplitude: float,
    official_stop: bool = False,
) -> tuple[structure_lib.Structure, list[Step]]:
    """Prunes step by step until `target` parameters of blocks are left.

    In every step each block's ratio grows by 1 / T - A I_l, whatever that makes of the
    sum; units are then chosen among those that are left.

    Args:
        cfg: of the model.
        measure: (what is left, number of the step) -> what the step goes by.
        target: parameters of blocks, at most those of the model.
        iterations: T, steps to a model of nothing.
        amplitude: A.
        official_stop: stop below the target, as the released code does; else the last
            step goes only so far that no less is left.

    Returns:
        (what is left, the steps).

    Raises:
        InputError: if blocks stop shrinking before the target.
    """
    kept = structure_lib.Structure.dense(cfg)
    ratios = np.zeros(cfg.num_layers)
    steps: list[Step] = []

    def left(ratios: np.ndarray) -> int:
        return costs.parameters(cfg, sizes(cfg, ratios, kept.sizes)).blocks

    progress = progress_lib.Progress('Pruning steps', iterations)
    over = left(ratios) <= target
    while not over:
        if len(steps) == _PATIENCE * iterations:
            raise errors.InputError(
                f'--method=adapt_pruner: after {len(steps)} steps '
                f'{left(ratios):,} parameters of blocks are left, and {target:,} are '
                'wanted: some blocks no longer shrink; lower --amplitude, or remove less.'
            )
        found = measure(kept, len(steps))
        grown = 1 / iterations - amplitude * influence(found.cosines)
        after = np.clip(ratios + grown, 0, _MOST)
        over = left(after) <= target
        if over and not official_stop:
            after = _last(ratios, after, lambda tried: left(tried) >= target)
        ratios = after
        kept = selection.of_sizes(
            np.where(kept.channels, found.scores.channels, -np.inf),
            np.where(kept.groups, found.scores.groups, -np.inf),
            sizes(cfg, ratios, kept.sizes),
        )
        steps.append(Step(ratios.tolist(), left(ratios)))
        progress.update(
            min(len(steps), iterations), f'{steps[-1].blocks:,} parameters of blocks'
        )
    progress.close()
    return kept, steps


def _last(
    before: np.ndarray, after: np.ndarray, enough: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """As far from one set of ratios to the next as leaves enough."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if enough(before + middle * (after - before)):
            low = middle
        else:
            high = middle
    return before + low * (after - before)
