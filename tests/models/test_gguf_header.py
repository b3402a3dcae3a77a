"""Headers that ask for more than there is, quickly refused."""

import pathlib
import struct
import time

import gguf
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.models import gguf_header, gguf_reader
from tests.models import gguf_files

_STRING, _ARRAY, _UINT8, _UINT32 = 8, 9, 0, 4


def _text(text: bytes) -> bytes:
    return struct.pack('<Q', len(text)) + text


def _file(folder: pathlib.Path, body: bytes, *, tensors: int = 0, pairs: int = 1):
    path = folder / 'm.gguf'
    path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, tensors, pairs) + body)
    return path


def _array(kind: int, count: int, body: bytes = b'') -> bytes:
    return _text(b'key') + struct.pack('<IIQ', _ARRAY, kind, count) + body


_TENSOR = _text(b'name') + struct.pack('<IQIQ', 1, 4, 0, 0)


@pytest.mark.parametrize(
    ('body', 'counts', 'said'),
    [
        (b'', {'pairs': 2**60}, 'beyond its end'),
        (b'', {'pairs': 0, 'tensors': 2**63}, 'beyond its end'),
        (_TENSOR, {'pairs': 0, 'tensors': 2**30}, 'beyond its end'),
        # The gguf package would make an empty array for each of them.
        (_array(_UINT8, 2**62), {}, 'entries'),
        (_array(_UINT8, 2**21), {}, 'beyond its end'),
        (_array(_STRING, 2**20), {}, 'beyond its end'),
        (_array(_ARRAY, 1, struct.pack('<IQ', _ARRAY, 1) * 2000), {}, 'type 9'),
        (_array(77, 1), {}, 'type 77'),
        (_text(b'key') + struct.pack('<IQ', _STRING, 2**63), {}, 'beyond its end'),
        (_text(b'key') + struct.pack('<I', _STRING) + _text(b'\xff'), {}, 'key holds'),
        (_text(b'k\xe9') + struct.pack('<II', _UINT32, 1), {}, 'a key holds'),
        (_text(b'n\xff'), {'pairs': 0, 'tensors': 1}, "tensor's name holds"),
        (
            _text(b'n') + struct.pack('<I', 2**31),
            {'pairs': 0, 'tensors': 1},
            'axes',
        ),
    ],
)
def test_damaged_headers(tmp_path, body, counts, said):
    path = _file(tmp_path, body, **counts)
    began = time.monotonic()
    with pytest.raises(errors.InputError) as caught:
        gguf_reader.GgufReader(path)
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert '\n' not in message


def test_a_whole_file_is_walked_to_its_end(tmp_path, smollm2_base):
    metadata, tensors = gguf_header.read(smollm2_base.reader.path)
    want = gguf.GGUFReader(smollm2_base.reader.path)
    fields = {key: field.contents() for key, field in want.fields.items()}
    assert metadata == {k: v for k, v in fields.items() if not k.startswith('GGUF.')}
    assert [tensor.name for tensor in tensors] == [own.name for own in want.tensors]
    for tensor, own in zip(tensors, want.tensors, strict=True):
        assert tensor.shape == tuple(own.shape[::-1].tolist())
        assert tensor.kind == own.tensor_type
        np.testing.assert_array_equal(tensor.data, own.data.view(np.uint8))
    model = gguf_files.model_of(gguf_files.config_of('qwen2'))
    path = gguf_files.write_model(tmp_path / 'm.gguf', 'qwen2', model)
    whole = path.read_bytes()
    start = int(gguf.GGUFReader(path).data_offset)
    for size in range(4, start, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(errors.InputError, match=r'm\.gguf'):
            gguf_reader.GgufReader(path)
