"""What a key and a killed client leave behind; settings that are none."""

from collections.abc import Callable, Iterator
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.synthesis import rewrite_log, rewrite_openai
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


def test_the_key_is_nowhere_but_in_the_header(server, tmp_path, capfd, caplog):
    caplog.set_level(0)
    told: list[str] = []
    said = json.dumps({'error': {'message': f'Slow down, {rewrite_server.KEY}!'}})
    server.plan = lambda query, number: (
        rewrite_server.Answer(said, 429) if number == 1 else None
    )
    rewriter = rewrite_server.rewriter(server, notify=told.append)
    log = tmp_path / 'log.jsonl'
    rewrite_log.rewrite_all(rewriter, rewrite_server.requests(1, 2), log)
    server.plan = lambda query, number: rewrite_server.Answer(said, 500)
    with pytest.raises(errors.InputError) as caught:
        rewrite_log.rewrite_all(
            rewriter, rewrite_server.requests(7), tmp_path / 'other.jsonl'
        )
    assert 'Slow down, [key]!' in told[0]
    assert 'Slow down, [key]!' in str(caught.value)
    chain: BaseException | None = caught.value
    held = [rewriter, vars(rewriter), vars(rewriter._client)]
    seen = [*map(repr, held), *told, *capfd.readouterr()]
    while chain is not None:
        seen += [str(chain), repr(chain)]
        chain = chain.__cause__ or chain.__context__
    seen += [path.read_text() for path in tmp_path.rglob('*')]
    seen += [record.getMessage() for record in caplog.records]
    assert caplog.records  # httpx does log.
    assert not [text for text in seen if rewrite_server.KEY in text]
    assert {x['Authorization'] for x in server.headers} == {
        f'Bearer {rewrite_server.KEY}'
    }


@pytest.mark.parametrize(
    'key',
    [
        f'{rewrite_server.KEY}\nx',
        f'{rewrite_server.KEY} x',
        f'{rewrite_server.KEY}é',
        f'{rewrite_server.KEY}\x01',
    ],
)
def test_a_key_that_is_none_is_refused_and_not_shown(server, monkeypatch, key):
    monkeypatch.setenv(rewrite_server.ENV, key)
    assert rewrite_server.ENV in rewrite_server.refused(
        rewrite_server.rewriter(server), 1
    )
    assert not server.asked


def test_space_around_a_key_is_no_part_of_it(server, monkeypatch):
    monkeypatch.setenv(rewrite_server.ENV, f' {rewrite_server.KEY}\r\n')
    list(rewrite_server.rewriter(server).rewrite(rewrite_server.requests(1)))
    assert server.headers[0]['Authorization'] == f'Bearer {rewrite_server.KEY}'


@pytest.mark.parametrize(
    ('url', 'part'),
    [
        ('', 'http://host:port/v1'),
        ('localhost:8000', 'http://host:port/v1'),
        ('127.0.0.1:8000/v1', ''),
        ('ftp://host/v1', 'http://host:port/v1'),
        ('http://', 'http://host:port/v1'),
        ('http://host:port/v1', 'URL'),
        (f'http://me:{rewrite_server.KEY}@host/v1', 'password'),
        (f'http://host/v1?key={rewrite_server.KEY}', 'query'),
    ],
)
def test_addresses_that_are_none(url, part):
    with pytest.raises(errors.InputError, match='server address') as caught:
        rewrite_openai.OpenAIRewriter(url, 'tiny')
    assert part in str(caught.value)
    assert rewrite_server.KEY not in str(caught.value)


@pytest.mark.parametrize(
    ('settings', 'part'),
    [
        ({'model': ' '}, 'model'),
        ({'concurrency': 0}, 'concurrency must be at least 1, got 0'),
        ({'max_tokens': 0}, 'max_tokens must be at least 1, got 0'),
        ({'retries': -1}, 'retries must be at least 0, got -1'),
        ({'timeout': 0.0}, 'timeout must be above 0, got 0.0'),
        ({'timeout': float('nan')}, 'timeout must be above 0, got nan'),
    ],
)
def test_settings_out_of_range(settings, part):
    with pytest.raises(errors.InputError, match=part):
        rewrite_openai.OpenAIRewriter('http://host', **({'model': 'tiny'} | settings))


def test_identity_is_the_model_and_its_settings_wherever_it_runs():
    def identity(url: str, model: str, **settings: Any) -> str:
        return rewrite_openai.OpenAIRewriter(url, model, **settings).identity

    # What was cut off is asked again with more tokens.
    assert identity('http://a', 'x', max_tokens=9) != identity('http://a', 'x')
    assert identity('http://a', 'x', temperature=0.1) != identity('http://a', 'x')

    assert identity('http://a:1', 'tiny') == identity('http://b:2/v1', 'tiny')
    assert identity('http://a:1', 'tiny') != identity('http://a:1', 'large')


_CLIENT = """
import sys
from ppjax.synthesis import rewrite_log, rewrite_openai, rewriting

url, log, count = sys.argv[1:]
requests = [
    rewriting.Request(f'id-{x}', str(x), ({'role': 'user', 'content': str(x)},))
    for x in range(int(count))
]
rewriter = rewrite_openai.OpenAIRewriter(url, 'tiny', api_key_env='PPJAX_TEST_KEY')
try:
    kept, counts = rewrite_log.rewrite_all(rewriter, requests, log)
except KeyboardInterrupt:
    sys.exit(130)
print(counts.summary())
"""


def _client(
    server: rewrite_server.Server, log: pathlib.Path, count: int
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-c', _CLIENT, server.url, str(log), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_kill_9_loses_no_logged_row_and_asks_none_twice(server, tmp_path):
    log = tmp_path / 'log.jsonl'
    for rows in (15, 35):
        # However slow the killer is, the client cannot be done before.
        server.plan = lambda query, number, rows=rows: (
            rewrite_server.HANG if server.answered.total() > rows + 8 else None
        )
        client = _client(server, log, 60)
        _until(lambda rows=rows: len(rewrite_server.logged(log)) >= rows)
        os.kill(client.pid, signal.SIGKILL)
        assert client.wait() == -signal.SIGKILL
        client.communicate()
    logged = rewrite_server.logged(log)
    assert 35 <= len(logged) < 60
    # As if the last write had been cut short.
    with log.open('ab') as file:
        file.write(b'{"query_id": "id-59", "rewr')
    server.plan = lambda query, number: None
    time.sleep(0.1)  # What was on its way is no longer asked.
    before = server.asked.copy()
    client = _client(server, log, 60)
    out, err = client.communicate(timeout=200)
    assert client.returncode == 0, err
    assert f'60 of 60 rewrites kept; {len(logged)} read from the log' in out
    after = server.asked - before
    assert set(after) == {str(x) for x in range(60) if f'id-{x}' not in logged}
    assert set(after.values()) == {1}
    assert sorted(rewrite_server.logged(log)) == sorted(f'id-{x}' for x in range(60))
    assert rewrite_server.KEY not in out + err + log.read_text()


def test_an_interrupt_ends_it_promptly_and_quietly(server, tmp_path):
    server.plan = lambda query, number: rewrite_server.HANG if int(query) >= 5 else None
    log = tmp_path / 'log.jsonl'
    client = _client(server, log, 60)
    _until(lambda: len(rewrite_server.logged(log)) == 5 and server.asked.total() == 13)
    start = time.monotonic()
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=30)
    assert time.monotonic() - start < 15
    assert client.returncode == 130
    assert (out, err) == ('', '')
    assert sorted(rewrite_server.logged(log)) == [f'id-{x}' for x in range(5)]
