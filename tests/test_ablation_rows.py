"""launch/ablation_rows.py: four files that differ in what they say they differ in."""

import json
import pathlib
import sys

import pytest

from ppjax.base import errors

_LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
sys.path.insert(0, str(_LAUNCH))
import ablation_rows


def _row(number):
    return {
        'messages': [
            {'role': 'system', 'content': 'You are Bram.'},
            {'role': 'user', 'content': f'Question {number}?'},
            {'role': 'assistant', 'content': f'Aye, {number}.'},
        ],
        'query_id': f'q{number}',
        # Of falling sensitivity, as calibration/train.jsonl has them, but for one.
        'score': 10.0 if number == 7 else 1 / (number + 1),
    }


def test_rewriting_and_filtering_are_taken_away_one_by_one(tmp_path):
    rows = [_row(number) for number in range(10)]
    plain = {f'Question {number}?': f'{number}' for number in range(10)}
    made = ablation_rows.variants(rows, plain, 0.4, seed=0)
    asked = {name: [row['query_id'] for row in own] for name, own in made.items()}
    assert asked['rewritten-filtered'] == ['q7', 'q0', 'q1', 'q2'] == asked['filtered']
    assert asked['rewritten'] == asked['neither'] != asked['filtered']
    assert len(set(asked['rewritten'])) == 4
    for name, own in made.items():
        for row in own:
            answer = row['messages'][-1]['content']
            assert answer.startswith('Aye') == name.startswith('rewritten')
            assert [m['role'] for m in row['messages']] == [
                'system',
                'user',
                'assistant',
            ]
    assert json.dumps(rows) == json.dumps([_row(number) for number in range(10)])


def test_a_query_without_a_plain_answer_is_refused():
    with pytest.raises(
        errors.InputError, match='no answer to 1 of 1 queries, the first q3'
    ):
        ablation_rows.variants([_row(3)], {}, 0.4, seed=0)
