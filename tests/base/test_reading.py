"""Only ordinary files are opened, within bounds; all others are one line at once."""

import gzip
import os
import pathlib
import socket

import pytest

from ppjax.base import errors, flags, json_lines, reading
from ppjax.data import calibration, row_sources
from ppjax.masking import keep_indices, pmask
from ppjax.models import base_model, gguf_reader
from ppjax.personas import evaluation_set, sources
from ppjax.recovery import config as recovery_config
from ppjax.synthesis import rewrite_file


def _refused(read, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        read()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) <= errors.LONGEST
    for part in parts:
        assert part in message


def _rows(path: str) -> None:
    if len(path) > 4000:
        path = f'./{path}'
    (source,) = row_sources.parse_spec(path)
    list(row_sources.read(source))


_READERS = {
    'persona': sources.read_persona,
    'evaluation set': evaluation_set.read,
    'instructions': _rows,
    'calibration': calibration.read_rows,
    'rewrites': rewrite_file.FileRewriter,
    'mask': pmask.load,
    'keep indices': lambda path: keep_indices.load(path, 2, 4),
    'config': lambda path: json_lines.read_object(pathlib.Path(path)),
    'GGUF': gguf_reader.GgufReader,
    'flags': lambda path: flags.from_flagfile(recovery_config.RecoverConfig, path),
    'flag file in a flag': lambda path: flags.parse(
        recovery_config.RecoverConfig, [f'--flagfile={path}']
    ),
}


@pytest.fixture(scope='module')
def odd(tmp_path_factory) -> dict[str, str]:
    """Paths of what is no regular file."""
    folder = tmp_path_factory.mktemp('odd')
    os.mkfifo(folder / 'pipe.jsonl')
    (folder / 'folder.jsonl').mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / 's.jsonl'))
    return {
        'a pipe': str(folder / 'pipe.jsonl'),
        'a folder': str(folder / 'folder.jsonl'),
        'a socket': str(folder / 's.jsonl'),
        'a device': '/dev/zero',
    }


@pytest.mark.parametrize('reader', _READERS)
@pytest.mark.parametrize('kind', ['a pipe', 'a folder', 'a socket', 'a device'])
def test_what_is_no_regular_file_is_refused_at_once(odd, reader, kind):
    if (reader, kind) == ('instructions', 'a folder'):
        pytest.skip('a folder is a data set')
    _refused(lambda: _READERS[reader](odd[kind]), f'is {kind}')


@pytest.mark.parametrize('reader', [*_READERS, 'base model'])
@pytest.mark.parametrize('name', ['x' * 300, 'x' * 5000 + '.json', 'a\0b.json'])
def test_names_that_no_file_can_have_are_one_line(reader, name):
    readers = _READERS | {'base model': base_model.open_base_model}
    _refused(lambda: readers[reader](name))


def test_text_comes_in_any_dress(tmp_path):
    text = '{"a": "é\u2028 😀"}\n\n{"b": 1}'
    path = tmp_path / 'a.jsonl'
    want = [(f'{path}:1', {'a': 'é\u2028 😀'}), (f'{path}:3', {'b': 1})]
    for data in (
        text.encode(),
        text.encode('utf-8-sig'),
        text.encode('utf-16'),
        text.replace('\n', '\r\n').encode('utf-16'),
        b'\xfe\xff' + text.encode('utf-16-be'),
        gzip.compress(text.encode()),
        gzip.compress(text.encode('utf-16')),
    ):
        path.write_bytes(data)
        assert list(json_lines.read(path, 'File')) == want
    path.write_bytes(text.encode('utf-16'))
    assert reading.read_text(path, 'File') == text


def test_damaged_and_packed_files_are_one_line(tmp_path, monkeypatch):
    path = tmp_path / 'a.jsonl'
    packed = gzip.compress(os.urandom(5000))

    def refused(data: bytes, *parts: str) -> None:
        path.write_bytes(data)
        _refused(lambda: list(json_lines.read(path, 'File')), str(path), *parts)

    refused(packed[:2000], 'damaged or cut short')
    refused(packed[:20] + b'\0\0\0\0' + packed[24:], 'gzip')
    refused('{"a": "x"}'.encode('utf-16') + b'\x00\xd8', 'not UTF-16')
    refused(b'{"a": 1}\n"\xff"\n', 'a.jsonl:2: not UTF-8')
    monkeypatch.setattr(reading, 'MAX_LINE', 1000)
    refused(b'1\n' + b' ' * 2000, 'a.jsonl:2: the line is longer')
    monkeypatch.setattr(reading, 'MAX_FILE_BYTES', 1000)
    refused(gzip.compress(b'\n' * 10**6), 'unpacks to more than')
    path.write_bytes(b'1' * 1001)
    _refused(lambda: json_lines.read_value(path, 'File'), 'larger than')
