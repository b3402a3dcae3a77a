"""A GGUF file's header: what it says of itself, and where its tensors lie.

Read here and not by the `gguf` package, which makes an object of every entry of every
array: 14 s and 1.5 KB a token for a vocabulary of 150,000, where this takes half a
second, and all memory where a damaged or hostile number says so.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

import dataclasses
import math
import mmap
import pathlib
import re
import struct
from typing import Any

import gguf
import numpy as np

from ppjax.base import errors

MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_SCALARS: dict[int, np.dtype] = {
    0: np.dtype('<u1'),
    1: np.dtype('<i1'),
    2: np.dtype('<u2'),
    3: np.dtype('<i2'),
    4: np.dtype('<u4'),
    5: np.dtype('<i4'),
    6: np.dtype('<f4'),
    7: np.dtype('?'),
    10: np.dtype('<u8'),
    11: np.dtype('<i8'),
    12: np.dtype('<f8'),
}
_STRING, _ARRAY = 8, 9
# In all arrays together: the largest vocabularies so far have 262,144 tokens, about
# twice as many merges, a score and a type each.
_MAX_ENTRIES = 1 << 21
_MAX_AXES = 4
_ALIGNMENT_KEY, _ALIGNMENT = 'general.alignment', 32

_PART = re.compile(r'(.+)-(\d{5})-of-(\d{5})(\.gguf)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: GGUF's.
        kind: how its entries are stored.
        shape: slowest axis first, as everywhere but in the file.
        data: uint8 [..., bytes of a row], of the mapped file.
    """

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray


def parts(path: pathlib.Path) -> list[pathlib.Path]:
    """All files of a model, whichever of its parts is named.

    Raises:
        InputError: naming the parts that are not there.
    """
    named = _PART.fullmatch(path.name)
    if named is None or not 1 <= int(named[2]) <= int(named[3]):
        return [path]
    parts = [
        path.with_name(f'{named[1]}-{number:05d}-of-{named[3]}{named[4]}')
        for number in range(1, int(named[3]) + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise errors.InputError(
            f'GGUF file {str(path)!r} is one of {len(parts)} parts, and '
            f'{", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""} '
            f'{"is" if len(missing) == 1 else "are"} not beside it; put all parts into '
            'one folder.'
        )
    return parts


def read(path: pathlib.Path) -> tuple[dict[str, Any], list[Tensor]]:
    """Reads the metadata and maps the tensors of a little-endian file.

    Returns:
        (its metadata as Python values, its tensors in the order of the file).

    Raises:
        ValueError: if a length or count leads out of the file, an array has more
            entries than any tokenizer, a name comes twice, or a text is not UTF-8.
    """
    with path.open('rb') as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError('it is empty') from None
        with data:
            try:
                metadata, found, start = _walk(data)
            except struct.error:
                raise ValueError('its header leads beyond its end') from None
    mapped = np.asarray(np.memmap(path, np.uint8, 'r'))
    return metadata, [_mapped(mapped, start, *own) for own in found]


def _mapped(
    mapped: np.ndarray,
    start: int,
    name: str,
    shape: tuple[int, ...],
    kind: int,
    at: int,
) -> Tensor:
    try:
        known = gguf.GGMLQuantizationType(kind)
        block, size = gguf.GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        raise ValueError(f'tensor {name} has the unknown type {kind}') from None
    columns = shape[-1] if shape else 1
    if columns % block:
        raise ValueError(f'tensor {name} has rows of {columns} as {known.name}')
    stored = (*shape[:-1], columns // block * size)
    first = start + at
    last = first + math.prod(stored)
    if last > len(mapped):
        raise ValueError(f'tensor {name} ends beyond the end of the file')
    return Tensor(name, known, shape, mapped[first:last].reshape(stored))


def _walk(
    data: mmap.mmap,
) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
    """(metadata, (name, shape, type, offset) of each tensor, where their data start)."""
    version, tensors, pairs = struct.unpack_from('<IQQ', data, 4)
    if version not in _VERSIONS:
        raise ValueError(f'it is of GGUF version {version}, and 2 and 3 are read')
    offset, entries = 24, 0
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key, offset = _text(data, offset, 'a key')
        if key in metadata:
            raise ValueError(f'it has the key {key} twice')
        [kind] = struct.unpack_from('<I', data, offset)
        offset += 4
        if kind == _ARRAY:
            kind, count = struct.unpack_from('<IQ', data, offset)
            offset += 12
            entries += count
            if entries > _MAX_ENTRIES:
                raise ValueError(f'{key} lists {count} entries, more than any model')
            metadata[key], offset = _values(data, offset, key, kind, count)
        else:
            [metadata[key]], offset = _values(data, offset, key, kind, 1)
    found = []
    names = set()
    for _ in range(tensors):
        name, offset = _text(data, offset, "a tensor's name")
        if name in names:
            raise ValueError(f'it has the tensor {name} twice')
        names.add(name)
        [axes] = struct.unpack_from('<I', data, offset)
        if axes > _MAX_AXES:
            raise ValueError(f'tensor {name} has {axes} axes')
        *shape, kind, at = struct.unpack_from(f'<{axes}QIQ', data, offset + 4)
        offset += 4 + 8 * axes + 4 + 8
        found.append((name, tuple(shape[::-1]), kind, at))
    if offset > len(data):
        raise struct.error
    alignment = metadata.get(_ALIGNMENT_KEY, _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f'{_ALIGNMENT_KEY} is {str(alignment)[:40]}, no power of two')
    return metadata, found, offset + -offset % alignment


def _values(
    data: mmap.mmap, offset: int, key: str, kind: int, count: int
) -> tuple[list[Any], int]:
    """Values of one type, and where the next begin."""
    if kind == _STRING:
        texts = []
        for _ in range(count):
            text, offset = _text(data, offset, key)
            texts.append(text)
        return texts, offset
    if kind not in _SCALARS:
        raise ValueError(f'{key} has values of the unknown type {kind}')
    dtype = _SCALARS[kind]
    stop = offset + count * dtype.itemsize
    if stop > len(data):
        raise struct.error
    return np.frombuffer(data[offset:stop], dtype).tolist(), stop


def _text(data: mmap.mmap, offset: int, what: str) -> tuple[str, int]:
    [length] = struct.unpack_from('<Q', data, offset)
    start, stop = offset + 8, offset + 8 + length
    if stop > len(data):
        raise struct.error
    try:
        return data[start:stop].decode(), stop
    except UnicodeDecodeError:
        raise ValueError(f'{what} holds bytes that are no UTF-8') from None
