"""The file of a study: whole after any end, and never anything twice."""

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from ppjax.base import errors
from ppjax.ranking import answer_files, dimensions, questionnaire, study
from tests.ranking import samples

_ORDERS = {
    name: list(order)
    for name, order in zip(
        dimensions.NAMES, itertools.permutations(samples.MODELS), strict=False
    )
}


def _person(opened: study.Study, code: str = 'wren') -> str:
    opened.add(study.Participant(code, study.PERSON, code))
    return code


def _ranks(opened: study.Study, dimension: str) -> dict[str, float]:
    return {x.model: x.rank for x in opened.rankings() if x.dimension == dimension}


def test_orders_come_back_as_ranks(make_study):
    opened = make_study()
    code = _person(opened)
    assert opened.rank(code, 2, _ORDERS) is False
    assert opened.orders(code, 2) == _ORDERS
    assert opened.orders(code, 1) == {}
    assert opened.done(code) == {2}
    found = opened.rankings()
    assert len(found) == 9
    assert found[0]._replace(dimension='') == (code, 'person', 2, '', 'ours', 1.0)
    assert _ranks(opened, 'anthropomorphism') == {'ours': 1, 'rival': 2, 'third': 3}
    assert _ranks(opened, 'character_fidelity') == {'ours': 1, 'third': 2, 'rival': 3}


def test_a_later_order_replaces_and_doubles_nothing(make_study):
    opened = make_study()
    code = _person(opened)
    opened.rank(code, 1, _ORDERS)
    other = {name: order[::-1] for name, order in _ORDERS.items()}
    assert opened.rank(code, 1, other) is True
    assert opened.orders(code, 1) == other
    assert len(opened.rankings()) == 9


def test_a_code_is_taken_in_once(make_study):
    opened = make_study()
    wren = study.Participant('wren', study.PERSON, 'wren')
    assert opened.add(wren) is True
    assert opened.add(wren) is False
    assert opened.has('wren')
    assert not opened.has('owl')
    opened.add(study.Participant('judge:x:1', study.JUDGE, 'x'))
    # Nobody takes part as a judge.
    assert not opened.has('judge:x:1')
    assert [one.kind for one in opened.participants()] == ['person', 'judge']


@pytest.mark.parametrize(
    'orders',
    [
        {'anthropomorphism': ['ours', 'rival']},
        {'anthropomorphism': ['ours', 'rival', 'rival']},
        {'anthropomorphism': ['ours', 'rival', 'third', 'rival']},
        {'storyline_consistency': list(samples.MODELS)},
    ],
)
def test_an_order_that_is_none_writes_nothing(make_study, orders):
    opened = make_study()
    code = _person(opened)
    with pytest.raises(ValueError):
        opened.rank(code, 1, _ORDERS | orders)
    assert opened.rankings() == []


def test_many_threads_leave_one_order_whole(make_study):
    opened = make_study()
    code = _person(opened)
    orders = [list(order) for order in itertools.permutations(samples.MODELS)]

    def send(order: list[str]) -> None:
        for _ in range(5):
            opened.rank(code, 1, dict.fromkeys(dimensions.NAMES, order))

    threads = [threading.Thread(target=send, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened.rankings()) == 9
    found = opened.orders(code, 1)
    assert found == dict.fromkeys(dimensions.NAMES, found['storyline_quality'])


def test_a_judge_ranks_once_both_orders_are_there(make_study):
    opened = make_study()
    opened.add(study.Participant('judge:x:1', study.JUDGE, 'x'))

    def hear(backwards: bool, models: tuple[str, ...] | None) -> None:
        reply = study.Reply(1, 'storyline_quality', backwards, 'text', models)
        opened.hear('judge:x:1', reply)

    hear(False, ('ours', 'rival', 'third'))
    assert opened.rankings() == []
    hear(True, None)
    assert opened.rankings() == []
    hear(True, ('rival', 'ours', 'third'))
    # 1 and 2 against 2 and 1: a tie, and nobody is first.
    assert _ranks(opened, 'storyline_quality') == {
        'ours': 1.5,
        'rival': 1.5,
        'third': 3,
    }
    assert [reply.backwards for reply in opened.replies('judge:x:1')] == [False, True]


def test_it_comes_back_as_it_was(make_study, tmp_path):
    opened = make_study(3, seed=7)
    code = _person(opened)
    opened.rank(code, 3, _ORDERS)
    before = opened.questionnaire
    opened.close()
    again = study.Study(tmp_path / 'study' / study.NAME)
    assert again.questionnaire == before
    assert again.questionnaire.shown(code, 2) == before.shown(code, 2)
    assert again.orders(code, 3) == _ORDERS
    again.close()


def test_other_answers_are_refused_by_name(make_study, sources, tmp_path):
    opened = make_study(3)
    given = answer_files.read(sources)
    opened.begin(questionnaire.draw(given, count=3, seed=0))
    changed = {name: dict(own) for name, own in given.items()}
    for asked in changed['third']:
        changed['third'][asked] += ' And more.'
    with pytest.raises(errors.InputError) as caught:
        opened.begin(questionnaire.draw(changed, count=3, seed=0))
    assert 'these differ: the answers of third.' in str(caught.value)
    with pytest.raises(errors.InputError, match=r'--items \(3 there, 4 now\)'):
        opened.begin(questionnaire.draw(given, count=4, seed=0))


def test_another_file_is_left_alone(tmp_path):
    text = tmp_path / 'text.sqlite'
    text.write_text('not a database at all' * 99)
    with pytest.raises(errors.InputError, match='is damaged, or no file of rankings'):
        study.Study(text)
    assert text.read_text().startswith('not a database')
    other = tmp_path / 'other.sqlite'
    with sqlite3.connect(other) as database:
        database.execute('CREATE TABLE mine (x)')
    database.close()
    with pytest.raises(errors.InputError, match='format None, wanted'):
        study.Study(other)
    with pytest.raises(errors.DiskError, match='unable to open database file'):
        study.Study(tmp_path / 'none' / 'x.sqlite')


_KILLED = """
import os, pathlib, signal, sys
from ppjax.ranking import study
opened = study.Study(pathlib.Path(sys.argv[1]))
opened.add(study.Participant('wren', study.PERSON, 'wren'))
orders = dict.fromkeys({names!r}, list(opened.questionnaire.models))
opened.rank('wren', 1, orders)
write = opened._write
def dies(database, *of):
    write(database, *of)
    os.kill(os.getpid(), signal.SIGKILL)
opened._write = dies
opened.rank('wren', 2, orders)
"""


def test_a_kill_before_the_commit_leaves_the_item_out_and_the_rest(make_study):
    opened = make_study()
    path = opened.path
    opened.close()
    done = subprocess.run(
        [sys.executable, '-c', _KILLED.format(names=dimensions.NAMES), str(path)],
        env=os.environ | {'PYTHONPATH': os.getcwd()},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    again = study.Study(path)
    assert again.done('wren') == {1}
    assert len(again.rankings()) == 9
    again.close()
