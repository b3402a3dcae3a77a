"""Which items are drawn, and in which order their answers are shown."""

import collections
import itertools

import pytest

from ppjax.base import errors
from ppjax.ranking import answer_files, questionnaire
from tests.ranking import samples


def _given(**counts: int) -> dict[str, answer_files.Answers]:
    """Models that answer the first so many questions."""
    return {
        name: {answer_files.Asked('P', f'{i}?'): f'{name} {i}' for i in range(count)}
        for name, count in counts.items()
    }


def _draw(given, count=3, seed=0, notes=lambda note: None):
    return questionnaire.draw(given, count=count, seed=seed, notes=notes)


def test_only_what_all_answer_is_drawn_and_the_rest_counted():
    notes = []
    drawn = _draw(_given(a=9, b=7, c=9), count=5, notes=notes.append)
    assert len(drawn.items) == 5
    assert all(set(item.answers) == {'a', 'b', 'c'} for item in drawn.items)
    assert all(int(item.question[:-1]) < 7 for item in drawn.items)
    assert notes == [
        'Left out: 2 of 9 questions, which not all models answer (b lacks 2).',
        '5 of 7 questions that all models answer are drawn with --seed=0.',
    ]


def test_fewer_than_asked_for_are_all_taken():
    notes = []
    assert len(_draw(_given(a=2, b=2), count=20, notes=notes.append).items) == 2
    assert notes == ['All models answer 2 questions, fewer than --items=20.']


def test_a_draw_depends_on_the_seed_and_on_no_order():
    given = _given(a=30, b=30)
    drawn = _draw(given)
    turned = {
        name: dict(reversed(own.items())) for name, own in reversed(given.items())
    }
    assert _draw(turned).items == drawn.items
    assert _draw(turned).digest == drawn.digest
    firsts = {_draw(given, seed=seed).items[0].question for seed in range(9)}
    assert len(firsts) > 4


def test_too_few_models_or_nothing_in_common():
    with pytest.raises(errors.InputError, match=r'names 1 model; wanted 2 to 26\.'):
        _draw(_given(a=3))
    apart = _given(a=1) | {'b': {answer_files.Asked('Q', '0?'): 'x'}}
    with pytest.raises(errors.InputError, match='no question, of one and the same'):
        _draw(apart)


def test_every_order_is_shown_about_equally_often():
    drawn = _draw(_given(a=4, b=4, c=4))
    counts = collections.Counter(
        tuple(drawn.shown(f'p{person}', number))
        for person in range(200)
        for number in (1, 2, 3)
    )
    assert set(counts) == set(itertools.permutations('abc'))
    assert all(70 < count < 130 for count in counts.values())
    assert drawn.shown('p0', 1) == drawn.shown('p0', 1)
    other = _draw(_given(a=4, b=4, c=4), seed=1)
    assert any(drawn.shown(f'p{i}', 1) != other.shown(f'p{i}', 1) for i in range(9))


def test_orders_do_not_change_from_version_to_version():
    # Studies that were begun go on: what was shown must be shown again.
    drawn = _draw(_given(a=4, b=4, c=4))
    assert [item.question for item in drawn.items] == ['3?', '1?', '0?']
    assert [drawn.shown('p', number) for number in (1, 2, 3)] == [
        ['c', 'a', 'b'],
        ['b', 'a', 'c'],
        ['b', 'a', 'c'],
    ]


def test_differences_are_named():
    given = _given(a=6, b=6)
    there = _draw(given)
    changed = {name: dict(own) for name, own in given.items()}
    item = there.items[0]
    changed['b'][answer_files.Asked(item.persona, item.question)] = 'another'
    differ = questionnaire.differences
    assert differ(there, _draw(given)) == []
    assert differ(there, _draw(changed)) == ['the answers of b']
    assert differ(there, _draw(given, seed=5)) == ['--seed (0 there, 5 now)']
    assert differ(there, _draw(given, count=2)) == ['--items (3 there, 2 now)']
    assert differ(there, _draw(_given(a=6, c=6))) == [
        'the models (a, b there, a, c now)'
    ]
    asked = _draw({name: _answers_of(name) for name in 'ab'})
    assert differ(there, asked) == ['the questions, or their personas']


def _answers_of(model: str) -> answer_files.Answers:
    return {
        answer_files.Asked(row['persona'], row['question']): row['answer']
        for row in samples.rows(model)
    }
