"""Answers from plain files, from evaluations, and from their logs."""

import json
import pathlib
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.ranking import answer_files
from tests.ranking import samples

_PROMPT = 'You are Bram.'


def _evaluation(
    folder: pathlib.Path, models: tuple[str, ...] = ('dense', 'pruned')
) -> pathlib.Path:
    """results/judge.json as `evaluate --tasks=judge` writes it, as far as it is read."""
    asked = [(row['persona'], row['question']) for row in samples.rows('')]
    answers = [
        {
            'model': model,
            'group': persona[:4],
            'question': question,
            'answer': f'{model} {number}' if number else '',
            'roleplay_score': None,
            # The first question could not be put to the last model.
            'roleplay_failure': ''
            if number or model != models[-1]
            else 'no answer: the prompt is too long',
        }
        for model in models
        for number, (persona, question) in enumerate(asked)
    ]
    questions = [[p, _PROMPT, question, p[:4]] for p, question in asked]
    result: dict[str, Any] = {'settings': {'questions': questions}, 'answers': answers}
    path = folder / 'results' / 'judge.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result), 'utf-8')
    return path


def _refused(sources: str, eval_sets: str | None = None) -> str:
    with pytest.raises(errors.InputError) as caught:
        answer_files.read(sources, eval_sets)
    return str(caught.value)


def test_plain_files(sources):
    found = answer_files.read(sources)
    assert tuple(found) == samples.MODELS
    first = samples.rows('rival')[0]
    asked = answer_files.Asked(first['persona'], first['question'])
    assert found['rival'][asked] == 'rival: How do I know a good plan?'
    assert {len(own) for own in found.values()} == {6}


def test_outer_line_breaks_and_other_fields_say_nothing(tmp_path):
    lines = [
        {'persona': 'P\r\nQ\n', 'question': '\nWhy?', 'answer': ' A. \n', 'score': 3},
        {'persona': 'P\nQ', 'question': 'Why?', 'answer': 'A.'},
    ]
    file = samples.write_rows(tmp_path / 'a.jsonl', lines)
    assert answer_files.read(f'a={file}') == {'a': {('P\nQ', 'Why?'): 'A.'}}


def test_an_empty_answer_is_one(tmp_path):
    line = {'persona': 'P', 'question': 'Why?', 'answer': ''}
    file = samples.write_rows(tmp_path / 'a.jsonl', [line])
    assert answer_files.read(f'a={file}') == {'a': {('P', 'Why?'): ''}}


@pytest.mark.parametrize('inside', ['', 'results', 'results/judge.json'])
def test_all_models_of_an_evaluation(tmp_path, inside):
    _evaluation(tmp_path / 'run')
    found = answer_files.read(str(tmp_path / 'run' / inside))
    assert {name: len(own) for name, own in found.items()} == {'dense': 6, 'pruned': 5}
    asked = [answer_files.Asked(r['persona'], r['question']) for r in samples.rows('')]
    # The dense model answered nothing, the pruned one was not asked.
    assert found['dense'][asked[0]] == ''
    assert asked[0] not in found['pruned']
    assert found['pruned'][asked[5]] == 'pruned 5'


def test_models_of_evaluations_under_other_names(tmp_path):
    run, one = tmp_path / 'run', tmp_path / 'one'
    _evaluation(run)
    _evaluation(one, models=('pruned',))
    found = answer_files.read(f'dense={run},ours={run}:pruned,rival={one}')
    assert list(found) == ['dense', 'ours', 'rival']
    asked = answer_files.Asked(*list(samples.rows('')[5].values())[:2])
    assert [own[asked] for own in found.values()] == ['dense 5', 'pruned 5', 'pruned 5']


def test_the_log_of_an_evaluation_with_its_sets(tmp_path):
    row = samples.rows('')[0]
    sets = tmp_path / 'sets'
    sets.mkdir()
    (sets / 'bram.json').write_text(
        json.dumps(
            {'persona_description': row['persona'], 'questions': [row['question']]}
            | {'instruction': []}
        )
    )
    log = {'key': 'k', 'group': 'bram', 'question': row['question'], 'text': 'Aye.'}
    file = samples.write_rows(tmp_path / 'answers.jsonl', [log])
    assert answer_files.read(f'ours={file}', str(sets)) == {
        'ours': {(row['persona'], row['question']): 'Aye.'}
    }
    assert 'name the evaluation sets with --eval_sets' in _refused(f'ours={file}')
    both = samples.write_rows(tmp_path / 'both.jsonl', [log, log | {'text': 'Nay.'}])
    assert 'both.jsonl:2: another answer' in _refused(f'ours={both}', str(sets))


def test_what_is_none_is_refused_by_name(tmp_path, sources):
    run = tmp_path / 'run'
    _evaluation(run)
    (tmp_path / 'results' / 'x').mkdir(parents=True)
    other = tmp_path / 'other.json'
    other.write_text('{"answers": [], "settings": {"questions": []}}')
    empty = samples.write_rows(tmp_path / 'empty.jsonl', [])
    short = samples.write_rows(tmp_path / 'short.jsonl', [{'persona': 'P'}])
    text = samples.write_rows(tmp_path / 'text.jsonl', ['P'])
    plain = tmp_path / 'ours.jsonl'
    assert 'several models are called' in _refused(f'{sources},ours={plain}')
    assert 'has no name of a model before it' in _refused(str(plain))
    assert 'does not exist' in _refused(f'a={tmp_path / "none"}')
    assert 'holds no results/judge.json' in _refused(f'a={tmp_path / "results"}')
    assert f'{other} is no result of' in _refused(str(other))
    assert 'has the models dense, pruned' in _refused(f'a={run}')
    assert "has the models dense, pruned, and no 'x'" in _refused(f'a={run}:x')
    assert "has no 'x' in it" in _refused(f'a={plain}:x')
    assert 'holds no personas; give judge.json' in _refused(f'a={tmp_path / "b.csv"}')
    assert 'holds no answers' in _refused(f'a={empty}')
    assert 'short.jsonl:1: "question" is missing' in _refused(f'a={short}')
    assert 'text.jsonl:1: no JSON object' in _refused(f'a={text}')
    assert 'is no name of a model' in _refused(f'{"n" * 81}={plain}')
