"""From scores to what is kept."""

from collections.abc import Sequence

import numpy as np

from ppjax.baselines import budget
from ppjax.models import config as config_lib
from ppjax.models import costs
from ppjax.models import structure as structure_lib


def largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` largest of a row, bool; equals are broken towards the lower index."""
    found = np.zeros(len(scores), bool)
    found[np.argsort(-scores, kind='stable')[:keep]] = True
    return found


def of_sizes(
    channels: np.ndarray, groups: np.ndarray, sizes: Sequence[costs.BlockSize]
) -> structure_lib.Structure:
    """Of every block the channels and groups of the largest scores.

    Args:
        channels: scores [L, F].
        groups: scores [L, K].
        sizes: of the L blocks.
    """
    return structure_lib.Structure(
        np.stack(
            [largest(x, y.channels) for x, y in zip(channels, sizes, strict=True)]
        ),
        np.stack([largest(x, y.groups) for x, y in zip(groups, sizes, strict=True)]),
        np.ones(len(sizes), bool),
    )


def narrow_sizes(
    cfg: config_lib.ModelConfig,
    ratio: float,
    among: budget.Range,
    *,
    heads: bool = True,
) -> list[costs.BlockSize]:
    """What one ratio leaves of some blocks, and all of the others."""
    whole, cut = costs.uniform(cfg)[0], budget.narrow_block(cfg, ratio, heads=heads)
    return [
        cut if among.start <= layer < among.stop else whole
        for layer in range(cfg.num_layers)
    ]


def over_layers(
    cfg: config_lib.ModelConfig,
    channels: np.ndarray,
    groups: np.ndarray,
    blocks_left: int,
    among: budget.Range,
) -> structure_lib.Structure:
    """The lowest scores of all layers go, as long as enough parameters are left.

    Every block keeps a channel and a group. One whose removal would leave too few is
    kept, and the next is looked at, so that what is left is near what is wanted.

    Args:
        cfg: of the model.
        channels: scores [L, F], comparable over layers and kinds.
        groups: scores [L, K]; rows of infinity where none may go.
        blocks_left: parameters of blocks that must be left.
        among: the blocks that may be touched.

    Source: FLAP, An et al., arXiv:2312.11983, its structure `AL-AM`.
    """
    whole = costs.uniform(cfg)[0]
    channel, group = (
        _size(cfg, whole) - _size(cfg, less)
        for less in (
            whole._replace(channels=whole.channels - 1),
            whole._replace(groups=whole.groups - 1),
        )
    )
    stays = np.concatenate([_stays(x, among).reshape(-1) for x in (channels, groups)])
    scores = np.concatenate([channels.reshape(-1), groups.reshape(-1)])
    price = np.where(np.arange(len(scores)) < channels.size, channel, group)
    # The lowest first, equals by their places.
    order = np.argsort(scores, kind='stable')
    order = order[~stays[order]]
    room = _size(cfg, whole) * cfg.num_layers - blocks_left
    # All go while there is room, and then, as a group needs the most, channels alone.
    gone = int(np.searchsorted(np.cumsum(price[order]), room, side='right'))
    room -= int(price[order[:gone]].sum())
    more = order[gone:]
    more = more[price[more] == channel][: max(0, room) // channel]
    removed = np.concatenate([order[:gone], more])
    left = np.ones(len(scores), bool)
    left[removed] = False
    return structure_lib.Structure(
        left[: channels.size].reshape(channels.shape),
        left[channels.size :].reshape(groups.shape),
        np.ones(cfg.num_layers, bool),
    )


def _stays(scores: np.ndarray, among: budget.Range) -> np.ndarray:
    """What no budget removes: the best of each row, infinity, and other blocks.

    Of equals the last is the best, as the first goes first.
    """
    found = scores == np.inf
    last = scores.shape[1] - 1 - np.argmax(scores[:, ::-1], axis=1)
    found[np.arange(len(scores)), last] = True
    found[: among.start] = found[among.stop :] = True
    return found


def _size(cfg: config_lib.ModelConfig, size: costs.BlockSize) -> int:
    return costs.parameters(cfg, [size]).blocks
