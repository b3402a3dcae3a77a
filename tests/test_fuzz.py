"""A share of the campaign of bad inputs, and that it would notice what is wrong."""

import importlib
import pathlib
import sys
import time

import jax.numpy as jnp
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.models import base_model, loading
from ppjax.personas import sources

_LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
# Verbs and damaged runs compile; `launch/fuzz.py` feeds them.
_CASES = 300


@pytest.fixture(scope='module')
def fuzzing():
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_LAUNCH))
        names = ('commands', 'feeding', 'judging', 'material', 'readers')
        yield {name: importlib.import_module(f'fuzzing.{name}') for name in names}
    for name in set(sys.modules) - before:
        if name.startswith('fuzzing'):
            del sys.modules[name]


@pytest.fixture(scope='module')
def whole(fuzzing, tmp_path_factory):
    return fuzzing['material'].Material(tmp_path_factory.mktemp('whole'))


def test_whole_inputs_are_read(whole):
    for path in (whole.model, whole.gguf):
        base = base_model.open_base_model(str(path))
        loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
        assert base.tokenizer().encode('ab') == [256]
    assert pmask.load(whole.mask).keep == 16
    assert len(demo.read_rows(str(whole.calibration), split='train')) == 3


def test_whole_cards_are_read(fuzzing, tmp_path):
    material = fuzzing['material']
    path = tmp_path / 'card.charx'
    path.write_bytes(material.charx(material.json.dumps(material.CARD).encode()))
    assert sources.read_personas(str(path))[0].name == 'Ida'


def test_what_must_not_be_is_found(fuzzing, tmp_path, monkeypatch):
    judging = fuzzing['judging']
    monkeypatch.setattr(judging, 'SECONDS', 0.5)

    def leave() -> None:
        (tmp_path / 'left').mkdir()
        raise errors.InputError('no')

    def kinds(read) -> tuple[str, list[str]]:
        outcome, found = judging.judge('any', 0, read, tmp_path)
        return outcome, [finding.kind for finding in found]

    def refuse() -> None:
        raise errors.InputError('no')

    def spoilt() -> None:
        error = errors.InputError('no')
        error.args = ('two\nlines',)
        raise error

    assert kinds(lambda: None) == ('read', [])
    assert kinds(refuse) == ('refused', [])
    assert kinds(lambda: int('x')) == ('refused', ['traceback'])
    assert kinds(lambda: sys.exit(1)) == ('refused', ['traceback'])
    assert kinds(lambda: time.sleep(5)) == ('refused', ['slow'])
    assert kinds(spoilt) == ('refused', ['line'])
    assert kinds(leave) == ('refused', ['left'])


def test_a_share_of_the_campaign(fuzzing, whole, monkeypatch):
    feeding = fuzzing['feeding']
    # Other tests run, too.
    monkeypatch.setattr(fuzzing['judging'], 'SECONDS', 120)
    counts = {'read': 0, 'refused': 0}
    found = []
    for target, number in feeding.cases_of(list(fuzzing['readers'].TARGETS), _CASES):
        outcome, more = feeding.feed(7, target, number, whole)
        counts[outcome] += 1
        found += more
    assert not found
    # Most inputs are bad indeed, and some damage does no harm.
    assert counts['refused'] > counts['read'] > 0


def test_a_handful_of_command_lines(fuzzing, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing['judging'], 'SECONDS', 120)
    count, found = fuzzing['commands'].run(1, 4, 2, tmp_path / 'commands')
    assert not found
    assert count.total() == 4
