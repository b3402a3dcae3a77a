"""launch/rolebench.py: what is learned from is never what is measured on."""

import importlib.util
import json
import pathlib

import pytest

_SCRIPT = pathlib.Path(__file__).parents[1] / 'launch' / 'rolebench.py'


@pytest.fixture(scope='module')
def rolebench():
    spec = importlib.util.spec_from_file_location('rolebench', _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _questions(path):
    return [
        json.loads(line)['messages'][1]['content'].lower()
        for line in path.read_text('utf-8').splitlines()
    ]


def test_neither_own_nor_shared_rows_hold_a_question_of_any_held_out_set(
    rolebench, tmp_path
):
    # Both roles are asked all questions, once in other letters.
    rows = [
        {
            'role': role,
            'question': f'Question {i}?' if role == 'A' else f'QUESTION {i}?',
            'generated': [f'{role} says {i}.', 'Something else.'],
        }
        for i in range(520)
        for role in ('A', 'B')
    ]
    splits = [
        rolebench.write_split(rows, role, f'You are {role}.', tmp_path / role)
        for role in ('A', 'B')
    ]
    for train, test in splits:
        assert len(_questions(train)) == 440
        assert len(_questions(test)) == 60
        assert not set(_questions(train)) & set(_questions(test))
    # Both splits are drawn alike: let them differ, as real roles' questions do.
    train, test = splits[1]
    lines = train.read_text('utf-8').splitlines(keepends=True)
    test.write_text(''.join(lines[:30]), 'utf-8')
    held = {question for _, test in splits for question in _questions(test)}
    shared = rolebench.write_shared(splits, tmp_path / 'shared')
    assert [path.name for path in shared] == ['A.jsonl', 'B.jsonl']
    assert [len(_questions(path)) for path in shared] == [410, 410]
    for path, (train, _) in zip(shared, splits, strict=True):
        assert not held & set(_questions(path))
        assert set(_questions(path)) <= set(_questions(train))


def test_all_answers_are_those_of_the_training_questions(rolebench, tmp_path):
    rows = [
        {
            'role': 'A',
            'question': f'Question {i}?',
            'generated': [f'First {i}.', f'Second {i}.', ' ', f'First {i}.'],
        }
        for i in range(520)
    ]
    train, test = rolebench.write_split(rows, 'A', 'You are A.', tmp_path)
    every = tmp_path / 'train_all_answers.jsonl'
    chats = [json.loads(line) for line in every.read_text('utf-8').splitlines()]
    first = [json.loads(line) for line in train.read_text('utf-8').splitlines()]
    assert chats[::2] == first
    assert [chat['messages'][2]['content'].split()[0] for chat in chats[1::2]] == [
        'Second'
    ] * len(first)
    assert len({chat['query_id'] for chat in chats}) == len(chats)
    assert not set(_questions(every)) & set(_questions(test))
