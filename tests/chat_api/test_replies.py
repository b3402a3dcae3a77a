"""Replies in every form that servers send, and in forms that none should."""

import datetime
import email.utils
import json
import math
from typing import Any

import httpx
import hypothesis
from hypothesis import strategies
import pytest

from ppjax.chat_api import replies


def _response(body: Any, status: int = 200, **headers: str) -> httpx.Response:
    text = body if isinstance(body, str) else json.dumps(body)
    return httpx.Response(status, text=text, headers=headers)


def _choice(logprobs: Any = None, **message: Any) -> dict[str, Any]:
    choice = {'message': {'content': 'So.', **message}, 'finish_reason': 'stop'}
    return choice if logprobs is None else {**choice, 'logprobs': logprobs}


def _top(*pairs: Any) -> dict[str, Any]:
    top = [{'token': token, 'logprob': value} for token, value in pairs]
    return {'content': [{'token': 'x', 'logprob': -1.0, 'top_logprobs': top}]}


def test_the_first_choice_is_taken_as_it_is():
    first, second = _choice(_top(('8', -0.5))), _choice(content='No.')
    assert replies.first_choice(_response({'choices': [first, second]})) == first


@pytest.mark.parametrize(
    'body',
    [
        *('', 'null', '[]', '{}', '7', '{"choices": [', '<html>', '[' * 50_000),
        *(
            {'choices': x}
            for x in (None, [], {}, {'0': 1}, 7, 'abc', [None], ['a'], [[]], [{}])
        ),
        {'choices': [{'message': None}]},
        {'choices': [{'message': 'So.'}]},
        {'error': {'message': 'overloaded'}},
    ],
)
def test_what_is_no_chat_completion_has_no_choice(body):
    assert replies.first_choice(_response(body)) is None


def test_candidates_come_in_the_order_of_the_server_equal_texts_too():
    found = replies.first_token_logprobs(
        _choice(_top(('85', -0.1), (' 85', -3), ('', -4.5), ('', -5.0), ('é', -6.0)))
    )
    assert found == [('85', -0.1), (' 85', -3.0), ('', -4.5), ('', -5.0), ('é', -6.0)]
    assert all(type(value) is float for _, value in found)


def test_only_the_first_position_counts():
    logprobs = _top(('8', -0.1))
    logprobs['content'] += _top(('5', -0.2))['content']
    assert replies.first_token_logprobs(_choice(logprobs)) == [('8', -0.1)]


def test_entries_that_are_no_candidates_are_passed_over():
    logprobs = _top(
        ('9', None), ('8', '-1'), (7, -1.0), (None, -1.0), ('6', True), ('4', -0.3)
    )
    logprobs['content'][0]['top_logprobs'] += [None, 3, 'x', [], {}]
    logprobs['content'][0]['top_logprobs'] += [
        {'token': '3', 'logprob': math.nan},
        {'token': '2', 'logprob': 10**400},
        {'token': '1', 'logprob': -math.inf},
    ]
    found = replies.first_token_logprobs(_choice(logprobs))
    assert found == [('4', -0.3), ('1', -math.inf)]


@pytest.mark.parametrize(
    'logprobs',
    [
        *(None, 7, 'x', [], {}, {'content': None}, {'content': []}, {'content': {}}),
        *({'content': [x]} for x in (None, 3, [], {}, {'top_logprobs': None})),
        {'content': [{'token': '8', 'logprob': -1.0, 'top_logprobs': []}]},
        {'content': [{'token': '8', 'top_logprobs': {'8': -1.0}}]},
        {'tokens': ['8'], 'top_logprobs': [{'8': -1.0}]},
        _top(('8', None)),
    ],
)
def test_logprobs_that_are_none(logprobs):
    assert replies.first_token_logprobs(_choice(logprobs)) is None
    assert replies.first_token_logprobs({**_choice(), 'logprobs': logprobs}) is None


def test_the_texts_of_all_positions():
    content = [{'token': token} for token in ('8', '5', None, ' is')]
    assert replies.tokens_of(_choice({'content': content})) == ['8', '5', ' is']
    assert replies.tokens_of(_choice()) == []
    assert replies.tokens_of(_choice({'content': [3]})) == []


_KEYS = (
    *('choices', 'message', 'content', 'text', 'refusal', 'finish_reason'),
    *('logprobs', 'token', 'logprob', 'top_logprobs', 'error', 'code', 'detail'),
)
_json_values = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.floats() | strategies.text(),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(
            strategies.sampled_from(_KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@hypothesis.given(_json_values, _json_values)
def test_no_form_breaks_the_reading(logprobs, content):
    choice = {**_choice(content=content, refusal=content), 'logprobs': logprobs}
    assert isinstance(replies.text_of(choice), str)
    assert isinstance(replies.refused(choice), bool)
    assert all(isinstance(x, str) for x in replies.tokens_of(choice))
    for token, value in replies.first_token_logprobs(choice) or ():
        assert isinstance(token, str)
        assert not math.isnan(value)
    for value in (logprobs, content, {'choices': [logprobs]}, {'error': content}):
        response = _response(value)
        assert isinstance(replies.error_of(response)[1], str)
        found = replies.first_choice(response)
        assert found is None or isinstance(found['message'], dict)


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        *(('So.', 'So.'), (None, ''), (7, ''), ({}, '')),
        ([{'type': 'text', 'text': 'S'}, {'text': 'o.'}, 3, {'text': 4}], 'So.'),
        ([{'type': 'reasoning', 'text': 'Hm.'}], ''),
        ([{'type': 'thinking', 'text': 'Hm.'}, {'type': 'text', 'text': 'So.'}], 'So.'),
    ],
)
def test_texts(content, text):
    assert replies.text_of(_choice(content=content)) == text
    assert replies.text_of({'message': {}}) == ''


@pytest.mark.parametrize(
    ('message', 'want'),
    [
        ({'content': '', 'reasoning_content': 'Hm.'}, True),
        ({'content': None, 'reasoning': 'Hm.'}, True),
        ({'content': [{'type': 'thinking', 'thinking': 'Hm.'}]}, True),
        ({'content': [{'type': 'text', 'text': ''}]}, False),
        ({'content': 'So.', 'reasoning_content': 'Hm.'}, False),
        ({'content': '', 'reasoning_content': ''}, False),
        ({'content': None}, False),
    ],
)
def test_models_that_thought_and_said_nothing(message, want):
    assert replies.only_reasoned({'message': message}) is want


def test_how_a_reply_ended():
    def ended(reason: Any, **message: Any) -> tuple[bool, bool]:
        choice = {**_choice(**message), 'finish_reason': reason}
        return replies.finished(choice), replies.refused(choice)

    assert ended('stop') == (True, False)
    assert ended(None) == (True, False)
    assert ended('length') == (False, False)
    for reason in ('max_tokens', 'MAX_TOKENS', 'LENGTH', 'model_length'):
        assert ended(reason) == (False, False)
    assert ended('content_filter') == (True, True)
    assert ended('SAFETY') == (True, True)
    assert ended('STOP') == ended(7) == (True, False)
    assert ended('stop', refusal='I will not.') == (True, True)
    assert ended('stop', refusal=None) == (True, False)


@pytest.mark.parametrize(
    ('body', 'codes', 'said'),
    [
        ({'error': {'message': 'No.', 'code': 'c', 'type': 't'}}, {'c', 't'}, 'No.'),
        ({'error': {'detail': ['No.'], 'code': 7}}, {'7', 'None'}, '["No."]'),
        ({'message': 'No.', 'code': 'c'}, {'c', 'None'}, 'No.'),
        ({'detail': 'No.'}, {'None'}, 'No.'),
        ({'error': 'No.'}, set(), 'No.'),
        ({'error': None, 'x': 1}, set(), '{"error": null, "x": 1}'),
        ('No.', set(), 'No.'),
        ('', set(), ''),
    ],
)
def test_forms_of_errors(body, codes, said):
    assert replies.error_of(_response(body, 400)) == (codes, said)


def test_how_long_to_wait():
    def wait(text: str) -> float | None:
        return replies.retry_after(_response('', 429, **{'retry-after': text}))

    assert wait('2.5') == 2.5
    assert wait('-3') == 0.0
    assert wait('soon') is None
    assert replies.retry_after(_response('', 429)) is None
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert 90 < wait(email.utils.format_datetime(later, usegmt=True)) <= 100
    # Without a zone it is UTC.
    assert 90 < wait(f'{later:%a, %d %b %Y %H:%M:%S} -0000') <= 100
    assert wait('Fri, 01 Jan 1999 00:00:00 GMT') == 0.0


def test_long_texts_are_one_line_and_cut():
    assert replies.short(' a\n b\t c ') == 'a b c'
    assert replies.short('x' * 300) == 'x' * 300
    assert replies.short('x' * 301) == 'x' * 300 + '…'
