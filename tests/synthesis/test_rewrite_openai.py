"""Rewriting through a server that fails in every way that servers fail."""

import asyncio
from collections.abc import Iterator
import email.utils
import itertools
import json
import threading
import time

import pytest

from ppjax.base import errors
from ppjax.synthesis import rewrite_log, rewrite_openai, rewriting
from tests.synthesis import rewrite_server


@pytest.fixture
def server() -> Iterator[rewrite_server.Server]:
    made = rewrite_server.Server()
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rewrite_server.ENV, rewrite_server.KEY)


# --- A server in order --------------------------------------------------------


@pytest.mark.parametrize(
    ('suffix', 'path'),
    [
        ('', '/v1/chat/completions'),
        ('/', '/v1/chat/completions'),
        ('/v1', '/v1/chat/completions'),
        ('/v1/', '/v1/chat/completions'),
        ('/v1/chat/completions', '/v1/chat/completions'),
        ('/gateway', '/gateway/v1/chat/completions'),
        ('/api/v4', '/api/v4/chat/completions'),
        ('/v1beta/openai', '/v1beta/openai/chat/completions'),
    ],
)
def test_addresses_with_and_without_version(server, suffix, path):
    rewriter = rewrite_openai.OpenAIRewriter(server.url + suffix, 'tiny')
    assert rewrite_server.texts(
        rewriter.rewrite(rewrite_server.requests(1))
    ) == rewrite_server.good(1)
    assert server.paths == {path}


def test_what_is_sent(server):
    messages = ({'role': 'system', 'content': 'Be.'}, {'role': 'user', 'content': 'é?'})
    rewriter = rewrite_server.rewriter(server, max_tokens=77, temperature=0.3)
    replies = list(rewriter.rewrite([rewriting.Request('a', 'é?', messages)]))
    assert replies == [rewriting.Reply('a', 'Arr, é?', True)]
    assert server.bodies == [
        {
            'model': 'tiny',
            'messages': list(messages),
            'max_tokens': 77,
            'temperature': 0.3,
            'stream': False,
        }
    ]
    assert server.headers[0]['Authorization'] == f'Bearer {rewrite_server.KEY}'


def test_nothing_is_sent_that_was_not_given(server, monkeypatch):
    monkeypatch.delenv(rewrite_server.ENV)
    list(
        rewrite_server.rewriter(server, temperature=None).rewrite(
            rewrite_server.requests(1)
        )
    )
    assert 'temperature' not in server.bodies[0]
    assert 'Authorization' not in server.headers[0]


def test_requests_run_side_by_side_up_to_the_bound(server):
    meeting = threading.Barrier(3)

    def together(query, number):
        meeting.wait(timeout=20)
        time.sleep(0.05)  # For a fourth to be seen.

    server.plan = together
    replies = rewrite_server.texts(
        rewrite_server.rewriter(server, concurrency=3).rewrite(
            rewrite_server.requests(*range(15))
        )
    )
    assert replies == rewrite_server.good(*range(15))
    assert server.busiest == 3


def test_replies_come_as_they_are_done(server):
    server.plan = lambda query, number: rewrite_server.HANG if query == 'slow' else None
    rewriter = rewrite_server.rewriter(server, concurrency=2, timeout=300.0)
    replies = rewriter.rewrite(rewrite_server.requests('slow', 1, 2, 3))
    start = time.monotonic()
    assert [next(replies).query_id for _ in range(3)] == ['id-1', 'id-2', 'id-3']
    replies.close()
    assert time.monotonic() - start < 15


def test_no_more_is_asked_once_the_caller_stops(server):
    server.plan = lambda query, number: rewrite_server.Answer(
        rewrite_server.completion('Arr'), delay=0.02
    )
    replies = rewrite_server.rewriter(server, concurrency=1).rewrite(
        rewrite_server.requests(*range(1000))
    )
    next(replies)
    replies.close()
    asked = server.asked.total()
    assert asked < 1000
    assert not [x for x in threading.enumerate() if x.name == 'chat_api']
    time.sleep(0.1)
    assert server.asked.total() <= asked + 1  # One may have been on its way.


def test_it_runs_inside_an_event_loop_as_in_a_notebook(server):
    async def cell() -> dict[str, str]:
        return rewrite_server.texts(
            rewrite_server.rewriter(server).rewrite(rewrite_server.requests(1, 2))
        )

    assert asyncio.run(cell()) == rewrite_server.good(1, 2)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    assert rewrite_server.texts(
        rewrite_server.rewriter(server).rewrite(rewrite_server.requests(1))
    ) == rewrite_server.good(1)


@pytest.mark.parametrize(
    ('body', 'text', 'finished', 'refused'),
    [
        (rewrite_server.completion('So.'), 'So.', True, False),
        (rewrite_server.completion('So.', None), 'So.', True, False),
        (rewrite_server.completion('So', 'length'), 'So', False, False),
        (rewrite_server.completion(None), '', True, False),
        (rewrite_server.completion(None, 'length'), '', False, False),
        (rewrite_server.completion('So', 'content_filter'), 'So', True, True),
        (rewrite_server.completion(None, 'content_filter'), '', True, True),
        (rewrite_server.completion(None, refusal='I will not.'), '', True, True),
        (
            rewrite_server.completion(
                [{'type': 'text', 'text': 'S'}, {'text': 'o.'}, 3]
            ),
            'So.',
            True,
            False,
        ),
        (rewrite_server.completion(7), '', True, False),
        (rewrite_server.completion('', reasoning='Hm.'), '<think>', True, False),
    ],
)
def test_replies_of_all_forms(server, body, text, finished, refused):
    server.plan = lambda query, number: rewrite_server.Answer(body)
    assert list(
        rewrite_server.rewriter(server).rewrite(rewrite_server.requests(1))
    ) == [rewriting.Reply('id-1', text, finished, refused)]


# --- Faults that pass ---------------------------------------------------------


@pytest.mark.parametrize(
    'fault',
    [
        *(
            rewrite_server.Answer(rewrite_server.PLAIN, status)
            for status in (408, 409, 425, 429, 500, 502, 503, 529)
        ),
        rewrite_server.Answer(rewrite_server.PLAIN, 429, Retry_After='soon'),
        rewrite_server.Answer('{"choices": [', 200),
        rewrite_server.Answer('<html>Bad gateway</html>', 200),
        rewrite_server.Answer('', 200),
        rewrite_server.Answer('[]', 200),
        rewrite_server.Answer('{}', 200),
        rewrite_server.Answer('{"choices": []}', 200),
        rewrite_server.Answer('{"choices": null}', 200),
        rewrite_server.Answer('{"choices": [{"message": null}]}', 200),
        rewrite_server.Answer('{"error": {"message": "overloaded", "code": 529}}', 200),
        rewrite_server.Answer('[' * 50_000, 200),
        rewrite_server.DROP,
    ],
)
def test_a_fault_that_passes_is_asked_again(server, fault):
    server.plan = lambda query, number: fault if number == 1 else None
    assert rewrite_server.texts(
        rewrite_server.rewriter(server).rewrite(rewrite_server.requests(1, 2, 3))
    ) == rewrite_server.good(1, 2, 3)
    assert server.asked == {'1': 2, '2': 2, '3': 2}


@pytest.mark.parametrize('fault', [rewrite_server.HANG, rewrite_server.TRICKLE])
def test_a_request_that_hangs_is_given_up_and_asked_again(server, fault):
    server.plan = lambda query, number: fault if number == 1 else None
    start = time.monotonic()
    rewriter = rewrite_server.rewriter(server, timeout=0.4, retries=20)
    assert rewrite_server.texts(
        rewriter.rewrite(rewrite_server.requests(1))
    ) == rewrite_server.good(1)
    assert 0.4 <= time.monotonic() - start < 15


@pytest.mark.parametrize('form', ['seconds', 'date'])
def test_retry_after_is_honoured(server, form):
    def later(query, number):
        # Dates have whole seconds, so this one is 1 to 2 s ahead.
        date = email.utils.formatdate(time.time() + 2, usegmt=True)
        wait = '0.7' if form == 'seconds' else date
        return (
            rewrite_server.Answer(rewrite_server.PLAIN, 429, Retry_After=wait)
            if number == 1
            else None
        )

    server.plan = later
    rewriter = rewrite_server.rewriter(server, longest_wait=5.0)
    assert rewrite_server.texts(
        rewriter.rewrite(rewrite_server.requests(1))
    ) == rewrite_server.good(1)
    first, second = server.times['1']
    assert second - first >= 0.65


def test_retry_after_is_capped(server):
    server.plan = lambda query, number: (
        rewrite_server.Answer(rewrite_server.PLAIN, 429, Retry_After='30')
        if number == 1
        else None
    )
    start = time.monotonic()
    assert rewrite_server.texts(
        rewrite_server.rewriter(server, longest_wait=0.3).rewrite(
            rewrite_server.requests(1)
        )
    ) == rewrite_server.good(1)
    assert 0.25 < time.monotonic() - start < 20


def test_waits_grow_and_are_bounded(server):
    server.plan = lambda query, number: (
        rewrite_server.Answer(rewrite_server.PLAIN, 500) if number < 9 else None
    )
    rewriter = rewrite_server.rewriter(
        server, backoff=0.05, longest_wait=0.3, retries=8
    )
    assert rewrite_server.texts(
        rewriter.rewrite(rewrite_server.requests(1))
    ) == rewrite_server.good(1)
    times = server.times['1']
    waits = [after - before for before, after in itertools.pairwise(times)]
    for wait, least in zip(waits, (0.05, 0.1, 0.2, 0.3), strict=False):
        assert wait > 0.95 * least
    # Unbounded, the last three would be 1.6, 3.2 and 6.4 s at least.
    assert min(waits[5:]) < 1.5


def test_a_row_whose_retries_are_spent_is_asked_by_the_next_run(server, tmp_path):
    server.plan = lambda query, number: (
        rewrite_server.Answer(rewrite_server.PLAIN, 500)
        if query == '2' and number <= 5
        else None
    )
    log = tmp_path / 'log.jsonl'
    rewriter = rewrite_server.rewriter(server)
    kept, counts = rewrite_log.rewrite_all(
        rewriter, rewrite_server.requests(1, 2, 3), log
    )
    assert kept == rewrite_server.good(1, 3)
    assert (counts.kept, counts.failed) == (2, 1)
    assert 'HTTP 500: said so' in counts.summary()
    assert server.asked == {'1': 1, '2': 5, '3': 1}
    kept, counts = rewrite_log.rewrite_all(
        rewriter, rewrite_server.requests(1, 2, 3), log
    )
    assert kept == rewrite_server.good(1, 2, 3)
    assert counts.failed == 0
    assert server.asked == {'1': 1, '2': 6, '3': 1}


def test_rows_that_crash_the_server_do_not_stop_the_others(server):
    """More of them in a row than the client's patience, and the others last."""
    server.plan = lambda query, number: (
        rewrite_server.Answer(rewrite_server.PLAIN, 500)
        if query.startswith('bad')
        else None
    )
    bad = [f'bad{x}' for x in range(12)]
    rewriter = rewrite_server.rewriter(server, retries=1, concurrency=2)
    replies = rewrite_server.texts(
        rewriter.rewrite(rewrite_server.requests(*bad, 1, 2))
    )
    assert {x: replies[x] for x in ('id-1', 'id-2')} == rewrite_server.good(1, 2)
    assert all(replies[f'id-{x}'].startswith('failed: HTTP 500') for x in bad)
    # The question after each five of them, and not after every one.
    assert 1 <= server.asked['Hello.'] <= 3


def test_a_server_that_only_fails_stops_the_run(server):
    server.plan = lambda query, number: rewrite_server.Answer(rewrite_server.PLAIN, 503)
    rewriter = rewrite_server.rewriter(server, retries=1, concurrency=2)
    message = rewrite_server.refused(rewriter, *range(100))
    assert 'stays away' in message
    assert 'HTTP 503: said so' in message
    assert 'the same command goes on' in message
    assert server.asked.total() < 20
    asked = {x['messages'][0]['content']: x['max_tokens'] for x in server.bodies}
    assert asked['Hello.'] == 1
    assert asked['0'] == 1024


def test_nobody_listens(server):
    server.stop()
    told: list[str] = []
    message = rewrite_server.refused(
        rewrite_server.rewriter(server, notify=told.append), *range(50)
    )
    assert f'{server.url}/v1 stays away' in message
    assert 'Connection refused' in message
    assert len(told) == 1  # Not one for every row and try.
    assert 'Connection refused' in told[0]


def test_an_unknown_host_is_named(server):
    rewriter = rewrite_openai.OpenAIRewriter(
        'http://nowhere.invalid', 'tiny', retries=0, notify=lambda line: None
    )
    assert 'http://nowhere.invalid/v1 stays away' in rewrite_server.refused(
        rewriter, *range(8)
    )


def test_a_server_that_comes_late_is_waited_for(server):
    server.stop()
    timer = threading.Timer(0.5, server.start)
    timer.start()
    rewriter = rewrite_server.rewriter(server, retries=60)
    assert rewrite_server.texts(
        rewriter.rewrite(rewrite_server.requests(*range(20)))
    ) == rewrite_server.good(*range(20))
    timer.join()


def test_a_server_killed_and_restarted_loses_and_doubles_nothing(server, tmp_path):
    kills = [20, 45]

    def plan(query, number):
        if kills and server.answered.total() >= kills[0]:
            kills.pop(0)
            threading.Thread(target=restart).start()
        return None if number % 3 else rewrite_server.Answer(rewrite_server.PLAIN, 500)

    def restart() -> None:
        server.stop()
        time.sleep(0.3)
        server.start()

    server.plan = plan
    log = tmp_path / 'log.jsonl'
    rewriter = rewrite_server.rewriter(server, retries=60)
    kept, counts = rewrite_log.rewrite_all(
        rewriter, rewrite_server.requests(*range(80)), log
    )
    assert not kills
    assert kept == rewrite_server.good(*range(80))
    assert sorted(rewrite_server.logged(log)) == sorted(kept)
    # What the server answered, the client logged, and asked for no more.
    assert server.answered == dict.fromkeys(map(str, range(80)), 1)
    assert counts.failed == 0


# --- Faults that stay ---------------------------------------------------------


@pytest.mark.parametrize('status', [301, 400, 401, 403, 404, 405, 422])
@pytest.mark.parametrize(
    'body',
    [
        json.dumps(
            {'error': {'message': f'No:\n {rewrite_server.KEY} is bad.', 'code': None}}
        ),
        json.dumps({'error': f'No: {rewrite_server.KEY} is bad.'}),
        json.dumps({'detail': f'No: {rewrite_server.KEY} is bad.'}),
        json.dumps({'message': f'No: {rewrite_server.KEY} is bad.', 'code': 7}),
        f'No: {rewrite_server.KEY} is bad.',
    ],
)
def test_a_refusal_of_the_run_stops_it_at_once(server, status, body):
    server.plan = lambda query, number: rewrite_server.Answer(
        body, status, Location='/v2'
    )
    message = rewrite_server.refused(
        rewrite_server.rewriter(server, concurrency=2), *range(50)
    )
    assert f'{server.url}/v1/chat/completions answered HTTP {status}' in message
    assert 'No: [key] is bad.' in message
    assert server.asked.total() <= 2


def test_the_message_says_what_to_do(server):
    for status, part in (
        (401, rewrite_server.ENV),
        (403, rewrite_server.ENV),
        (404, "'tiny'"),
        (400, "'id-1'"),
    ):
        server.plan = lambda query, number, status=status: rewrite_server.Answer(
            rewrite_server.PLAIN, status
        )
        assert part in rewrite_server.refused(rewrite_server.rewriter(server), 1)


def test_long_messages_are_cut_and_cannot_leak_half_a_key(server):
    for room in range(280, 310):
        body = json.dumps({'detail': 'x' * room + rewrite_server.KEY + 'y' * 5000})
        server.plan = lambda query, number, body=body: rewrite_server.Answer(body, 400)
        message = rewrite_server.refused(rewrite_server.rewriter(server), 1)
        assert len(message) < 600
        assert rewrite_server.KEY[:6] not in message


def test_replies_before_a_stop_are_kept(server, tmp_path):
    server.plan = lambda query, number: (
        rewrite_server.Answer(rewrite_server.PLAIN, 401) if query == '9' else None
    )
    log = tmp_path / 'log.jsonl'
    rewriter = rewrite_server.rewriter(server, concurrency=1)
    with pytest.raises(errors.InputError, match='HTTP 401'):
        rewrite_log.rewrite_all(rewriter, rewrite_server.requests(1, 2, 9, 4), log)
    assert rewrite_server.logged(log) == ['id-1', 'id-2']
    server.plan = lambda query, number: None
    kept, _ = rewrite_log.rewrite_all(
        rewriter, rewrite_server.requests(1, 2, 9, 4), log
    )
    assert kept == rewrite_server.good(1, 2, 9, 4)
    assert server.asked == {'1': 1, '2': 1, '9': 2, '4': 1}


@pytest.mark.parametrize(
    ('status', 'error'),
    [
        (400, {'message': 'Too many.', 'code': 'context_length_exceeded'}),
        (400, {'message': "This model's maximum context length is 64 tokens."}),
        (
            400,
            {'message': 'Too big.', 'type': 'exceed_context_size_error', 'code': 400},
        ),
        (400, {'message': 'Filtered.', 'code': 'content_filter'}),
        (413, {'message': 'Too large.'}),
    ],
)
def test_a_row_that_the_server_never_takes_fails_alone(server, status, error):
    server.plan = lambda query, number: (
        rewrite_server.Answer(json.dumps({'error': error}), status)
        if query != '8'
        else None
    )
    replies = rewrite_server.texts(
        rewrite_server.rewriter(server, concurrency=1).rewrite(
            rewrite_server.requests(*range(9))
        )
    )
    assert replies.pop('id-8') == 'Arr, 8'
    assert set(replies.values()) == {f'failed: HTTP {status}: {error["message"]}'}
    assert set(server.asked.values()) == {1}


def test_the_newer_name_of_the_limit_is_taken_up(server):
    def plan(query, number):
        if 'max_tokens' not in server.bodies[-1]:
            return None
        said = "'max_tokens' is not supported; use 'max_completion_tokens' instead."
        return rewrite_server.Answer(json.dumps({'error': {'message': said}}), 400)

    server.plan = plan
    rewriter = rewrite_server.rewriter(server, max_tokens=33, concurrency=1)
    assert rewrite_server.texts(
        rewriter.rewrite(rewrite_server.requests(1, 2))
    ) == rewrite_server.good(1, 2)
    assert server.asked == {'1': 2, '2': 1}
    assert server.bodies[-1]['max_completion_tokens'] == 33
