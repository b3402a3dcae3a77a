"""GGUF's block formats: rows of numbers to bytes and back, in parallel.

The `gguf` package does both sixteen rows at a time. Blocks do not reach from one row
into another, so that any number of them can be handed over as one long row: 1.5 to 4
times as fast on one core, and several cores take a stretch each. What most files
consist of is dequantised by `gguf_k_blocks`.
"""

from collections.abc import Callable
import concurrent.futures
import functools

import gguf
import ml_dtypes
import numpy as np

from ppjax.base import cores
from ppjax.models import gguf_k_blocks

Type = gguf.GGMLQuantizationType

PLAIN: dict[gguf.GGMLQuantizationType, np.dtype] = {
    Type.F32: np.dtype(np.float32),
    Type.F16: np.dtype(np.float16),
    Type.BF16: np.dtype(ml_dtypes.bfloat16),
}
# All that `gguf.quants` dequantises.
QUANTISED = (
    Type.Q8_0,
    Type.Q4_0,
    Type.Q4_1,
    Type.Q5_0,
    Type.Q5_1,
    Type.Q2_K,
    Type.Q3_K,
    Type.Q4_K,
    Type.Q5_K,
    Type.Q6_K,
    Type.IQ1_S,
    Type.IQ1_M,
    Type.IQ2_XXS,
    Type.IQ2_XS,
    Type.IQ2_S,
    Type.IQ3_XXS,
    Type.IQ3_S,
    Type.IQ4_NL,
    Type.IQ4_XS,
    Type.TQ1_0,
    Type.TQ2_0,
    Type.MXFP4,
    Type.NVFP4,
)
# Entries that a thread takes at a time: what they become stays in its cache, and in memory
# that malloc keeps, where twice as many are fetched from the system for each stretch.
STRETCH = 1 << 17
_FEW = 2


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(
        cores.threads(), thread_name_prefix='gguf-blocks'
    )


def dequantised(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Bytes of whole rows, uint8 [R, bytes of one], as float32 [R, C].

    What comes of scales that are no numbers is not looked at.
    """
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns = data.shape[1] // size * block
    values = np.empty((len(data), columns), np.float32)

    def fill(rows: slice) -> None:
        with np.errstate(all='ignore'):
            if kind in gguf_k_blocks.KINDS:
                gguf_k_blocks.dequantise(data[rows], kind, values[rows])
                return
            own = gguf.quants.dequantize(data[rows].reshape(1, -1), kind)
        values[rows] = own.reshape(-1, columns)

    _over_rows(fill, *values.shape)
    return values


def quantised(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Rows [R, C] as bytes, uint8 [R, bytes of one].

    Rows must be whole blocks. What a plain type cannot hold becomes infinite.
    """
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = values.shape[1] // block * size
    data = np.empty((len(values), stored), np.uint8)

    def fill(rows: slice) -> None:
        own = np.ascontiguousarray(values[rows])
        with np.errstate(all='ignore'):
            if kind in PLAIN:
                made = own.astype(PLAIN[kind], copy=False)
            else:
                made = gguf.quants.quantize(
                    own.astype(np.float32, copy=False).reshape(1, -1), kind
                )
        data[rows] = made.view(np.uint8).reshape(-1, stored)

    _over_rows(fill, *values.shape)
    return data


def _over_rows(fill: Callable[[slice], None], rows: int, columns: int) -> None:
    step = max(1, STRETCH // max(columns, 1))
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    if len(parts) <= _FEW:  # As of those who read in threads of their own.
        for part in parts:
            fill(part)
    else:
        list(_threads().map(fill, parts))
