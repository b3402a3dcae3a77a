"""Writing a GGUF file tensor by tensor, some rows at a time."""

from collections.abc import Iterator, Mapping, Sequence
import pathlib
from typing import Any, BinaryIO

import gguf
import numpy as np

from ppjax.base import errors
from ppjax.exporting.gguf import metadata as metadata_lib
from ppjax.exporting.gguf import types
from ppjax.models import base_model, costs, gguf_blocks, gguf_names, uneven

# Entries of a tensor that are read at a time, 64 MB of float32.
_PIECE_ENTRIES = 1 << 24
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
# The largest number of float16, which also scales the blocks of the quantised types.
_LARGEST_HALF = float(np.finfo(np.float16).max)


def plan(
    model: base_model.BaseModel,
    kind: gguf.GGMLQuantizationType,
    sizes: Sequence[costs.BlockSize] | None = None,
) -> list[types.Planned]:
    """The tensors of a file, in the order in which they are written.

    Args:
        model: its constants.
        kind: of the file.
        sizes: of its layers, where they differ; see `uneven.Trimmed`.
    """
    cfg = model.config
    shapes = uneven.shapes(cfg, list(sizes or ()))
    return [
        types.planned(name, hf_name, shapes[hf_name], kind, tied=cfg.tie_embeddings)
        for name, hf_name in gguf_names.hf_names(cfg.num_layers).items()
        if hf_name in shapes
    ]


def write(
    path: pathlib.Path,
    model: base_model.BaseModel,
    metadata: Mapping[str, Any],
    tensors: Sequence[types.Planned],
) -> None:
    """Writes a whole file.

    Memory does not grow with the model: at most 64 MB of float32 are read at a time,
    or the rows of one attention head.

    Args:
        path: a temporary one; see `atomic.file`.
        model: its weights and constants.
        metadata: key -> str, bool, int, float, or a list of str or int.
        tensors: see `plan`.

    Raises:
        InputError: if a weight is too large for its type.
    """
    arch = metadata[metadata_lib.ARCHITECTURE]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if key != metadata_lib.ARCHITECTURE:  # The writer's own.
            _add(writer, key, value)
    scaled = _rope_factors(model)
    if scaled is not None:
        name = gguf_names.ROPE_FREQS
        writer.add_tensor_info(name, scaled.shape, scaled.dtype, scaled.nbytes)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),
            tensor.num_bytes,
            raw_dtype=tensor.kind,
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    with path.open('ab') as file:
        _pad(file)
        if scaled is not None:
            file.write(scaled.tobytes())
            _pad(file)
        for tensor in tensors:
            for piece in stored_pieces(model, tensor, arch):
                file.write(piece.data)
            _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _rope_factors(model: base_model.BaseModel) -> np.ndarray | None:
    cfg = model.config
    if cfg.rope_scaling is None:
        return None
    factors = gguf_names.rope_factors(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    return factors.astype(np.float32)


def stored_pieces(
    model: base_model.BaseModel, tensor: types.Planned, arch: str
) -> Iterator[np.ndarray]:
    """A tensor's bytes, uint8 [rows, bytes of one], some rows at a time.

    Raises:
        InputError: if a weight is too large for its type.
    """
    for piece in _rows(model, tensor, arch):
        _refuse_too_large(model, tensor, piece)
        yield gguf_blocks.quantised(np.atleast_2d(piece), tensor.kind)


def _rows(
    model: base_model.BaseModel, tensor: types.Planned, arch: str
) -> Iterator[np.ndarray]:
    """A tensor in GGUF's order of rows, some at a time."""
    rows, *columns = tensor.shape
    head_dim = model.config.head_dim
    heads = gguf_names.permuted_heads(
        arch, tensor.hf_name, rows=rows, head_dim=head_dim
    )
    whole = 1 if heads is None else head_dim
    step = max(1, _PIECE_ENTRIES // (columns[0] if columns else 1) // whole) * whole
    if not columns:
        step = rows  # A vector is one row of a matrix.
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = model.reader.read(tensor.hf_name, part)
        piece = piece[:, : columns[0]] if columns else piece
        if heads is not None:
            piece = piece[gguf_names.gguf_rows(len(piece), len(piece) // whole)]
        yield piece


def _refuse_too_large(
    model: base_model.BaseModel, tensor: types.Planned, piece: np.ndarray
) -> None:
    # In bfloat16 what rounds to infinity is as large as no weight is.
    if tensor.kind in (types.Type.F32, types.Type.BF16) or not piece.size:
        return
    largest = float(np.abs(piece.astype(np.float32, copy=False)).max())
    if largest > _LARGEST_HALF:
        raise errors.InputError(
            f'{model.reader.path}: tensor {tensor.hf_name!r} holds {largest:.4g}, too '
            f'large for {tensor.kind.name}; write --gguf=bf16 or f32.'
        )


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value.encode('utf-8', 'replace').decode())
        case list():
            writer.add_array(key, value)
        case _:
            raise ValueError(f'{key} must be a number, text or list, got {value!r}.')
