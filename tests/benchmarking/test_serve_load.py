"""`bench serve` against a server whose every delay is known."""

import collections
import json
import os

import numpy as np
import pytest

from ppjax import bench, export
from ppjax.base import errors
from ppjax.benchmarking import (
    config,
    serve_client,
    serve_figures,
    serve_load,
    serve_plan,
)
from ppjax.exporting import config as export_config
from ppjax.exporting.gguf import llama_cpp
from tests.benchmarking import chat_server

_CAST = [('base', None), ('anna', 'base'), ('bram', 'base'), ('cleo', 'base')]


def _measure(url, **flags):
    given = {'instructions': 'demo:3', 'answer_length': 6, 'alone': 0} | flags
    return serve_load.measure(config.BenchConfig(url=url, **given))


# --- The plan -----------------------------------------------------------------


def test_requests_come_by_chance_at_their_rate():
    cell = serve_plan.Cell(4, 5.0, None)
    asked = serve_plan.draw(cell, requests=4000, prompts=7, exponent=1.0, seed=(3, 1))
    times = [one.at for one in asked]
    assert times == sorted(times)
    gaps = np.diff(times)
    # Of an exponential distribution mean and deviation are alike.
    assert np.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert np.std(gaps) == pytest.approx(0.2, rel=0.08)
    counts = collections.Counter(one.persona for one in asked)
    shares = [counts[i] / 4000 for i in range(4)]
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    assert shares == pytest.approx([1 / i / harmonic for i in (1, 2, 3, 4)], abs=0.03)
    assert {one.prompt for one in asked} == set(range(7))


def test_a_seed_fixes_all():
    def drawn(seed):
        return serve_plan.draw(
            serve_plan.Cell(9, 2.0, None),
            requests=20,
            prompts=5,
            exponent=0.5,
            seed=seed,
        )

    assert drawn((1, 0)) == drawn((1, 0)) != drawn((2, 0))


def test_more_personas_change_who_is_asked_alone():
    def drawn(personas):
        return serve_plan.draw(
            serve_plan.Cell(personas, 2.0, None),
            requests=30,
            prompts=5,
            exponent=1.0,
            seed=(0, 0),
        )

    one, many = drawn(1), drawn(64)
    assert [(x.at, x.prompt) for x in one] == [(x.at, x.prompt) for x in many]
    assert len({x.persona for x in one}) == 1 < len({x.persona for x in many})


def test_without_an_exponent_all_are_asked_alike():
    assert serve_plan.popularity(4, 0.0).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({}, '--rates=1,4 a second, or --concurrency=8'),
        ({'rates': '1', 'concurrency': 2}, '--rates=1,4 a second, or --concurrency'),
        ({'rates': '1,x'}, "as in 0.5,2, got '1,x'"),
        ({'rates': '0'}, "got '0'"),
        ({'rates': 'nan'}, "got 'nan'"),
        ({'concurrency': 1, 'casts': '2,x'}, '--casts must be numbers'),
        ({'concurrency': 1, 'casts': '0'}, '--casts must be numbers of at least 1'),
        ({'concurrency': 1, 'casts': '2,9'}, '--casts=2,9, and there are 4 personas'),
    ],
)
def test_loads_that_are_none(flags, message):
    with pytest.raises(errors.InputError, match=message):
        serve_plan.cells(config.BenchConfig(**flags), 4)


def _heard(*events):
    heard = serve_client._Heard()
    for event in events:
        heard.take(event)
    return heard.reply()


@pytest.mark.parametrize(
    ('event', 'failure'),
    [
        (None, 'no JSON'),
        ([], 'no JSON'),
        ({'error': {'message': 'no'}}, 'error in the stream'),
        ({'choices': ['x']}, 'no choice'),
        ({'choices': 5, 'usage': 7}, ''),
        ({'choices': [{'delta': 'x', 'finish_reason': 3}]}, ''),
        ({'choices': [{'delta': {'content': 5}}]}, ''),
    ],
)
def test_events_that_are_none(event, failure):
    reply = _heard({'choices': [{'delta': {'content': 'Hm'}}]}, event)
    assert (reply.failure, reply.text, reply.tokens) == (failure, 'Hm', 1)
    assert not reply.counted


# --- The figures --------------------------------------------------------------


def _answered(number, *, failure='', due=10.0, first=0.3, words=5, cold=False):
    reply = serve_client.Reply(
        failure=failure,
        text='x' * words,
        finish='stop',
        tokens=words,
        counted=True,
        sent=due + 0.01,
        first=None if failure else due + first,
        last=None if failure else due + first + 0.4,
        ended=due + first + 0.5,
    )
    asked = serve_plan.Asked(0.0, 0, number)
    return serve_figures.Answered(asked, due, reply, cold)


def test_figures_of_known_replies():
    firsts = np.linspace(0.1, 1.1, 101)
    answered = [_answered(i, first=first) for i, first in enumerate(firsts)]
    answered += [_answered(0, failure='429'), _answered(0, failure='cut short')]
    answered += [_answered(0, failure='429'), _answered(1, first=2.0, cold=True)]
    found = serve_figures.of(answered, began=8.0)
    assert (found['requests'], found['finished']) == (105, 102)
    assert found['personas_asked'] == 1
    assert found['errors'] == {'429': 2, 'cut short': 1}
    assert found['first_token_warm_s'] == pytest.approx(
        {'p50': 0.6, 'p95': 1.05, 'p99': 1.09, 'count': 101}
    )
    assert found['first_token_cold_s']['p50'] == pytest.approx(2.0)
    assert found['first_token_s']['count'] == 102
    # Four tokens after the first within 0.4 s.
    assert found['per_token_s'] == pytest.approx({'p50': 0.1, 'p95': 0.1, 'count': 102})
    # The last ends 2.5 s after 10, and the load began at 8.
    assert found['seconds'] == pytest.approx(4.5)
    assert found['tokens_per_s'] == pytest.approx(102 * 5 / 4.5)
    assert found['requests_per_s'] == pytest.approx(102 / 4.5)
    assert found['sent_late_s']['p50'] == pytest.approx(0.01)


def test_no_reply_at_all():
    found = serve_figures.of([_answered(0, failure='503')], began=10.0)
    assert found['tokens_per_s'] == 0
    assert found['first_token_s'] == {'p50': None, 'p95': None, 'p99': None, 'count': 0}


def test_sameness():
    answers = {('a', 'p'): ['x', 'x'], ('b', 'p'): ['x', 'y', 'x'], ('b', 'q'): ['z']}
    assert serve_figures.sameness(answers) == {
        'questions': 3,
        'asked_again': 2,
        'differing': 1,
        'examples': [{'model': 'b', 'prompt': 'p', 'texts': ['x', 'y']}],
    }


# --- The load -----------------------------------------------------------------


def test_times_are_those_of_the_server():
    chat = chat_server.Chat(_CAST, first=0.15, gap=0.03)
    with chat_server.running(chat) as url:
        found = _measure(url, concurrency=2, requests=6, casts='1,3')
    assert [cell['personas'] for cell in found['cells']] == [1, 3]
    for cell in found['cells']:
        assert (cell['requests'], cell['finished'], cell['errors']) == (6, 6, {})
        # The role, then the first word a gap later, then five more.
        assert 0.18 <= cell['first_token_s']['p50'] < 0.34
        assert 0.03 <= cell['per_token_s']['p50'] < 0.1
        assert cell['tokens'] == 36
        assert cell['seconds'] >= 3 * (0.15 + 7 * 0.03)
        assert cell['tokens_per_s'] == pytest.approx(36 / cell['seconds'])
        assert cell['resident_bytes']['max'] == 150_000_000
    assert chat.most == 2
    assert {body['model'] for body in chat.bodies[:6]} == {'anna'}
    assert {body['model'] for body in chat.bodies} <= {'anna', 'bram', 'cleo'}
    assert all(body['temperature'] == 0 and body['stream'] for body in chat.bodies)
    # The first request of a persona is the first in the whole run.
    cold = [cell['first_token_cold_s']['count'] for cell in found['cells']]
    assert cold[0] == 1
    assert sum(cold) == len({body['model'] for body in chat.bodies})


def test_answers_that_go_on_are_all_as_long():
    chat = chat_server.Chat(_CAST)
    flags = {'concurrency': 2, 'requests': 4, 'answer_length': 9}
    with chat_server.running(chat) as url:
        found, whole = (
            _measure(url, ignore_eos=ignored, **flags) for ignored in (False, True)
        )
    assert [cell['tokens'] for cell in (*found['cells'], *whole['cells'])] == [24, 36]
    assert [body.get('ignore_eos') for body in chat.bodies] == 4 * [None] + 4 * [True]


def test_requests_come_whether_others_are_answered_or_not():
    """Each takes 0.16 s, one after the other, and ten come within a second or so."""
    chat = chat_server.Chat(_CAST, gap=0.02, one_at_a_time=True)
    with chat_server.running(chat) as url:
        found = _measure(url, rates='20', requests=12, seed=4)
    [cell] = found['cells']
    asked = serve_plan.draw(
        serve_plan.Cell(3, 20.0, None),
        requests=12,
        prompts=3,
        exponent=1.0,
        seed=(4, 0),
    )
    planned = np.diff([one.at for one in asked])
    np.testing.assert_allclose(np.diff(chat.arrived), planned, atol=0.25)
    assert chat.most > 5
    # The wait for others counts, as for whoever stands in a queue.
    assert cell['first_token_s']['p95'] > 0.6
    assert cell['sent_late_s']['p95'] < 0.3
    assert cell['requests_per_s'] < 8


def test_failures_are_counted_by_their_kind(monkeypatch):
    monkeypatch.setenv('PPJAX_API_KEY', 'secret')
    chat = chat_server.Chat(_CAST, failures=[429, 503, 429])
    with chat_server.running(chat) as url:
        [cell] = _measure(url, concurrency=1, requests=5)['cells']
    assert cell['errors'] == {'429': 2, '503': 1}
    assert (cell['requests'], cell['finished']) == (5, 2)
    assert set(chat.keys) == {'Bearer secret'}


def test_texts_that_change_in_company_are_found():
    with chat_server.running(chat_server.Chat(_CAST, gap=0.01)) as url:
        sound = _measure(url, concurrency=4, requests=24, alone=5)
    chat = chat_server.Chat(_CAST, gap=0.01, fault='shared')
    with chat_server.running(chat) as url:
        broken = _measure(url, concurrency=4, requests=24, alone=5)
    assert sound['same_texts_under_load']['asked_again'] >= 6
    assert sound['same_texts_under_load']['differing'] == 0
    assert sound['same_texts_alone']['asked_again'] == 5
    assert sound['same_texts_alone']['differing'] == 0
    assert broken['same_texts_alone']['differing'] >= 3
    example = broken['same_texts_alone']['examples'][0]
    assert chat_server.text(example['model'], example['prompt'], 6) in example['texts']


def test_the_verb_writes_what_it_measured(tmp_path, capsys):
    result = tmp_path / 'found.json'
    with chat_server.running(chat_server.Chat(_CAST)) as url:
        cfg = config.BenchConfig(
            url=url,
            names='cleo,anna',
            concurrency=2,
            requests=4,
            instructions='demo:2',
            result=str(result),
        )
        assert bench.main(cfg, 'serve') == 0
    out, err = capsys.readouterr()
    found = json.loads(result.read_text())
    assert json.loads(out) == found
    assert found['personas'] == 2
    assert found['settings']['concurrency'] == 2
    assert '2 personas, 2 at a time' in err
    assert 'first token p50' in err


@pytest.fixture
def two_personas(tmp_path):
    file = tmp_path / 'personas.jsonl'
    rows = [{'name': x, 'persona': f'{x} rows a boat.'} for x in ('Ann', 'Bo')]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(file)


def test_personas_by_their_prompts(two_personas):
    """As a server without masks has them."""
    chat = chat_server.Chat([('any', None)])
    with chat_server.running(chat) as url:
        _measure(url, personas=two_personas, concurrency=1, requests=8, zipf=0.0)
    assert {body['model'] for body in chat.bodies} == {'any'}
    said = {body['messages'][0]['content'] for body in chat.bodies}
    assert len(said) == 2 and all('rows a boat' in x for x in said)


# --- What is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({}, 'Name a server with --url'),
        ({'url': 'http://127.0.0.1:1', 'files': 'x.gguf'}, 'Name a server with --url'),
        ({'url': 'nowhere'}, '--url must look like'),
        ({'files': 'none.gguf'}, 'none.gguf is no file'),
        (
            {'url': 'http://127.0.0.1:9/v1'},
            'No server answers at http://127.0.0.1:9/v1',
        ),
    ],
)
def test_whom_to_ask(flags, message):
    if 'files' in flags and not llama_cpp.is_installed():
        pytest.skip('llama.cpp is not there')
    with pytest.raises(errors.InputError, match=message):
        serve_load.measure(config.BenchConfig(**flags))


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'names': 'anna,zoe'}, "has no 'zoe'; it has base, anna"),
        ({'pid': 4_000_000}, '--pid=4000000: /proc tells of no such process'),
    ],
)
def test_who_is_not_there(flags, message):
    with (
        chat_server.running(chat_server.Chat(_CAST)) as url,
        pytest.raises(errors.InputError, match=message),
    ):
        _measure(url, concurrency=1, **flags)


def test_a_server_that_lists_nothing():
    with (
        chat_server.running(chat_server.Chat([])) as url,
        pytest.raises(errors.InputError, match='lists no models'),
    ):
        _measure(url, concurrency=1)


@pytest.mark.parametrize('load', [{'concurrency': 2}, {'rates': '20'}])
def test_a_server_that_goes_away_is_said_in_one_line(load):
    chat = chat_server.Chat(_CAST)
    served = chat_server.running(chat)
    url = served.__enter__()
    bodies = chat.bodies

    class Leaving(list):
        def append(self, body):
            bodies.append(body)
            if len(bodies) == 5:
                chat.leave()

    chat.bodies = Leaving()
    try:
        with pytest.raises(errors.InputError) as refused:
            _measure(url, requests=200, **load)
    finally:
        served.__exit__(None, None, None)
    assert 'Nobody listens at' in str(refused.value)
    assert 'of 200 requests of this load had ended' in str(refused.value)


def test_memory_is_that_of_the_process():
    chat = chat_server.Chat(_CAST)
    with chat_server.running(chat) as url:
        [cell] = _measure(url, concurrency=1, requests=2, pid=os.getpid())['cells']
    assert cell['resident_bytes']['max'] > 50_000_000
    assert cell['resident_bytes']['max'] != 150_000_000


@pytest.mark.skipif(not llama_cpp.is_installed(), reason='llama.cpp is not there')
def test_llama_cpp_is_served_and_ended(chatty_model, two_personas, tmp_path):
    export.main(
        export_config.ExportConfig(
            model=str(chatty_model), gguf='f32', output_dir=str(tmp_path)
        )
    )
    [file] = tmp_path.glob('gguf/*.gguf')
    cfg = config.BenchConfig(
        files=str(file),
        personas=two_personas,
        concurrency=2,
        requests=4,
        casts='2',
        slots=2,
        answer_length=4,
        max_length=300,
        instructions='demo:2',
        alone=1,
    )
    found = serve_load.measure(cfg)
    [cell] = found['cells']
    assert (cell['finished'], cell['errors']) == (4, {})
    assert cell['tokens_are_counted_by_server']
    assert cell['resident_bytes']['max'] > 1_000_000
