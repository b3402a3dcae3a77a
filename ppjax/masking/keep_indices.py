"""Keep indices as JSON, the form that the paper's own exporter reads."""

import json
import pathlib

import numpy as np

from ppjax.base import atomic, errors, reading


def save(path: str | pathlib.Path, mask: np.ndarray) -> None:
    """Writes {"topk_indices": [[k ascending ints] x L]} for a bool mask [L, F]."""
    indices = [np.nonzero(row)[0].tolist() for row in mask]
    atomic.write_text(path, json.dumps({'topk_indices': indices}) + '\n')


def load(path: str | pathlib.Path, num_layers: int, d_ff: int) -> np.ndarray:
    """Reads keep indices into a bool mask [L, F].

    Raises:
        InputError: if the file is no such JSON, layers are missing, indices repeat
            or leave [0, F), or layers keep different numbers of channels.
    """
    data = reading.read_bytes(path, 'Keep indices')
    try:
        rows = json.loads(data)['topk_indices']
        # NumPy would also make integers of 1.5, true and "3".
        if any(type(index) is not int for row in rows for index in row):
            raise TypeError('an index is no integer')
        arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise errors.InputError(
            f'{path} does not hold {{"topk_indices": [[...] x layers]}} ({error!r}).'
        ) from None
    if len(arrays) != num_layers:
        raise errors.InputError(
            f'{path} has {len(arrays)} layers, the base model {num_layers}.'
        )
    mask = np.zeros((num_layers, d_ff), bool)
    for layer, row in enumerate(arrays):
        if row.ndim != 1 or len(row) != len(arrays[0]) or not len(row):
            raise errors.InputError(
                f'{path}: layer {layer} keeps {row.size} channels, layer 0 '
                f'{arrays[0].size}; every layer must keep the same number, 1 or more.'
            )
        if row.min() < 0 or row.max() >= d_ff or len(np.unique(row)) != len(row):
            raise errors.InputError(
                f'{path}: layer {layer} has repeated indices or some outside '
                f'[0, {d_ff}).'
            )
        mask[layer, row] = True
    return mask
