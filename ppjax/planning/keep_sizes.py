"""Which numbers of kept channels a deployment can use."""

from typing import NamedTuple

from ppjax.base import errors
from ppjax.masking import topk

# What divides k, and what for.
_ALIGNMENTS = (1, 32, 64, 128, 256)
_BLOCKS = (
    (32, 'GGUF Q4_0, Q8_0'),
    (128, 'GPTQ and AWQ, groups of 128'),
    (256, 'GGUF K-quants'),
)
_TENSOR_PARALLEL = (2, 4, 8, 16)


class KeepSize(NamedTuple):
    """One k.

    Attributes:
        keep: k.
        align: the flag that gives it.
        removed: share of channels that it removes.
        tensor_parallel: degrees that split it evenly.
        quantisation: formats whose blocks fit.
    """

    keep: int
    align: int
    removed: float
    tensor_parallel: tuple[int, ...]
    quantisation: tuple[str, ...]


def legal(d_ff: int, sparsity: float) -> list[KeepSize]:
    """The k of each alignment that gives one of its own, ascending by alignment."""
    found: dict[int, KeepSize] = {}
    for align in _ALIGNMENTS:
        try:
            keep = topk.keep_size(d_ff, sparsity, align)
        except errors.InputError:
            continue
        found[keep] = KeepSize(
            keep,
            align,
            1 - keep / d_ff,
            tuple(n for n in _TENSOR_PARALLEL if keep % n == 0),
            tuple(name for size, name in _BLOCKS if keep % size == 0),
        )
    return list(found.values())
