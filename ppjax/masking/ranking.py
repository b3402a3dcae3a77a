"""Ranks of channels: one mask file for every sparsity of a range."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import numpy as np

from ppjax.base import errors
from ppjax.masking import gains as gains_lib
from ppjax.masking import topk


class Keeps(NamedTuple):
    """The keep sizes that ranks were learned for: least, least + align, ..., most."""

    least: int
    most: int
    align: int

    @classmethod
    def of_sparsities(cls, low: float, high: float, d_ff: int, align: int) -> 'Keeps':
        """Those between two sparsities.

        Raises:
            InputError: if one of them gives no keep size.
        """
        least, most = (topk.keep_size(d_ff, own, align) for own in (high, low))
        return cls(least, most, align)

    @property
    def number(self) -> int:
        """How many there are."""
        return (self.most - self.least) // self.align + 1

    def has(self, keep: int) -> bool:
        """Whether k lies between the ends."""
        return self.least <= keep <= self.most

    def text(self, d_ff: int) -> str:
        """The same for people."""
        ends = (1 - keep / d_ff for keep in (self.most, self.least))
        low, high = (f'{end:.4g}' for end in ends)
        return f'{self.least} to {self.most} of {d_ff}, sparsity {low} to {high}'


@dataclasses.dataclass(frozen=True)
class Ranking:
    """In which order channels go.

    Attributes:
        ranks: uint16 [L, F], each row an order of 0 to F-1; k keeps those below k.
        keeps: the k that they were learned for.
        gains: float16 [L, F] of all channels, or None.
    """

    ranks: np.ndarray
    keeps: Keeps
    gains: np.ndarray | None = None

    def __post_init__(self) -> None:
        ranks, shape = self.ranks, self.ranks.shape
        if ranks.ndim != 2 or ranks.dtype != np.uint16:
            raise ValueError(f'ranks must be uint16 [L, F], got {ranks.dtype} {shape}.')
        least, most, align = self.keeps
        if not (1 <= least <= most <= shape[1] and align >= 1):
            raise ValueError(f'no keep sizes of {shape[1]} channels: {self.keeps}.')
        if (np.sort(ranks, axis=-1) != np.arange(shape[1])).any():
            raise ValueError('the ranks of a layer are no order of its channels.')
        if self.gains is not None:
            gains_lib.check(self.gains, shape)

    def mask(self, keep: int) -> np.ndarray:
        """What k keeps, bool [L, F].

        Raises:
            InputError: if the ranks were not learned for it.
        """
        if not self.keeps.has(keep):
            d_ff = self.ranks.shape[1]
            raise errors.InputError(
                f'This mask was learned to keep {self.keeps.text(d_ff)}, not {keep} '
                f'(sparsity {1 - keep / d_ff:.4g}).'
            )
        return self.ranks < keep

    def gains_of(self, mask: np.ndarray) -> np.ndarray | None:
        """Gains of what a mask keeps, float16 [L, k]."""
        return None if self.gains is None else self.gains[mask].reshape(len(mask), -1)

    def keep_size(self, sparsity: float) -> int:
        """k of a sparsity, one of those that were learned.

        Raises:
            InputError: if there is none.
        """
        return topk.keep_size(self.ranks.shape[1], sparsity, self.keeps.align)

    def tensors(self) -> dict[str, np.ndarray]:
        """What a file holds of it; see `of_tensors`."""
        width = _bits(self.ranks.shape[1])
        places = np.arange(width, dtype=np.uint16)
        bits = (self.ranks[..., None] >> places & 1).astype(bool)
        packed = np.packbits(bits.reshape(len(bits), -1), axis=-1, bitorder='little')
        return {'ranks': packed} | ({} if self.gains is None else {'gains': self.gains})


def of_scores(scores: np.ndarray) -> np.ndarray:
    """Ranks uint16 [L, F] of finite scores z [L, F]; those below k are `topk_mask`."""
    ordered = np.where(scores == 0, 0, -scores)  # -0.0 is equal to 0.0.
    order = np.argsort(ordered, axis=-1, kind='stable')
    return np.argsort(order, axis=-1).astype(np.uint16)


def of_tensors(
    tensors: Mapping[str, np.ndarray], shape: tuple[int, int], keeps: str
) -> Ranking:
    """A ranking from what a file holds.

    Args:
        tensors: `ranks` uint8, of every layer's ranks ceil(log2 F) bits each, the
            lowest first, packed little-endian within a byte; perhaps `gains`.
        shape: (L, F).
        keeps: least:most:align.

    Raises:
        ValueError: if they are damaged.
    """
    packed, width = tensors['ranks'], _bits(shape[1])
    wanted = (shape[0], -(-shape[1] * width // 8))
    if packed.dtype != np.uint8 or packed.shape != wanted:
        raise ValueError(
            f'ranks must be uint8 {wanted}, got {packed.dtype} {packed.shape}.'
        )
    bits = np.unpackbits(packed, axis=-1, bitorder='little')[:, : shape[1] * width]
    weights = 1 << np.arange(width)
    ranks = (bits.reshape(*shape, width) * weights).sum(axis=-1).astype(np.uint16)
    least, most, align = map(int, keeps.split(':'))
    return Ranking(ranks, Keeps(least, most, align), tensors.get('gains'))


def _bits(num_channels: int) -> int:
    """Bits of a rank.

    Raises:
        ValueError: for layers of more channels than 16 bits count.
    """
    width = max((num_channels - 1).bit_length(), 1)
    if width > 16:
        raise ValueError(f'{num_channels} channels a layer are more than 65,536.')
    return width
