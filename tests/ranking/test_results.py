"""Files and tables of a study, from rankings that can be added up by hand."""

import csv
import io
import json

import pytest

from ppjax.base import errors
from ppjax.ranking import dimensions, results, study


def _rank(opened: study.Study, person: str, item: int, order: list[str]) -> None:
    opened.add(study.Participant(person, study.PERSON, person))
    opened.rank(person, item, dict.fromkeys(dimensions.NAMES, order))


def _judge(opened: study.Study, name: str, order: tuple[str, ...]) -> str:
    code = f'judge:{name}:0'
    opened.add(study.Participant(code, study.JUDGE, name))
    for item in (1, 2):
        for dimension in dimensions.NAMES:
            for backwards in (False, True):
                reply = study.Reply(item, dimension, backwards, 'x', order)
                opened.hear(code, reply)
    return code


@pytest.fixture
def ranked(make_study) -> study.Study:
    """Two people, of whom one ranked one item, and two judges."""
    opened = make_study(2)
    _rank(opened, 'wren', 1, ['ours', 'rival', 'third'])
    _rank(opened, 'wren', 2, ['rival', 'ours', 'third'])
    _rank(opened, 'owl', 1, ['ours', 'third', 'rival'])
    opened.add(study.Participant('idle', study.PERSON, 'idle'))
    _judge(opened, 'a|b', ('ours', 'rival', 'third'))
    _judge(opened, 'people', ('third', 'rival', 'ours'))
    return opened


def test_figures(ranked):
    found = results.summarise(ranked)
    people = found['groups']['people']
    assert (people['participants'], people['complete']) == (2, 1)
    means = {model: own['mean'] for model, own in people['overall'].items()}
    assert means == pytest.approx({'ours': 4 / 3, 'rival': 2.0, 'third': 8 / 3})
    # A judge of that name is no group of people.
    assert set(found['groups']) == {'people', 'a|b', 'people (0)'}
    agreement = {
        name: own['model_means']['overall'] for name, own in found['spearman'].items()
    }
    assert agreement == pytest.approx({'a|b': 1.0, 'people (0)': -1.0})
    assert found['settings']['questionnaire'] == ranked.questionnaire.digest


def test_files(ranked, tmp_path):
    run = tmp_path / 'run'
    found = results.write(run, ranked)
    assert json.loads((run / 'results' / 'rank.json').read_text()) == found
    rows = list(csv.DictReader(io.StringIO((run / 'results/rankings.csv').read_text())))
    assert len(rows) == 3 * 9 + 2 * 2 * 9
    assert rows[0] == {
        'participant': 'wren',
        'kind': 'person',
        'item': '1',
        'dimension': 'anthropomorphism',
        'model': 'ours',
        'rank': '1',
    }
    assert {row['kind'] for row in rows} == {'person', 'judge'}
    page = (run / 'results' / 'rank.md').read_text()
    assert '| ours | 1.33 (±' in page
    assert '(2 of them, 1 with all items)' in page
    assert 'a\\|b' in page
    # Every row of a table has as many cells as its head.
    for block in page.split('\n\n'):
        lines = [x.replace('\\|', '') for x in block.splitlines() if x[:1] == '|']
        assert len({line.count('|') for line in lines}) <= 1


def test_a_terminal_shows_the_same(ranked):
    text = results.text(results.summarise(ranked))
    assert 'Overall mean rank (as Table 5)' in text
    assert 'Spearman, people and a judge' in text
    assert all(line.isprintable() for line in text.splitlines())


def test_without_rankings(make_study):
    with pytest.raises(errors.InputError, match='holds no rankings yet'):
        results.summarise(make_study())


def test_of_people_alone(make_study):
    opened = make_study()
    _rank(opened, 'wren', 1, ['ours', 'rival', 'third'])
    found = results.summarise(opened)
    assert found['spearman'] == {}
    assert 'Judges' not in results.text(found)
