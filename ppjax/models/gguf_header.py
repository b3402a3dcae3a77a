"""A GGUF file's header, walked through before it is believed.

The `gguf` package makes an object of every entry of every array, as many as the file
says there are: a damaged or hostile number takes all memory. Walking costs little.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

import mmap
import pathlib
import struct

# Value type -> bytes of one.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# In all arrays together: the largest vocabularies so far have 262,144 tokens, about
# twice as many merges, a score and a type each. The gguf package needs 1.5 KB for one.
_MAX_ENTRIES = 1 << 21
_MAX_AXES = 4


def check(path: pathlib.Path) -> None:
    """Walks through the metadata and tensor infos of a little-endian file.

    Raises:
        ValueError: if a length or count leads out of the file, an array has more
            entries than any tokenizer, or a text is not UTF-8.
    """
    with path.open('rb') as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError('it is empty') from None
        with data:
            try:
                _walk(data)
            except struct.error:
                raise ValueError('its header leads beyond its end') from None


def _walk(data: mmap.mmap) -> None:
    tensors, pairs = struct.unpack_from('<QQ', data, 8)
    offset, entries = 24, 0
    for _ in range(pairs):
        key, offset = _text(data, offset, 'a key')
        [kind] = struct.unpack_from('<I', data, offset)
        offset += 4
        count = 1
        if kind == _ARRAY:
            kind, count = struct.unpack_from('<IQ', data, offset)
            offset += 12
            entries += count
            if entries > _MAX_ENTRIES:
                raise ValueError(f'{key} lists {count} entries, more than any model')
        if kind == _STRING:
            for _ in range(count):
                _, offset = _text(data, offset, key)
        elif kind in _SIZES:
            offset += count * _SIZES[kind]
        else:
            raise ValueError(f'{key} has values of the unknown type {kind}')
    for _ in range(tensors):
        name, offset = _text(data, offset, "a tensor's name")
        [axes] = struct.unpack_from('<I', data, offset)
        if axes > _MAX_AXES:
            raise ValueError(f'tensor {name} has {axes} axes')
        offset += 4 + 8 * axes + 4 + 8
    if offset > len(data):
        raise struct.error


def _text(data: mmap.mmap, offset: int, what: str) -> tuple[str, int]:
    [length] = struct.unpack_from('<Q', data, offset)
    start, stop = offset + 8, offset + 8 + length
    if stop > len(data):
        raise struct.error
    try:
        return data[start:stop].decode(), stop
    except UnicodeDecodeError:
        raise ValueError(f'{what} holds bytes that are no UTF-8') from None
