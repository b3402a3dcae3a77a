"""The verb from outside: a server that is killed, refusals, exit codes."""

import concurrent.futures
import itertools
import json
import signal
import socket
import sqlite3

import httpx
import pytest

from ppjax.base import errors
from ppjax.ranking import answer_files, config, dimensions, pipeline, questionnaire
from tests.ranking import samples, serving


@pytest.fixture
def flags(sources, tmp_path):
    """Of a study of four items, and its folder."""
    run = tmp_path / 'run'
    return (f'--answers={sources}', f'--output_dir={run}', '--items=4'), run


def _asked(sources: str) -> questionnaire.Questionnaire:
    return questionnaire.draw(answer_files.read(sources), count=4, seed=0)


def _send(
    url: str, asked: questionnaire.Questionnaire, code: str, number: int, order: str
) -> httpx.Response:
    orders = {name: list(order) for name in dimensions.NAMES}
    return httpx.post(
        f'{url}/p/{code}/{number}',
        json={'study': asked.digest[:16], 'orders': orders},
        timeout=60,
    )


def _begin(url: str, code: str) -> None:
    assert httpx.post(f'{url}/begin', data={'code': code}).status_code == 303


def _rows(run) -> list[tuple]:
    database = sqlite3.connect(run / 'ranking.sqlite')
    try:
        return database.execute(
            'SELECT participant, item, dimension, model, rank FROM rankings'
        ).fetchall()
    finally:
        database.close()


def test_a_server_that_is_killed_between_items_goes_on(flags, sources):
    given, run = flags
    asked = _asked(sources)
    with serving.served(*given, '--port=0') as first:
        _begin(first.url, 'wren')
        for number in (1, 2):
            assert _send(first.url, asked, 'wren', number, 'BCA').status_code == 200
        port = first.port
    # The port is free at once, and nothing of the answers was lost.
    with serving.served(*given, f'--port={port}') as second:
        assert second.port == port
        found = httpx.get(f'{second.url}/p/wren')
        assert found.headers['location'] == '/p/wren/3'
        again = _send(second.url, asked, 'wren', 2, 'ABC').json()
        assert again == {'next': '/p/wren/3', 'replaced': True}
    # Without --answers: the study has them.
    with serving.served(f'--output_dir={run}', '--port=0') as third:
        for number in (3, 4):
            found = _send(third.url, asked, 'wren', number, 'CAB')
        assert found.json()['next'] == '/p/wren/thanks'
    rows = _rows(run)
    assert len(rows) == 4 * 3 * 3 == len({row[:4] for row in rows})
    shown = asked.shown('wren', 2)
    second_item = {row[3]: row[4] for row in rows if row[1] == 2}
    assert second_item == {model: rank for rank, model in enumerate(shown, start=1)}


def test_a_kill_while_many_send_loses_nothing_that_was_answered(flags, sources):
    given, run = flags
    asked = _asked(sources)
    orders = [''.join(order) for order in itertools.permutations('ABC')]
    # What may be there now; '' is nothing.
    possible: dict[tuple[str, int], set[str]] = {}
    with serving.served(*given, '--port=0') as server:
        for person in range(4):
            _begin(server.url, f'bird-{person}')

        def work(person: int) -> None:
            for turn in range(1000):
                number, order = turn % 4 + 1, orders[turn % 6]
                try:
                    found = _send(server.url, asked, f'bird-{person}', number, order)
                except httpx.HTTPError:
                    # It may be there or not, but whole.
                    possible[f'bird-{person}', number].add(order)
                    return
                assert found.status_code == 200
                possible[f'bird-{person}', number] = {order}
                if person == 0 and turn == 30:
                    server.process.kill()

        for person in range(4):
            possible |= {(f'bird-{person}', number): {''} for number in range(1, 5)}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    rows = _rows(run)
    for (code, number), orders_there in possible.items():
        letters = dict(zip(asked.shown(code, number), 'ABC', strict=True))
        found = {
            ''.join(
                letters[row[3]]
                for row in sorted(rows, key=lambda row: row[4])
                if row[:3] == (code, number, dimension)
            )
            for dimension in dimensions.NAMES
        }
        # The same in all three, as it was sent.
        assert len(found) == 1
        assert found <= orders_there, (code, number)


def test_two_tabs_at_once_leave_one_order(flags, sources):
    given, run = flags
    asked = _asked(sources)
    with serving.served(*given, '--port=0') as server:
        _begin(server.url, 'wren')
        orders = [''.join(order) for order in itertools.permutations('ABC')] * 3
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            found = list(
                pool.map(lambda x: _send(server.url, asked, 'wren', 1, x), orders)
            )
    assert [one.status_code for one in found] == [200] * len(orders)
    # All but the first were told that they replaced one.
    assert sorted(one.json()['replaced'] for one in found) == [False] + [True] * 17
    rows = _rows(run)
    assert len(rows) == 9
    by_dimension = {
        name: tuple(
            row[3] for row in sorted(rows, key=lambda x: x[4]) if row[2] == name
        )
        for name in dimensions.NAMES
    }
    assert len(set(by_dimension.values())) == 1


def test_ctrl_c_ends_the_server(flags):
    given, run = flags
    with serving.served(*given, '--port=0') as server:
        assert httpx.get(server.url).status_code == 200
        in_use = serving.run('--summary', f'--output_dir={run}')
        server.process.send_signal(signal.SIGINT)
        _, said = server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    assert said.splitlines()[-1] == 'Ended. 0 people have taken part; see --summary.'
    assert in_use.returncode == 1
    assert 'is in use by process' in in_use.stderr


def test_a_port_in_use_is_one_line(flags):
    given, run = flags
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        done = serving.run(*given, '--serve', f'--port={port}')
    assert (done.returncode, done.stdout) == (1, '')
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'ERROR: Cannot serve on --host=127.0.0.1 --port={port}: ')
    assert 'Address already in use' in last
    assert 'Traceback' not in done.stderr
    assert not run.exists()


@pytest.mark.parametrize('host', ['none.invalid', '192.0.2.1', 'n' * 300, '::x'])
def test_a_host_that_is_not_this_machine(flags, host):
    given, _ = flags
    cfg = config.RankConfig(
        answers=given[0].partition('=')[2],
        output_dir=given[1].partition('=')[2],
        serve=True,
        host=host,
        port=0,
    )
    with pytest.raises(errors.InputError, match='Cannot serve on --host='):
        pipeline.rank(cfg)


def test_changed_answers_are_refused_by_name(flags, tmp_path):
    given, _ = flags
    with serving.served(*given, '--port=0'):
        pass
    rows = samples.rows('rival')
    rows = [row | {'answer': row['answer'] + ' Aye.'} for row in rows]
    samples.write_rows(tmp_path / 'rival.jsonl', rows)
    done = serving.run(*given, '--serve', '--port=0')
    assert done.returncode == 1
    assert 'these differ: the answers of rival.' in done.stderr.splitlines()[-1]


def test_a_judge_and_a_summary(flags, ranking_server):
    given, run = flags
    judging = (
        *('--judge=openai', '--judge_model=tiny'),
        f'--judge_url={ranking_server.url}',
    )
    done = serving.run(*given, *judging)
    assert done.returncode == 0, done.stderr
    assert 'Overall mean rank (as Table 5)' in done.stdout
    asked = len(ranking_server.asked)
    again = serving.run(*given, *judging)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert len(ranking_server.asked) == asked == 4 * 3 * 2
    shown = serving.run(f'--output_dir={run}', '--summary')
    assert (shown.returncode, shown.stdout) == (0, done.stdout)
    assert (run / 'results' / 'rankings.csv').is_file()


def test_a_judge_that_is_killed_goes_on(flags, ranking_server):
    """Killed after some replies: these are not asked for again."""
    given, run = flags
    judging = (
        *('--judge=openai', '--judge_model=tiny', '--judge_concurrency=1'),
        f'--judge_url={ranking_server.url}',
    )
    running: list[serving.subprocess.Popen[bytes]] = []

    def reply(prompt: str) -> str:
        if len(ranking_server.asked) == 9:
            running[0].kill()
        return samples.by_name(prompt)

    ranking_server.reply = reply
    running.append(
        serving.subprocess.Popen(
            serving.command(*given, *judging), env=serving.environment()
        )
    )
    assert running[0].wait(timeout=120) == -signal.SIGKILL
    database = sqlite3.connect(run / 'ranking.sqlite')
    [(kept,)] = database.execute('SELECT count(*) FROM replies').fetchall()
    database.close()
    # The ninth was never answered; on a slow disk some before were not written yet.
    assert 0 < kept < 9
    ranking_server.asked.clear()
    ranking_server.reply = samples.by_name
    assert serving.run(*given, *judging).returncode == 0
    assert len(ranking_server.asked) == 4 * 3 * 2 - kept
    assert len(_rows(run)) == 4 * 3 * 3
    found = json.loads((run / 'results' / 'rank.json').read_text())
    assert found['groups']['tiny']['consistency']['n_rankings'] == 12


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({}, 'Say what is to be done'),
        ({'serve': True, 'summary': True}, '--serve goes on until'),
        ({'judge': 'openai'}, 'needs --judge_model'),
        ({'judge': 'openai', 'judge_model': 'x'}, 'needs --judge_url'),
        (
            {'judge': 'openai', 'judge_model': 'x', 'judge_url': 'ftp://x'},
            '--judge_url must look like',
        ),
        ({'summary': True, 'port': 70_000}, '--port must be in'),
        ({'summary': True, 'items': 0}, '--items must be at least 1'),
    ],
)
def test_settings_that_say_nothing_or_too_much(tmp_path, changes, said):
    with pytest.raises(errors.InputError, match=said):
        config.RankConfig(output_dir=str(tmp_path), **changes)


def test_nothing_to_begin_with_leaves_no_folder(tmp_path):
    cfg = config.RankConfig(output_dir=str(tmp_path / 'new'), summary=True)
    with pytest.raises(
        errors.InputError, match='--answers with --serve or --judge begins'
    ):
        pipeline.rank(cfg)
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('name', ['o' * 300, 'file/in'])
def test_a_folder_that_cannot_be(tmp_path, sources, name):
    (tmp_path / 'file').write_text('mine')
    done = serving.run(
        f'--answers={sources}', f'--output_dir={tmp_path / name}', '--serve', '--port=0'
    )
    assert (done.returncode, done.stdout) == (1, '')
    assert len([x for x in done.stderr.splitlines() if x.startswith('ERROR: ')]) == 1
    assert 'Traceback' not in done.stderr
