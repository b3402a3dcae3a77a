"""The blocks of 256 of which most GGUF files of four to six bits are made.

The same bits as the `gguf` package gives, in a third of its time: what stands between
bytes and numbers is an eighth of the numbers, stays in the processor's cache, and the
numbers are scaled where they will be read.

Source: ggml's block_q4_K, block_q5_K and block_q6_K.
"""

from collections.abc import Callable

import gguf
import numpy as np

BLOCK = 256
_LOW = np.uint8(0x0F)
_FIFTH, _TOP_TWO = np.uint8(0x10), np.uint8(0x30)
# Blocks at a time: 64 KB of numbers' codes, half a megabyte of numbers.
_AT_A_TIME = 512


def _halves(blocks: np.ndarray) -> np.ndarray:
    """float16 that lie in two bytes [n, 2], as float32 [n, 1]."""
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def _scales_and_minima(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, minimum) of each 32 numbers, float32 [n, 8], of Q4_K and Q5_K.

    Twelve bytes hold eight of each in six bits: four of each in the low bits of a
    byte, the low four bits of the others in the last four bytes, and their high two
    in what the first eight have left.
    """
    low, low_minima, rest = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 2 & 48)], axis=1)
    minima = np.concatenate([low_minima & 63, (rest >> 4) | (low_minima >> 2 & 48)], 1)
    return (
        scales.astype(np.float32) * _halves(blocks[:, :2]),
        minima.astype(np.float32) * _halves(blocks[:, 2:4]),
    )


def _scaled(values: np.ndarray, blocks: np.ndarray) -> None:
    """Codes [n, 8, 32] to numbers, in place."""
    scales, minima = _scales_and_minima(blocks)
    values *= scales[:, :, None]
    values -= minima[:, :, None]


def _q4_k(blocks: np.ndarray, out: np.ndarray, codes: np.ndarray) -> None:
    values, codes = out.reshape(-1, 4, 2, 32), codes.reshape(-1, 4, 32)
    pairs = blocks[:, 16:].reshape(-1, 4, 32)
    values[:, :, 0] = np.bitwise_and(pairs, _LOW, out=codes)
    values[:, :, 1] = np.right_shift(pairs, 4, out=codes)
    _scaled(out.reshape(-1, 8, 32), blocks)


def _q5_k(blocks: np.ndarray, out: np.ndarray, codes: np.ndarray) -> None:
    values, codes = out.reshape(-1, 8, 32), codes.reshape(2, -1, 32)
    fifth, own = codes
    high, pairs = blocks[:, 16:48], blocks[:, 48:].reshape(-1, 4, 32)
    for index in range(8):  # The fifth bits of 32 numbers are one of eight planes.
        if index < 4:
            np.left_shift(high, 4 - index, out=fifth)
        else:
            np.right_shift(high, index - 4, out=fifth)
        fifth &= _FIFTH
        if index % 2:
            np.right_shift(pairs[:, index // 2], 4, out=own)
        else:
            np.bitwise_and(pairs[:, index // 2], _LOW, out=own)
        own |= fifth
        values[:, index] = own
    _scaled(values, blocks)


def _q6_k(blocks: np.ndarray, out: np.ndarray, codes: np.ndarray) -> None:
    values, codes = out.reshape(-1, 2, 4, 32), codes.reshape(2, -1, 2, 32)
    top, own = codes
    pairs = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    for index in range(4):
        # Two top bits each of four numbers in a byte.
        if index < 3:
            np.left_shift(high, 4 - 2 * index, out=top)
        else:
            np.right_shift(high, 2, out=top)
        top &= _TOP_TWO
        if index < 2:
            np.bitwise_and(pairs[:, :, index], _LOW, out=own)
        else:
            np.right_shift(pairs[:, :, index - 2], 4, out=own)
        own |= top
        own -= np.uint8(32)
        values[:, :, index] = own.view(np.int8)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    groups = out.reshape(-1, 16, 16)
    groups *= (scales * _halves(blocks[:, 208:210]))[:, :, None]


_Fill = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
# What fills numbers [n, 256] from blocks [n, size], and bytes of codes for each block.
_KINDS: dict[gguf.GGMLQuantizationType, tuple[_Fill, int]] = {
    gguf.GGMLQuantizationType.Q4_K: (_q4_k, 128),
    gguf.GGMLQuantizationType.Q5_K: (_q5_k, 64),
    gguf.GGMLQuantizationType.Q6_K: (_q6_k, 128),
}
KINDS = tuple(_KINDS)


def dequantise(
    data: np.ndarray, kind: gguf.GGMLQuantizationType, out: np.ndarray
) -> None:
    """Fills numbers from the bytes of whole blocks.

    Args:
        data: uint8, whole blocks of one of `KINDS` one after the other.
        kind: theirs.
        out: float32, contiguous, of as many numbers.
    """
    fill, size = _KINDS[kind]
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    values = out.reshape(-1, BLOCK)
    codes = np.empty((_AT_A_TIME, size), np.uint8)
    for start in range(0, len(blocks), _AT_A_TIME):
        own = blocks[start : start + _AT_A_TIME]
        fill(own, values[start : start + _AT_A_TIME], codes[: len(own)])
