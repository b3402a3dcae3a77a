"""Damaged reference figures are measured again."""

import json

import pytest

from ppjax.learning import references

_WHOLE = {'dense': [1.0, 2.0], 'start': [3.0, 4.5]}


def test_whole_ones_are_taken(tmp_path):
    path = tmp_path / 'references.json'
    assert references.stored(path, ['dense', 'start'], 2) is None
    path.write_text(json.dumps(_WHOLE))
    assert references.stored(path, ['dense', 'start'], 2) == _WHOLE


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'[]',
        b'3',
        b'\xff\xfe',
        b'{"dense": [1, 2]}',
        b'{"dense": [1, 2], "start": [1]}',
        b'{"dense": [1, 2], "start": ["a", "b"]}',
        b'{"dense": [1, 2], "start": 3}',
        b'[' * 100_000,
    ],
)
def test_damaged_ones_are_not(tmp_path, content, capsys):
    path = tmp_path / 'references.json'
    path.write_bytes(content)
    assert references.stored(path, ['dense', 'start'], 2) is None
    assert 'measured again' in capsys.readouterr().err


def test_a_folder_is_not(tmp_path):
    (tmp_path / 'references.json').mkdir()
    assert references.stored(tmp_path / 'references.json', ['dense'], 2) is None
