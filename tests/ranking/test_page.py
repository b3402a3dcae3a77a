"""What the server of the page answers, right requests and wrong ones."""

from collections.abc import Iterator
import json
import re
import sqlite3

import pytest
from starlette import testclient

from ppjax.ranking import answer_files, dimensions, questionnaire, study
from ppjax.ranking.page import app
from tests.evaluation.page import whole_page
from tests.ranking import samples

_HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=y> &amp; {{ 7*7 }} \x00\x1b'


@pytest.fixture
def opened(make_study) -> study.Study:
    return make_study(3)


@pytest.fixture
def client(opened: study.Study) -> Iterator[testclient.TestClient]:
    with testclient.TestClient(app.application(opened)) as found:
        yield found


def _begin(client: testclient.TestClient, code: str = 'wren', **more: str):
    return client.post('/begin', data={'code': code} | more, follow_redirects=False)


def _sent(opened: study.Study, order: str = 'CAB', **changes):
    orders = {name: list(order) for name in dimensions.NAMES}
    return {'study': opened.questionnaire.digest[:16], 'orders': orders} | changes


def test_the_first_page_says_what_is_asked(client):
    page = client.get('/')
    assert page.status_code == 200
    assert '3 questions' in page.text
    assert all(dimension.title in page.text for dimension in dimensions.DIMENSIONS)


def test_a_code_of_ones_own_and_a_made_one(client, opened):
    assert _begin(client, ' Wren-7 ').headers['location'] == '/p/wren-7/1'
    made = _begin(client, '').headers['location']
    assert re.fullmatch(r'/p/[a-z2-9]{8}/1', made)
    assert _begin(client, '').headers['location'] != made
    assert len(opened.participants()) == 3


@pytest.mark.parametrize(
    'code', ['ab', 'x' * 25, 'Jo Smith', '<b>', 'judge:x:1', '-abc']
)
def test_a_code_that_is_none(client, opened, code):
    found = _begin(client, code)
    assert 'A code is 3 to 24 letters' in found.text
    assert opened.participants() == []


def test_a_code_with_rankings_is_asked_about(client, opened):
    _begin(client)
    assert _begin(client).status_code == 303  # Nothing is ranked under it yet.
    assert client.post('/p/wren/1', json=_sent(opened)).status_code == 200
    asked = _begin(client)
    assert (asked.status_code, '1 of 3 questions' in asked.text) == (200, True)
    assert _begin(client, known='yes').headers['location'] == '/p/wren/2'


def test_an_item_is_shown_without_names(client, opened):
    _begin(client)
    page = client.get('/p/wren/1').text
    item = opened.questionnaire.items[0]
    assert item.question in page
    # The answers say themselves whose they are here; nothing else does.
    for answer in item.answers.values():
        page = page.replace(answer, '')
    assert not [model for model in samples.MODELS if model in page]


def test_letters_are_turned_into_models_in_the_order_shown(client, opened):
    _begin(client)
    sent = _sent(opened, 'CAB')
    found = client.post('/p/wren/2', json=sent)
    assert found.json() == {'next': '/p/wren/1', 'replaced': False}
    a, b, c = opened.questionnaire.shown('wren', 2)
    assert opened.orders('wren', 2) == {name: [c, a, b] for name in dimensions.NAMES}
    page = client.get('/p/wren/2').text
    assert re.findall(r'<li data-letter="(.)"', page) == list('CAB' * 3)
    assert page.count('data-settled="true"') == 3
    fresh = client.get('/p/wren/1').text
    assert re.findall(r'<li data-letter="(.)"', fresh) == list('ABC' * 3)
    assert fresh.count('data-settled="false"') == 3


def test_sent_again_it_replaces(client, opened):
    _begin(client)
    client.post('/p/wren/1', json=_sent(opened, 'ABC'))
    found = client.post('/p/wren/1', json=_sent(opened, 'CBA'))
    assert found.json() == {'next': '/p/wren/2', 'replaced': True}
    assert len(opened.rankings()) == 9
    assert (
        opened.orders('wren', 1)['storyline_quality']
        == (opened.questionnaire.shown('wren', 1)[::-1])
    )


def test_the_end(client, opened):
    _begin(client)
    for number in (1, 2, 3):
        found = client.post(f'/p/wren/{number}', json=_sent(opened))
    assert found.json()['next'] == '/p/wren/thanks'
    assert client.get('/p/wren').text == client.get('/p/wren/thanks').text
    assert 'All 3 questions are ranked' in client.get('/p/wren/thanks').text


@pytest.mark.parametrize(
    'changes',
    [
        {'orders': None},
        {'orders': {}},
        {'orders': {name: list('ABB') for name in dimensions.NAMES}},
        {'orders': {name: list('AB') for name in dimensions.NAMES}},
        {'orders': dict.fromkeys(dimensions.NAMES, 'ABC')},
        {'orders': {name: [1, 2, 3] for name in dimensions.NAMES}},
        {'orders': {name: list('ABC') for name in dimensions.NAMES[:2]}},
    ],
)
def test_orders_that_are_none(client, opened, changes):
    _begin(client)
    found = client.post('/p/wren/1', json=_sent(opened, **changes))
    assert found.status_code == 400
    assert found.json()['error'] == 'Wanted an order of all answers in every respect.'
    assert opened.rankings() == []


def test_requests_that_are_none(client, opened):
    _begin(client)

    def post(path='/p/wren/1', kind='application/json', **content):
        return client.post(path, headers={'content-type': kind}, **content)

    whole = json.dumps(_sent(opened))
    assert post(content='[]').status_code == 400
    assert post(content='{').status_code == 400
    assert post(content='[' * 60_000).status_code == 400
    assert post(content='x' * 70_000).status_code == 413
    # What a form of another site could send.
    assert post(content=whole, kind='text/plain').status_code == 415
    stale = post(content=json.dumps(_sent(opened, study='another')))
    assert stale.status_code == 409
    assert 'another study' in stale.json()['error']
    for path in ('/p/owl/1', '/p/wren/0', '/p/wren/4', '/p/judge:x:1/1', '/none'):
        assert post(path, content=whole).status_code == 404
        page = client.get(path)
        assert (page.status_code, 'no such page' in page.text) == (404, True)
    assert opened.rankings() == []


def test_a_full_disk_is_said_and_nothing_is_half_there(client, opened, capsys):
    _begin(client)
    [(pages,)] = opened._rows('PRAGMA page_count')
    opened._rows(f'PRAGMA max_page_count={pages}')
    codes = 0
    while (found := _begin(client, f'filler-{codes}')).status_code == 303:
        codes += 1
    assert found.status_code == 503
    assert 'Nothing was saved' in found.text
    sent = client.post('/p/wren/1', json=_sent(opened))
    assert sent.status_code in (200, 503)
    # What is wrong is said to whoever runs it.
    assert 'database or disk is full' in capsys.readouterr().err
    assert str(opened.path) not in found.text + sent.text
    assert len(opened.rankings()) in (0, 9)
    opened._rows('PRAGMA max_page_count=1000000')
    assert client.post('/p/wren/1', json=_sent(opened)).status_code == 200
    assert len(opened.rankings()) == 9


def test_texts_of_models_are_text(tmp_path):
    asked = answer_files.Asked(f'P {_HOSTILE}', f'Q {_HOSTILE}')
    given = {name: {asked: f'{name} {_HOSTILE}'} for name in ('a', 'b')}
    opened = study.Study(tmp_path / study.NAME)
    opened.begin(questionnaire.draw(given, count=1, seed=0))
    with testclient.TestClient(app.application(opened)) as client:
        _begin(client)
        for path in ('/', '/p/wren/1', '/p/wren/thanks', '/p/none/1'):
            page = client.get(path)
            found = whole_page.Page(page.text)
            assert '<script>alert' not in page.text
            assert '49' not in found.text
            assert not found.tags & {'img', 'iframe', 'style', 'base', 'object'}
            # The script and the style are our own files, and nothing else is loaded.
            loaded = [
                value
                for tag, name, value in found.attributes
                if name in ('src', 'href') and tag != 'a'
            ]
            assert set(loaded) <= {'/rank.css', '/rank.js', 'data:,'}
            assert not [name for _, name, _ in found.attributes if name[:2] == 'on']
            policy = page.headers['content-security-policy']
            assert "default-src 'none'" in policy
            assert 'unsafe' not in policy
        assert found.text.count('alert') == 0
        item = whole_page.Page(client.get('/p/wren/1').text)
        assert item.text.count('<script>alert(1)</script>') == 4 + 3 * 2
    opened.close()


def test_our_files_load_nothing(client):
    for name, kind in (('rank.css', 'text/css'), ('rank.js', 'text/javascript')):
        found = client.get(f'/{name}')
        assert found.headers['content-type'].startswith(kind)
        assert not re.search(r'https?:|@import|url\(|innerHTML|eval\(', found.text)


def test_nothing_personal_is_stored(client, opened):
    _begin(client)
    client.post('/p/wren/1', json=_sent(opened))
    with sqlite3.connect(opened.path) as database:
        tables = ('participants', 'rankings')
        columns = [
            [row[1] for row in database.execute(f'PRAGMA table_info({table})')]
            for table in tables
        ]
        assert database.execute('SELECT * FROM participants').fetchall() == [
            ('wren', 'person', 'wren')
        ]
    database.close()
    assert columns == [
        ['participant', 'kind', 'name'],
        ['participant', 'item', 'dimension', 'model', 'rank'],
    ]
