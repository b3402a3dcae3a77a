"""Evaluation sets: the paper's files in and out, and every bad one refused."""

import json
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.personas import evaluation_set, prompts
from ppjax.personas import persona as persona_lib

_GOOD: dict[str, Any] = {
    'instruction': [{'pos': f'\n{prompts.persona_prompt("Ida bakes.")}\n', 'neg': ''}],
    'eval_prompt': prompts.judge_template('Ida bakes.'),
    'user_id': 'u-1',
    'questions': ['\nWhy?\n', 'How?'],
    'extra': {'kept': [1, 'ö']},
}


def _read(value: Any):
    notes: list[str] = []
    return evaluation_set.from_json(value, 's.json', notes.append), notes


def _refused(value: Any, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        evaluation_set.from_json(value, 's.json')
    message = str(caught.value)
    assert message.startswith('s.json')
    assert '\n' not in message
    for part in parts:
        assert part in message


def test_a_set_is_read():
    read, notes = _read(_GOOD)
    assert read.persona.text == 'Ida bakes.'
    assert read.persona.system_prompt == prompts.persona_prompt('Ida bakes.')
    assert read.persona.source == 's.json'
    assert read.questions == ('\nWhy?\n', 'How?')
    assert read.user_id == 'u-1'
    assert read.judge_template == _GOOD['eval_prompt']
    assert read.judge_prompt('Why?', 'So.') == prompts.judge_prompt(
        'Ida bakes.', 'Why?', 'So.'
    )
    assert notes == []


def test_what_was_read_is_written(tmp_path):
    read, _ = _read(_GOOD)
    path = tmp_path / 'out.json'
    evaluation_set.write(path, read)
    written = json.loads(path.read_text(encoding='utf-8'))
    assert _GOOD.items() <= written.items()
    # What the authors' code needs is there, even where the source lacked it.
    assert written['system_prompt'] == prompts.persona_prompt('Ida bakes.')
    assert written['persona_description'] == 'Ida bakes.'
    assert evaluation_set.read(path) == evaluation_set.EvaluationSet(
        persona_lib.Persona('Ida bakes.', source=str(path)), read.questions, 'u-1'
    )


def test_a_set_made_here_is_in_the_papers_form(tmp_path):
    made = evaluation_set.EvaluationSet(
        persona_lib.Persona('Ida {bakes}.', name='Ida'), ('Why?',), 'u'
    )
    path = tmp_path / 'out.json'
    evaluation_set.write(path, made)
    prompt = prompts.persona_prompt('Ida {bakes}.')
    assert json.loads(path.read_text()) == {
        'instruction': [{'pos': prompt, 'neg': ''}],
        'eval_prompt': prompts.judge_template('Ida {bakes}.'),
        'user_id': 'u',
        'questions': ['Why?'],
        'persona_description': 'Ida {bakes}.',
        'system_prompt': prompt,
    }
    assert evaluation_set.read(path).questions == ('Why?',)


def test_where_the_persona_is_found():
    prompt = prompts.persona_prompt('Bo sails.')
    bare = {'questions': ['Why?']}
    for fields in (
        {'persona_description': ' Bo sails. '},
        {'system_prompt': prompt},
        {'instruction': [{'pos': prompt}]},
        {'instruction': {'pos': prompt}},
        {'instruction': prompt},
        {'persona_description': '', 'system_prompt': None, 'instruction': prompt},
    ):
        read, notes = _read(bare | fields)
        assert read.persona.text == 'Bo sails.'
        assert read.persona.system_template is None
        assert notes == []


def test_the_model_is_given_the_files_own_system_prompt():
    fields = {'persona_description': 'Bo sails.', 'system_prompt': ' Be Bo. '}
    read, _ = _read({'questions': ['Why?'], **fields})
    assert read.persona.text == 'Bo sails.'
    assert read.persona.system_prompt == 'Be Bo.'


def test_prompts_about_somebody_else_are_noted():
    read, notes = _read(_GOOD | {'persona_description': 'Bo sails.'})
    assert read.persona.text == 'Bo sails.'
    assert read.judge_template == prompts.judge_template('Bo sails.')
    assert len(notes) == 1
    for part in ('s.json', '"instruction" and "eval_prompt"', 'Bo sails.'):
        assert part in notes[0]
    _, notes = _read(_GOOD | {'eval_prompt': 'Rate {answer}.'})
    assert len(notes) == 1
    assert '"eval_prompt"' in notes[0]
    assert '"instruction"' not in notes[0]


def test_user_ids_may_be_numbers_or_absent():
    assert _read(_GOOD | {'user_id': 7})[0].user_id == '7'
    assert _read(_GOOD | {'user_id': None})[0].user_id == ''
    without = {key: value for key, value in _GOOD.items() if key != 'user_id'}
    assert _read(without)[0].user_id == ''


@pytest.mark.parametrize(
    ('value', 'part'),
    [
        (None, 'no evaluation set'),
        ([], 'no evaluation set'),
        ({}, 'no evaluation set'),
        ({'name': 'x'}, 'no evaluation set'),
        (_GOOD | {'questions': []}, 'no questions'),
        (_GOOD | {'questions': 'Why?'}, 'no questions'),
        ({'instruction': _GOOD['instruction']}, 'no questions'),
        (_GOOD | {'questions': ['Why?', ' ']}, 'question 1'),
        (_GOOD | {'questions': [3]}, 'question 0'),
        (_GOOD | {'questions': ['\ud800']}, 'question 0'),
        (_GOOD | {'instruction': [{'pos': 'Be evil.'}]}, 'no persona'),
        (_GOOD | {'instruction': [3]}, 'no persona'),
        (_GOOD | {'instruction': []}, 'no persona'),
        (_GOOD | {'instruction': [{'pos': prompts.persona_prompt('')}]}, 'no persona'),
        (_GOOD | {'extra': '\udc00'}, 'surrogate'),
        (_GOOD | {'extra': float('nan')}, 'NaN'),
    ],
)
def test_unusable_sets(value, part):
    _refused(value, part)


def test_unusable_files(tmp_path):
    for content, part in ((b'{', 'invalid JSON'), (b'\xff', 'UTF-8')):
        path = tmp_path / 's.json'
        path.write_bytes(content)
        with pytest.raises(errors.InputError, match=part):
            evaluation_set.read(path)
    with pytest.raises(errors.InputError, match='does not exist'):
        evaluation_set.read(tmp_path / 'none.json')


def test_all_questions_come_once_in_order(tmp_path):
    folder = tmp_path / 'sets'
    folder.mkdir()
    for name, questions in (('b', ['3', '1']), ('a', ['2', '1'])):
        (folder / f'{name}.json').write_text(
            json.dumps(_GOOD | {'questions': questions})
        )
    assert evaluation_set.all_questions([folder]) == ['2', '1', '3']
    one = folder / 'b.json'
    assert evaluation_set.all_questions([one, folder]) == ['3', '1', '2']
    assert evaluation_set.all_questions([]) == []
    with pytest.raises(errors.InputError, match='no evaluation sets'):
        evaluation_set.all_questions([one, tmp_path])


def test_the_papers_files_go_round(eval_set_files, tmp_path):
    assert len(eval_set_files) == 40
    strangers = []
    for path in eval_set_files:
        value = json.loads(path.read_text(encoding='utf-8'))
        notes: list[str] = []
        read = evaluation_set.read(path, notes.append)
        assert read.persona.text == value['persona_description']
        assert read.persona.system_prompt == value['system_prompt'].strip()
        assert list(read.questions) == value['questions']
        if notes:
            strangers.append(path.name)
        else:
            assert read.judge_template == value['eval_prompt']
            pos = value['instruction'][0]['pos']
            assert read.persona.system_prompt == pos.strip()
        out = tmp_path / path.name
        evaluation_set.write(out, read)
        assert json.loads(out.read_text(encoding='utf-8')) == value
    # Files of users 1 to 9 that are judged as user 0.
    assert strangers == [f'persona_alpaca_general_user_{i}.json' for i in range(1, 10)]
    questions = evaluation_set.all_questions([eval_set_files[0].parent])
    assert len(questions) == len(set(questions)) == 317
