"""Rows of the field's formats become queries and answers, or one clear line."""

import pytest

from ppjax.base import errors
from ppjax.data import instructions

_CHAT = [
    {'role': 'user', 'content': 'Why?'},
    {'role': 'assistant', 'content': 'So.'},
]


def _refused(row, *parts: str, **options) -> None:
    with pytest.raises(errors.InputError) as caught:
        instructions.parse_row(row, 'rows.jsonl:7', **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in ('rows.jsonl:7: ', *parts):
        assert part in message


@pytest.mark.parametrize(
    ('row', 'want'),
    [
        (
            {'instruction': 'Solve.', 'input': '2x = 6', 'output': 'x = 3'},
            ('Solve.\n\n### Input:\n2x = 6', 'x = 3'),
        ),
        ({'instruction': 'Hi.', 'input': '', 'output': 'Ho.'}, ('Hi.', 'Ho.')),
        ({'instruction': 'Hi.', 'output': 'Ho.'}, ('Hi.', 'Ho.')),
        ({'instruction': 'Hi.', 'input': None, 'output': 'Ho.'}, ('Hi.', 'Ho.')),
        (
            {
                'instruction': 'Who?',
                'context': 'A text.',
                'response': 'She.',
                'category': 'closed_qa',
            },
            ('Who?\n\n### Input:\nA text.', 'She.'),
        ),
        # Neither kind of input is lost in a mixed format.
        (
            {'instruction': 'Who?', 'input': 'A.', 'context': 'B.', 'response': 'C'},
            ('Who?\n\n### Input:\nA.\n\nB.', 'C'),
        ),
        (
            {'instruction': 'Who?', 'input': 'Noinput', 'context': 'B.', 'output': 'C'},
            ('Who?\n\n### Input:\nB.', 'C'),
        ),
        (
            {
                'id': 'flan.1',
                'system_prompt': 'You are an AI assistant.',
                'question': 'Why?',
                'response': 'So.',
            },
            ('Why?', 'So.'),
        ),
        ({'query': ' Why?\n', 'answer': '\tSo. '}, ('Why?', 'So.')),
        ({'query': '', 'answer': 'So.'}, ('', 'So.')),
        ({'query': 'Why?', 'answer': None}, ('Why?', '')),
        (
            {'instruction': '', 'input': 'Only this.', 'output': 'x'},
            ('Only this.', 'x'),
        ),
        (
            {
                'messages': [
                    {'role': 'user', 'content': 'Why?'},
                    {'role': 'assistant', 'content': 'So.', 'name': 'x'},
                ]
            },
            ('Why?', 'So.'),
        ),
        (
            {
                'messages': [
                    {'role': 'system', 'content': 'Be brief.'},
                    {'role': 'user', 'content': 'Why?'},
                    {'role': 'assistant', 'content': 'So.'},
                ]
            },
            ('Why?', 'So.'),
        ),
        ({'messages': [{'role': 'user', 'content': 'Why?'}]}, ('Why?', '')),
        (
            {
                'messages': [
                    {'role': 'developer', 'content': 'Be brief.'},
                    {
                        'role': 'user',
                        'content': [
                            {'type': 'text', 'text': 'Why'},
                            {'type': 'input_text', 'text': 'though?'},
                        ],
                    },
                    {
                        'role': 'assistant',
                        'content': [{'type': 'output_text', 'text': 'So.'}],
                    },
                ]
            },
            ('Why\nthough?', 'So.'),
        ),
        (
            {
                'conversations': [
                    {'from': 'system', 'value': 'Be brief.'},
                    {'from': 'human', 'value': 'Why?'},
                    {'from': 'gpt', 'value': 'So.'},
                ]
            },
            ('Why?', 'So.'),
        ),
        ({'prompt': 'Why?', 'response': 'So.'}, ('Why?', 'So.')),
        ({'prompt': 'Why?', 'completion': ' So.'}, ('Why?', 'So.')),
        ({'prompt': _CHAT[:1], 'completion': _CHAT[1:]}, ('Why?', 'So.')),
        ({'question': 'Why?', 'answer': 'So.'}, ('Why?', 'So.')),
    ],
)
def test_formats(row, want):
    assert instructions.parse_row(row, 'x:1')[:2] == want


def test_of_a_longer_conversation_the_first_answer_is_taken():
    parsed = instructions.parse_row({'messages': _CHAT * 2}, 'x:1')
    assert parsed == ('Why?', 'So.', True)
    assert not instructions.parse_row({'messages': _CHAT}, 'x:1').cut


@pytest.mark.parametrize(
    'row',
    [{'instruction': 'Why?', 'input': ''}, {'question': 'Why?'}, {'query': 'Why?'}],
)
def test_the_field_for_the_answer_is_optional_on_request(row):
    parsed = instructions.parse_row(row, 'x:1', require_answer=False)
    assert parsed == ('Why?', '', False)
    _refused(row, 'unknown format')


def test_an_answer_is_read_even_where_it_is_optional():
    row = {'instruction': 'Who?', 'context': 'A text.', 'response': 'She.'}
    query, answer, _ = instructions.parse_row(row, 'x:1', require_answer=False)
    assert (query, answer) == ('Who?\n\n### Input:\nA text.', 'She.')


@pytest.mark.parametrize(
    'given',
    [
        '<noinput>',
        'Noinput',
        'NoInput',
        'No input.',
        'no input required',
        '(no input)',
        '[noinput]',
        '\\<noinput\\>',
        '`<noinput>`',
        '< noinput >',
        '<noinput',
        'N/A',
        'No_input',
        'none',
        '<none>',
        ' No input needed. ',
    ],
)
def test_placeholders_of_an_input_are_none(given):
    assert instructions.is_placeholder(given)
    assert instructions.with_input('Hi.', given) == 'Hi.'
    row = {'instruction': 'Hi.', 'input': given, 'output': 'Ho.'}
    assert instructions.parse_row(row, 'x:1')[0] == 'Hi.'
    assert instructions.split_input(f'Hi.\n\n### Input:\n{given}\n') == ('Hi.', '')


@pytest.mark.parametrize(
    'given', ['Na', 'none of these', 'no', 'The input is none.', '<noinput> 8', '?', '']
)
def test_short_inputs_are_no_placeholders(given):
    assert not instructions.is_placeholder(given)


def test_a_query_splits_into_what_it_was_made_of():
    for pair in (('Add.', '1, 2'), ('Add.', ''), ('Add.', 'a\n\nb'), ('', '')):
        assert instructions.split_input(instructions.with_input(*pair)) == pair
    # As some data sets and questions spell it.
    for query in ('Add.\n### input :\n1, 2', '\nAdd.\n\n###Input:\n\n1, 2\n'):
        assert instructions.split_input(query) == ('Add.', '1, 2')
    for whole in ('Say ### Input: x', 'Add.\nInput:\n1'):
        assert instructions.split_input(whole) == (whole, '')


@pytest.mark.parametrize(
    ('row', 'parts'),
    [
        (3, ['int', 'not an object', 'Alpaca (instruction, input, output)']),
        (None, ['NoneType']),
        (['a'], ['list']),
        ({}, ['(none)', 'Dolly (instruction, context, response)']),
        (
            {'goal': 'x', 'sol1': 'y'},
            ["'goal', 'sol1'", 'OpenOrca (question, response)', 'plain (query, answer'],
        ),
        ({'instruction': 'x'}, ["'instruction'", 'chat (messages)']),
        ({'a\nb': 1, 'query': 'x'}, ["'a\\nb'"]),
        ({f'f{i}': 1 for i in range(30)}, ["'f9' and 20 more"]),
        ({'query': 3, 'answer': 'x'}, ["'query'", 'int']),
        ({'query': ['x'], 'answer': 'x'}, ["'query'", 'list']),
        ({'query': 'x', 'answer': {}}, ["'answer'", 'dict']),
        ({'instruction': 'x', 'input': True, 'output': 'y'}, ["'input'", 'bool']),
        ({'query': 'x\ud800', 'answer': 'y'}, ["'query'", 'surrogate']),
        ({'query': 'x', 'answer': '\udfff'}, ["'answer'", 'surrogate']),
        ({'messages': 'x'}, ["'messages'", 'no list']),
        ({'messages': ['x']}, ["'messages'", 'no list']),
        ({'messages': []}, ['roles', '(none)']),
        ({'messages': [{'role': 'user', 'content': 3}]}, ["'content'", 'int']),
        ({'messages': [{'role': 3, 'content': 'x'}]}, ["'role'", 'int']),
        ({'messages': [{'content': 'x'}]}, ['roles']),
        ({'messages': [{'role': 'system', 'content': 'x'}]}, ["'system'"]),
        ({'messages': [{'role': 'assistant', 'content': 'x'}]}, ["'assistant'"]),
        ({'messages': [{'role': 'user', 'content': 'x'}] * 2}, ["'user', 'user'"]),
        (
            {'messages': [{'role': 'assistant', 'content': 'x'}, *_CHAT]},
            ['a user message and its assistant message'],
        ),
        (
            {'messages': [_CHAT[0], {'role': 'tool', 'content': 'y'}]},
            ["'user', 'tool'"],
        ),
        (
            {
                'messages': [
                    _CHAT[0],
                    {'role': 'assistant', 'content': None, 'tool_calls': [{'id': 'a'}]},
                ]
            },
            ['a call of tools'],
        ),
        (
            {
                'messages': [
                    {'role': 'user', 'content': [{'type': 'image_url'}]},
                    _CHAT[1],
                ]
            },
            ["parts other than text ('image_url')"],
        ),
        ({'conversations': [{'from': 'gpt', 'value': 'x'}]}, ["'assistant'"]),
        ({'conversations': [{'from': 'human', 'value': 3}]}, ["'value'", 'int']),
    ],
)
def test_bad_rows_are_refused_in_one_line(row, parts):
    _refused(row, *parts)
