"""Results that are measured once, as long as what they depend on stays."""

import json
import pathlib

import pytest

from ppjax.base import errors
from ppjax.evaluation import results_store

_SETTINGS = {'models': {'dense': 'a1'}, 'pairs': [('q', 1)], 'length': None}


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'results' / 'task.json'


class _Measure:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, int]:
        self.times += 1
        return {'value': self.times}


def _measured(path, measure, settings=_SETTINGS, *, overwrite=False):
    return results_store.measured(path, settings, measure, overwrite=overwrite)


def test_measured_once_and_stored_with_settings_and_versions(path, capsys):
    measure = _Measure()
    first = _measured(path, measure)
    assert not capsys.readouterr().err
    stored = json.loads(path.read_text('utf-8'))
    assert stored['value'] == 1
    assert stored['settings']['pairs'] == [['q', 1]]
    assert {'ppjax', 'jax'} <= stored['versions'].keys()
    assert _measured(path, measure) == stored
    assert json.loads(json.dumps(first)) == stored
    assert measure.times == 1
    assert f'{path} is there already' in capsys.readouterr().err


@pytest.mark.parametrize(
    'changes',
    [
        {'models': {'dense': 'a2'}},
        {'models': {'dense': 'a1', 'pruned': 'b'}},
        {'pairs': [('q', 2)]},
        {'length': 3},
        {'more': None},
    ],
)
def test_other_settings_are_measured_again(path, changes):
    measure = _Measure()
    _measured(path, measure)
    assert _measured(path, measure, _SETTINGS | changes)['value'] == 2
    stored = json.loads(path.read_text('utf-8'))
    assert stored['value'] == 2
    assert _measured(path, measure, _SETTINGS | changes)['value'] == 2


def test_overwrite_measures_again(path):
    measure = _Measure()
    _measured(path, measure)
    assert _measured(path, measure, overwrite=True)['value'] == 2
    assert _measured(path, measure)['value'] == 2


@pytest.mark.parametrize(
    'content',
    [b'', b'{"settings"', b'\xff\xfe', b'[]', b'3', b'{}', b'[' * 99_999],
    ids=['empty', 'torn', 'no text', 'list', 'number', 'bare', 'deep'],
)
def test_a_file_that_is_no_result_is_replaced(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert _measured(path, _Measure())['value'] == 1
    assert json.loads(path.read_text('utf-8'))['settings']['length'] is None


def test_what_fails_leaves_the_older_result(path):
    def fail() -> dict[str, int]:
        raise errors.InputError('no.')

    _measured(path, _Measure())
    before = path.read_bytes()
    with pytest.raises(errors.InputError, match=r'no\.'):
        _measured(path, fail, overwrite=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ['task.json']


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / 'results').write_text('a file')
    with pytest.raises(errors.InputError, match=r'Cannot write .*task\.json'):
        _measured(tmp_path / 'results' / 'task.json', _Measure())


def test_text_survives(path):
    results_store.measured(
        path, {}, lambda: {'a': 'Grüße, 渡し守 \u2028'}, overwrite=False
    )
    assert (
        results_store.stored(path, {}, overwrite=False)['a'] == 'Grüße, 渡し守 \u2028'
    )
