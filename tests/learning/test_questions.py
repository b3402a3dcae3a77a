"""What is learned from must not be what is measured on."""

import pytest

from ppjax.base import errors
from ppjax.data import calibration
from ppjax.learning import data


def _row(*turns: str, where: str) -> calibration.Row:
    roles = ['system', *['user', 'assistant'] * 9]
    messages = [
        {'role': role, 'content': turn}
        for role, turn in zip(roles, turns, strict=False)
    ]
    return calibration.parse_row({'messages': messages}, where, where)


@pytest.mark.parametrize('question', ['Why is it?', ' why  is it', 'Why is it?\n'])
def test_a_heldout_question_is_none_to_learn_from(question):
    train = [_row('P', 'Why is it?', 'So.', where='train.jsonl:3')]
    held = [_row('Q', question, 'Other words.', where='test.jsonl:7')]
    with pytest.raises(errors.InputError) as caught:
        # The rows are looked at first, so the model is not asked for anything.
        data.prepare_data(None, train, held, max_length=9, date='2026-01-01')
    assert str(caught.value).startswith('test.jsonl:7: ')
    assert 'train.jsonl:3' in str(caught.value)


def test_the_last_words_of_a_conversation_are_no_question():
    train = [_row('P', 'Why?', 'So.', 'Go on.', 'Yes.', where='train.jsonl:1')]
    held = [_row('P', 'Who?', 'She.', 'Go on.', 'Yes.', where='test.jsonl:1')]
    data._refuse_shared_questions(train, held)
