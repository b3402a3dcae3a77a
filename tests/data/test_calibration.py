"""Calibration files: good rows in, every bad row named by file and line."""

import json
import pathlib
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from ppjax.base import errors
from ppjax.data import calibration

_SYSTEM = {'role': 'system', 'content': 'Be Bram.'}
_USER = {'role': 'user', 'content': 'How?'}
_ANSWER = {'role': 'assistant', 'content': 'So.'}
_GOOD = {'messages': [_SYSTEM, _USER, _ANSWER], 'query_id': 'q-1'}


def _file(tmp_path, *lines: Any) -> pathlib.Path:
    path = tmp_path / 'c.jsonl'
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text('\n'.join(texts) + '\n', encoding='utf-8')
    return path


def _refused(path, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        calibration.read_rows(path)
    message = str(caught.value)
    assert '\n' not in message
    for part in (str(path), *parts):
        assert part in message


def test_rows_are_read_in_order(tmp_path):
    talk = [_SYSTEM, _USER, _ANSWER, _USER | {'content': 'And?'}, _ANSWER]
    path = _file(
        tmp_path,
        _GOOD,
        {'messages': [_USER, _ANSWER]},
        {'messages': talk, 'query_id': 7, 'score': 0.5, 'source': 'x'},
    )
    first, second, third = calibration.read_rows(path)
    assert first.messages == (_SYSTEM, _USER, _ANSWER)
    assert first.query_id == 'q-1'
    assert first.where == f'{path}:1'
    assert (first.system_prompt, first.query, first.answer) == (
        'Be Bram.',
        'How?',
        'So.',
    )
    assert second.system_prompt == ''
    assert second.query_id == '2'
    assert third.query_id == '7'
    assert (third.query, third.answer) == ('And?', 'So.')


def test_blank_lines_are_passed_over_and_counted(tmp_path):
    path = _file(tmp_path, '', _GOOD, '   ', {'messages': [_USER, _ANSWER]}, '')
    rows = calibration.read_rows(path)
    assert [row.where for row in rows] == [f'{path}:2', f'{path}:4']
    assert rows[1].query_id == '4'


def test_text_of_all_languages_and_line_separators_survives(tmp_path):
    text = 'Grüße 🚀 日本\u2028\u0085 end'
    path = _file(
        tmp_path,
        json.dumps(
            {'messages': [_USER | {'content': text}, _ANSWER]}, ensure_ascii=False
        ),
        _GOOD,
    )
    first, second = calibration.read_rows(path)
    assert first.query == text
    assert second.where == f'{path}:2'


def test_other_keys_of_a_message_are_left_behind(tmp_path):
    path = _file(tmp_path, {'messages': [_USER | {'name': 'x'}, _ANSWER]})
    assert calibration.read_rows(path)[0].messages == (_USER, _ANSWER)


@pytest.mark.parametrize(
    ('row', 'part'),
    [
        ('{"messages": [', 'invalid JSON'),
        ('no json', 'invalid JSON'),
        ('[' * 100_000, 'nested too deep'),
        ('{"messages": ' + '9' * 5000 + '}', 'invalid JSON'),
        ('[]', 'messages'),
        ('3', 'messages'),
        ('null', 'messages'),
        ({}, 'messages'),
        ({'messages': []}, 'messages'),
        ({'messages': {}}, 'messages'),
        ({'messages': 'hi'}, 'messages'),
        ({'conversations': [_USER, _ANSWER]}, 'messages'),
        ({'messages': [_USER, 'so']}, 'message 1'),
        ({'messages': [{'content': 'How?'}, _ANSWER]}, 'message 0'),
        ({'messages': [{'role': 'user'}, _ANSWER]}, 'message 0'),
        ({'messages': [{'role': 'human', 'content': 'x'}, _ANSWER]}, 'message 0'),
        ({'messages': [{'role': ['user'], 'content': 'x'}, _ANSWER]}, 'message 0'),
        ({'messages': [{'role': 'user', 'content': None}, _ANSWER]}, 'message 0'),
        ({'messages': [{'role': 'user', 'content': [1]}, _ANSWER]}, 'message 0'),
        ({'messages': [_SYSTEM, _USER]}, 'last message is the user'),
        ({'messages': [_USER, _ANSWER, _USER]}, 'last message is the user'),
        ({'messages': [_USER, _ANSWER | {'content': ''}]}, 'assistant turn is empty'),
        ({'messages': [_USER, _ANSWER | {'content': ' \n'}]}, 'turn is empty'),
        ({'messages': [_ANSWER]}, 'does not follow a user turn'),
        ({'messages': [_SYSTEM, _ANSWER]}, 'does not follow a user turn'),
        ({'messages': [_USER, _ANSWER, _ANSWER]}, 'does not follow a user turn'),
        # Half of a surrogate pair is valid JSON and no text.
        ({'messages': [_USER | {'content': '\ud800'}, _ANSWER]}, 'message 0'),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, row, part):
    _refused(_file(tmp_path, _GOOD, '', row, _GOOD), 'c.jsonl:3:', part)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = _file(tmp_path, _GOOD, _GOOD)
    path.write_bytes(path.read_bytes() + b'\n{"messages": "\xff\xfe"}\n')
    _refused(path, 'c.jsonl:4', 'UTF-8')


def test_unusable_files(tmp_path):
    _refused(tmp_path / 'none.jsonl', 'does not exist')
    _refused(tmp_path, 'no regular file')
    _refused(_file(tmp_path), 'no rows')
    _refused(_file(tmp_path, '', '  '), 'no rows')


def test_content_hash_is_of_messages_in_order(tmp_path):
    other = {'messages': [_USER, _ANSWER]}
    rows = calibration.read_rows(_file(tmp_path, _GOOD, other))
    want = calibration.content_hash(rows)
    assert len(want) == 64
    spaced = json.dumps(_GOOD, indent=None, separators=(' ,  ', ' : '))
    again = calibration.read_rows(_file(tmp_path, '', spaced, other))
    assert calibration.content_hash(again) == want
    assert calibration.content_hash(rows[::-1]) != want
    assert calibration.content_hash(rows[:1]) != want
    renamed = calibration.read_rows(_file(tmp_path, _GOOD | {'query_id': 'x'}, other))
    assert calibration.content_hash(renamed) == want
    said = [_SYSTEM, _USER, _ANSWER | {'content': 'So!'}]
    changed = calibration.read_rows(_file(tmp_path, {'messages': said}, other))
    assert calibration.content_hash(changed) != want


# --- Whatever the file holds --------------------------------------------------

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(['user', 'assistant', 'system', 'x']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(['messages', 'role', 'content', 'query_id']), inner
        )
    ),
    max_leaves=12,
)
_message = st.fixed_dictionaries(
    {'role': st.sampled_from(['user', 'assistant', 'system']), 'content': st.text()}
)
_chat = st.fixed_dictionaries(
    {'messages': st.lists(_message | _json, max_size=4)}, optional={'query_id': _json}
)
_line = (_json | _chat).map(json.dumps).map(str.encode) | st.binary(max_size=30)


@hypothesis.settings(max_examples=300)
@hypothesis.given(lines=st.lists(_line, max_size=4))
def test_anything_is_read_or_refused(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / 'any.jsonl'
    path.write_bytes(b'\n'.join(lines))
    try:
        rows = calibration.read_rows(path)
    except errors.InputError:
        return
    assert len(calibration.content_hash(rows)) == 64
    for row in rows:
        assert row.answer.strip()
        assert isinstance(row.query_id, str)
