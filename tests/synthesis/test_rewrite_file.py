"""Rewrites from a file: found by id or query, and every bad row named by its line."""

import json
import pathlib
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.synthesis import rewrite_file, rewrite_log, rewriting


def _file(tmp_path: pathlib.Path, *lines: Any) -> pathlib.Path:
    path = tmp_path / 'made.jsonl'
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text('\n'.join(texts) + '\n', encoding='utf-8')
    return path


def _request(query_id: str, query: str = '') -> rewriting.Request:
    return rewriting.Request(query_id, query, ())


def test_rows_are_found_by_id_then_by_query(tmp_path):
    path = _file(
        tmp_path,
        {'query_id': 'a', 'rewrite': 'by id', 'persona': 'ferryman'},
        '',
        {'query': ' How  deep?\n', 'rewrite': 'by query'},
        {'query_id': 'b', 'query': 'Why?', 'rewrite': 'by both'},
        {'query_id': 'other', 'rewrite': 'unused'},
    )
    requests = [
        _request('b', 'Why? '),
        _request('x', 'How deep?'),
        _request('y', 'how deep?'),
        _request('a', 'What?'),
    ]
    replies = list(rewrite_file.FileRewriter(path).rewrite(requests))
    assert [x.query_id for x in replies] == ['b', 'x', 'y', 'a']
    assert [x.text for x in replies] == ['by both', 'by query', '', 'by id']
    assert [bool(x.failure) for x in replies] == [False, False, True, False]
    assert str(path) in replies[2].failure
    assert all(x.finished and not x.refused for x in replies if not x.failure)


def test_missing_rows_are_counted(tmp_path):
    path = _file(tmp_path, {'query_id': 'a', 'rewrite': 'Aye.'})
    requests = [_request('a'), _request('b'), _request('c')]
    kept, counts = rewrite_log.rewrite_all(
        rewrite_file.FileRewriter(path), requests, tmp_path / 'log.jsonl'
    )
    assert kept == {'a': 'Aye.'}
    assert (counts.kept, counts.failed) == (1, 2)
    assert f'2 without a reply ({path} has no such row)' in counts.summary()


def test_a_log_of_replies_is_such_a_file(tmp_path):
    path = _file(
        tmp_path,
        {'query_id': 'a', 'rewrite': 'Aye.'},
        {'query_id': 'b', 'rewrite': 'Ay', 'finished': False},
        {'query_id': 'c', 'rewrite': '', 'refused': True},
    )
    requests = [_request('a'), _request('b'), _request('c')]
    first, again = tmp_path / 'first.jsonl', tmp_path / 'again.jsonl'
    made = rewrite_file.FileRewriter(path)
    kept, counts = rewrite_log.rewrite_all(made, requests, first)
    assert counts.dropped == {'truncated': 1, 'refusal': 1}
    copied = rewrite_log.rewrite_all(rewrite_file.FileRewriter(first), requests, again)
    assert copied == (kept, counts)


def test_the_same_row_twice_is_one(tmp_path):
    row = {'query_id': 'a', 'rewrite': 'Aye.'}
    path = _file(tmp_path, row, row, {'query': 'Q', 'rewrite': 'x'})
    (reply,) = rewrite_file.FileRewriter(path).rewrite([_request('a')])
    assert reply.text == 'Aye.'


@pytest.mark.parametrize(
    ('first', 'second', 'part'),
    [
        ({'query_id': 'a'}, {'query_id': 'a'}, "query_id 'a'"),
        ({'query': 'How?'}, {'query': ' How?'}, "query ' How?'"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path, first, second, part):
    path = _file(tmp_path, first | {'rewrite': 'Aye.'}, second | {'rewrite': 'Nay.'})
    with pytest.raises(errors.InputError) as caught:
        rewrite_file.FileRewriter(path)
    message = str(caught.value)
    assert message.startswith(f'{path}:2: ')
    assert f'{path}:1' in message
    assert part in message


def test_the_same_query_under_two_ids_is_two_rows(tmp_path):
    path = _file(
        tmp_path,
        {'query_id': 'a', 'query': 'How?', 'rewrite': 'Aye.'},
        {'query_id': 'b', 'query': 'How?', 'rewrite': 'Nay.'},
    )
    requests = [_request('a', 'How?'), _request('b', 'How?')]
    replies = rewrite_file.FileRewriter(path).rewrite(requests)
    assert [x.text for x in replies] == ['Aye.', 'Nay.']


def test_an_id_that_means_another_query_is_refused(tmp_path):
    """Ids are often row numbers: other data under them would pair silently."""
    row = {'query_id': 'a:1', 'query': 'How deep?', 'rewrite': 'Aye.'}
    made = rewrite_file.FileRewriter(_file(tmp_path, row))
    with pytest.raises(errors.InputError, match=r'made\.jsonl:1: .*another query'):
        list(made.rewrite([_request('a:1', 'How far?')]))


@pytest.mark.parametrize(
    ('row', 'part'),
    [
        ('{"query_id": ', 'invalid JSON'),
        ([], 'no rewrite; wanted'),
        ('"text"', 'no rewrite; wanted'),
        ({'query_id': 'b'}, '"rewrite" is missing'),
        ({'query_id': 'b', 'rewrite': None}, '"rewrite" is missing'),
        ({'query_id': 'b', 'rewrite': 7}, '"rewrite" is no text'),
        ({'query_id': 'b', 'rewrite': '\ud800'}, '"rewrite" is no text'),
        ({'query_id': 7, 'rewrite': 'x'}, '"query_id" is no text'),
        ({'query': ['Q'], 'rewrite': 'x'}, '"query" is no text'),
        ({'rewrite': 'x'}, 'neither "query_id" nor "query"'),
        ({'query_id': '', 'query': ' ', 'rewrite': 'x'}, 'neither "query_id" nor'),
        ({'query_id': 'b', 'rewrite': 'x', 'finished': 1}, '"finished" is neither'),
        ({'query_id': 'b', 'rewrite': 'x', 'refused': 'no'}, '"refused" is neither'),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, row, part):
    good = {'query_id': 'a', 'rewrite': 'Aye.'}
    path = _file(tmp_path, good, '', row, good)
    with pytest.raises(errors.InputError) as caught:
        rewrite_file.FileRewriter(path)
    message = str(caught.value)
    assert '\n' not in message
    assert message.startswith(f'{path}:3: ')
    assert part in message


def test_unusable_files(tmp_path):
    for path, part in (
        (tmp_path / 'none.jsonl', 'does not exist'),
        (tmp_path, 'no regular file'),
        (_file(tmp_path, '', ' '), 'no rows'),
    ):
        with pytest.raises(errors.InputError, match=part) as caught:
            rewrite_file.FileRewriter(path)
        assert str(path) in str(caught.value)


def test_identity_is_the_content(tmp_path):
    def identity(*rows: Any) -> str:
        return rewrite_file.FileRewriter(_file(tmp_path, *rows)).identity

    rows = [{'query_id': 'a', 'rewrite': 'x'}, {'query_id': 'b', 'rewrite': 'y'}]
    want = identity(*rows)
    assert identity('', rows[0] | {'note': 1}, rows[1]) == want
    assert identity(rows[0], rows[1] | {'rewrite': 'z'}) != want
    assert identity(rows[0], rows[1] | {'finished': False}) != want
    assert identity(rows[0], {'query': 'b', 'rewrite': 'y'}) != want
    assert identity(rows[0]) != want
