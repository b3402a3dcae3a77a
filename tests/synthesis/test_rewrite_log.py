"""A run of rewriting: each reply logged once, judged, counted, never asked again."""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.synthesis import rewrite_gates, rewrite_log, rewriting


class _Scripted:
    """A backend that says what it is told to, and notes what it was asked."""

    def __init__(self, *replies: rewriting.Reply, identity: str = 'scripted'):
        self.replies = {reply.query_id: reply for reply in replies}
        self.identity = identity
        self.asked: list[str] = []
        self.closed = False

    def rewrite(
        self, requests: Sequence[rewriting.Request]
    ) -> Iterator[rewriting.Reply]:
        try:
            for request in reversed(requests):
                self.asked.append(request.query_id)
                if request.query_id in self.replies:
                    yield self.replies[request.query_id]
        finally:
            self.closed = True


def _request(name: str, prompt: str = 'How?', reference: str = '') -> rewriting.Request:
    messages = ({'role': 'user', 'content': prompt},)
    return rewriting.Request(name, prompt, messages, reference)


def _says(name: str, text: str = 'Aye.', finished: bool = True) -> rewriting.Reply:
    return rewriting.Reply(name, text, finished)


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'calibration' / 'rewrites.jsonl'


def _rows(log: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text('utf-8').splitlines()]


def test_every_reply_is_logged_and_good_ones_returned_in_order(log):
    backend = _Scripted(
        _says('a', '“Aye.”'),
        _says('b', 'The tide turns.'),
        rewriting.Reply('c', 'I', False),
        rewriting.Reply('d', '', False, failure='HTTP 500'),
        _says('e', '<think>Hm.</think>So.'),
        rewriting.Reply('f', '', True, refused=True),
        _says('g', 'Long, long, long'),
    )
    requests = [_request(x) for x in 'acdefgh']
    requests.insert(1, _request('b', reference='The tide turns.'))
    kept, counts = rewrite_log.rewrite_all(
        backend, requests, log, gates=rewrite_gates.Gates(max_length=8)
    )
    assert list(kept.items()) == [('a', 'Aye.'), ('e', 'So.')]
    assert counts == rewrite_log.RewriteCounts(
        requests=8,
        reused=0,
        kept=2,
        dropped={'copy': 1, 'truncated': 1, 'refusal': 1, 'too_long': 1},
        failed=2,
        failure='HTTP 500',
        unquoted=1,
        reasoned=1,
    )
    assert counts.kept + sum(counts.dropped.values()) + counts.failed == 8
    assert counts.summary() == (
        '2 of 8 rewrites kept; 4 dropped (1 refusal, 1 truncated, 1 copy, 1 too long); '
        '2 without a reply (HTTP 500); quotation marks taken off 1; reasoning taken '
        'off 1.'
    )
    rows = {row['query_id']: row for row in _rows(log)}
    assert list(rows) == ['g', 'f', 'e', 'c', 'b', 'a']
    assert rows['a'] == {
        'query_id': 'a',
        'request_sha256': rows['a']['request_sha256'],
        'rewrite': '“Aye.”',
        'finished': True,
        'refused': False,
        'verdict': 'kept',
    }
    assert len(rows['a']['request_sha256']) == 64
    assert (rows['c']['finished'], rows['c']['verdict']) == (False, 'truncated')
    assert (rows['f']['refused'], rows['f']['verdict']) == (True, 'refusal')


def test_what_is_logged_is_not_asked_again(log):
    requests = [_request(x) for x in 'abcd']
    backend = _Scripted(_says('a'), _says('b', ''), _says('d', 'Nay.'))
    first = rewrite_log.rewrite_all(backend, requests, log)
    assert sorted(backend.asked) == ['a', 'b', 'c', 'd']
    before = log.read_bytes()
    again = _Scripted(_says('c', 'So.'), _says('a', 'Other.'))
    kept, counts = rewrite_log.rewrite_all(again, requests, log)
    assert again.asked == ['c']
    assert kept == first[0] | {'c': 'So.'}
    assert list(kept) == ['a', 'c', 'd']
    assert (counts.reused, counts.kept, counts.failed) == (3, 3, 0)
    assert counts.dropped == {'empty': 1}
    assert '3 read from the log' in counts.summary()
    assert log.read_bytes().startswith(before)
    idle = _Scripted()
    assert rewrite_log.rewrite_all(idle, requests, log)[0] == kept
    assert not idle.asked


def test_a_changed_prompt_or_model_is_asked_anew(log):
    rewrite_log.rewrite_all(_Scripted(_says('a'), _says('b')), [_request('a')], log)
    backend = _Scripted(_says('a', 'Other.'))
    kept, _ = rewrite_log.rewrite_all(backend, [_request('a', 'Why?')], log)
    assert kept == {'a': 'Other.'}
    backend = _Scripted(_says('a', 'Third.'), identity='another')
    kept, _ = rewrite_log.rewrite_all(backend, [_request('a')], log)
    assert kept == {'a': 'Third.'}
    # All three are on record, and each is found again.
    for identity, prompt, text in (
        ('scripted', 'How?', 'Aye.'),
        ('scripted', 'Why?', 'Other.'),
        ('another', 'How?', 'Third.'),
    ):
        idle = _Scripted(identity=identity)
        kept, _ = rewrite_log.rewrite_all(idle, [_request('a', prompt)], log)
        assert kept == {'a': text}
        assert not idle.asked


def test_logged_replies_are_judged_by_the_gates_of_this_run(log):
    requests = [_request('a'), _request('b')]
    backend = _Scripted(_says('a', 'Aye, aye.'), _says('b'))
    short = rewrite_gates.Gates(max_length=4)
    kept, _ = rewrite_log.rewrite_all(backend, requests, log, gates=short)
    assert kept == {'b': 'Aye.'}
    kept, counts = rewrite_log.rewrite_all(_Scripted(), requests, log)
    assert kept == {'a': 'Aye, aye.', 'b': 'Aye.'}
    assert counts.reused == 2


def test_a_torn_last_line_is_asked_again(log):
    requests = [_request('a'), _request('b')]
    rewrite_log.rewrite_all(_Scripted(_says('a'), _says('b')), requests, log)
    log.write_bytes(log.read_bytes()[:-9])
    backend = _Scripted(_says('a', 'Again.'), _says('b', 'Again.'))
    kept, _ = rewrite_log.rewrite_all(backend, requests, log)
    assert backend.asked == ['a']  # Replies come last to first.
    assert kept == {'a': 'Again.', 'b': 'Aye.'}
    assert [row['query_id'] for row in _rows(log)] == ['b', 'a']


def test_each_reply_is_on_disk_before_the_next_is_taken(log, monkeypatch):
    synced: list[int] = []
    fsync = os.fsync

    def count(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(len(_rows(log)))

    monkeypatch.setattr(os, 'fsync', count)
    seen: list[int] = []

    class Backend(_Scripted):
        def rewrite(self, requests):
            for request in requests:
                seen.append(len(_rows(log)))
                yield _says(request.query_id)

    rewrite_log.rewrite_all(Backend(), [_request(x) for x in 'abc'], log)
    assert seen == [0, 1, 2]
    assert synced == [1, 2, 3]


def test_progress_counts_all_requests(log):
    requests = [_request(x) for x in 'abcd']
    rewrite_log.rewrite_all(_Scripted(_says('a')), requests, log)
    calls: list[tuple[int, int]] = []
    failed = rewriting.Reply('b', '', False, failure='x')
    rewrite_log.rewrite_all(
        _Scripted(failed, _says('c'), _says('d')),
        requests,
        log,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    'error', [errors.InputError('disk'), KeyboardInterrupt(), RuntimeError('bug')]
)
def test_the_backend_is_closed_when_the_run_ends_early(log, error):
    backend = _Scripted(*(_says(x) for x in 'abc'))

    def fail(done: int, total: int) -> None:
        if done == 2:
            raise error

    with pytest.raises(type(error)) as caught:
        rewrite_log.rewrite_all(
            backend, [_request(x) for x in 'abc'], log, progress=fail
        )
    assert caught.value is error
    assert backend.closed
    assert backend.asked == ['c', 'b']
    assert [row['query_id'] for row in _rows(log)] == ['c', 'b']


@pytest.mark.parametrize(
    ('reply', 'count', 'cause'),
    [
        (rewriting.Reply('', 'A', False), '3 truncated', 'allow more tokens'),
        (rewriting.Reply('', '', True, refused=True), '3 refusal', 'another one'),
        (_says('', 'Here is the rewrite: A'), '3 preamble', 'larger'),
        (_says('', '<think>So'), '3 reasoning', "model's reasoning off"),
        (_says('', ''), '3 empty', 'chat template'),
        (_says('', 'A' * 99), '3 too long', 'longer rewrites'),
    ],
)
def test_nothing_kept_says_why(log, reply, count, cause):
    backend = _Scripted(*(dataclasses.replace(reply, query_id=x) for x in 'abc'))
    with pytest.raises(errors.InputError) as caught:
        rewrite_log.rewrite_all(
            backend,
            [_request(x) for x in 'abc'],
            log,
            gates=rewrite_gates.Gates(max_length=50),
        )
    message = str(caught.value)
    assert '\n' not in message
    assert f'0 of 3 rewrites kept; 3 dropped ({count})' in message
    assert cause in message
    assert str(log) in message
    assert len(_rows(log)) == 3


def test_nothing_answered_says_why(log):
    failed = [rewriting.Reply(x, '', False, failure='HTTP 500: no') for x in 'abc']
    with pytest.raises(errors.InputError, match=r'3 without a reply \(HTTP 500: no\)'):
        rewrite_log.rewrite_all(_Scripted(*failed), [_request(x) for x in 'abc'], log)
    with pytest.raises(errors.InputError, match='the backend gave none'):
        rewrite_log.rewrite_all(_Scripted(), [_request('a')], log)
    with pytest.raises(errors.InputError, match='nothing to rewrite'):
        rewrite_log.rewrite_all(_Scripted(), [], log)
    assert _rows(log) == []


@pytest.mark.parametrize('verdict', list(rewrite_gates.VERDICTS))
def test_the_cause_of_most_is_told(log, monkeypatch, verdict):
    judged = rewrite_gates.Judged('Aye.', verdict)
    monkeypatch.setattr(rewrite_gates, 'judge', lambda *_: judged)
    cause = re.escape(rewrite_gates.VERDICTS[verdict])
    with pytest.raises(errors.InputError, match=f'Likely cause of most: {cause}'):
        rewrite_log.rewrite_all(_Scripted(_says('a')), [_request('a')], log)


def test_half_characters_do_not_break_the_log(log):
    backend = _Scripted(_says('a', 'Aye \ud83d'), _says('b'))
    kept, counts = rewrite_log.rewrite_all(backend, [_request('a'), _request('b')], log)
    assert kept == {'b': 'Aye.'}
    assert counts.dropped == {'garbled': 1}
    assert _rows(log)[1]['rewrite'] == 'Aye \ufffd'


def test_lines_of_all_kinds_stay_one_row(log):
    text = 'Aye\r\n\u2028\u0085 "so" 🚀'
    rewrite_log.rewrite_all(_Scripted(_says('a', text)), [_request('a')], log)
    kept, counts = rewrite_log.rewrite_all(_Scripted(), [_request('a')], log)
    assert kept == {'a': text}
    assert counts.reused == 1


_ROW = {
    'query_id': 'a',
    'request_sha256': '1',
    'rewrite': 'x',
    'finished': True,
    'refused': False,
}


@pytest.mark.parametrize(
    'row',
    [
        '7',
        '[]',
        '"x"',
        '{}',
        '{"query_id": "a", "rewrite": "x"}',
        json.dumps(_ROW | {'request_sha256': 1}),
        json.dumps(_ROW | {'rewrite': None}),
        json.dumps(_ROW | {'query_id': ['a']}),
        json.dumps(_ROW | {'finished': 1}),
        json.dumps(_ROW | {'refused': None}),
    ],
)
def test_a_file_that_is_no_log_is_refused_and_left_alone(log, row):
    rewrite_log.rewrite_all(_Scripted(_says('a')), [_request('a')], log)
    with log.open('a') as file:
        file.write(row + '\n')
    before = log.read_bytes()
    with pytest.raises(errors.InputError, match=r'rewrites\.jsonl:2: no row'):
        rewrite_log.rewrite_all(_Scripted(_says('b')), [_request('b')], log)
    assert log.read_bytes() == before


def test_two_requests_of_one_name_are_a_mistake(log):
    with pytest.raises(ValueError, match='same query_id'):
        rewrite_log.rewrite_all(_Scripted(), [_request('a'), _request('a', 'x')], log)


def test_a_model_that_only_reasons_is_not_asked_to_the_end(log):
    replies = [_says(str(x), '<think>', False) for x in range(100)]
    backend = _Scripted(*replies)
    with pytest.raises(errors.InputError) as caught:
        rewrite_log.rewrite_all(backend, [_request(str(x)) for x in range(100)], log)
    assert '0 of 16 rewrites kept' in str(caught.value)
    assert "turn the model's reasoning off" in str(caught.value)
    assert len(backend.asked) == len(_rows(log)) == 16
    assert backend.closed


def test_cut_turns_are_counted(log):
    _, counts = rewrite_log.rewrite_all(
        _Scripted(_says('a', 'Aye.<|im_end|>'), _says('b', '<|user|>Aye.')),
        [_request('a'), _request('b')],
        log,
    )
    assert (counts.kept, counts.cut, counts.dropped) == (1, 1, {'markup': 1})
    assert 'turn markers cut off 1' in counts.summary()
