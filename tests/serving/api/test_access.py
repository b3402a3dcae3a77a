"""Who may ask: keys, names of this machine, pages of other origins."""

import pytest
from starlette import testclient

from ppjax.base import errors
from ppjax.serving import config
from ppjax.serving.api import access, app

_KEY = 'a-key-of-ours'


def _client(made, base_url: str = 'http://localhost:8080', **door):
    return testclient.TestClient(app.application(made, **door), base_url=base_url)


@pytest.mark.parametrize('path', ['/v1/models', '/metrics', '/cast', '/none'])
def test_everything_but_health_and_the_page_needs_the_key(made, path):
    client = _client(made, key=_KEY)
    for free in ('/health', '/v1/health', '/', '/chat.css', '/chat.js'):
        assert client.get(free).status_code == 200
    found = client.get(path)
    assert found.status_code == 401
    assert found.json()['error']['code'] == 'invalid_api_key'
    for wrong in (
        {'Authorization': x} for x in ('Bearer', 'Bearer x', _KEY, 'Bearer ä')
    ):
        sent = {name: value.encode() for name, value in wrong.items()}
        assert client.get(path, headers=sent).status_code == 401
    wanted = 404 if path == '/none' else 200
    right = {'Authorization': f'Bearer {_KEY}'}
    assert client.get(path, headers=right).status_code == wanted


@pytest.mark.parametrize(
    ('host', 'status'),
    [
        *((host, 200) for host in ('localhost', '127.0.0.1:8080', '[::1]:8080')),
        *((host, 403) for host in ('evil.example', 'localhost.evil.example:8080', '')),
        ('[::1', 200),
        ('192.168.0.7', 403),
    ],
)
def test_without_a_key_only_names_of_this_machine_will_do(made, host, status):
    found = _client(made).get('/v1/models', headers={'Host': host})
    assert found.status_code == status


def test_with_a_key_any_name_will_do(made):
    client = _client(made, 'http://cast.example', key=_KEY)
    right = {'Authorization': f'Bearer {_KEY}'}
    assert client.get('/v1/models', headers=right).status_code == 200


def test_pages_of_other_origins_are_refused(made, chat, engine):
    client = _client(made)
    for origin in ('http://evil.example', 'null', 'http://localhost:3000', 'http://['):
        found = client.post(
            '/v1/chat/completions', json=chat, headers={'Origin': origin}
        )
        assert found.status_code == 403
        assert 'access-control-allow-origin' not in found.headers
    own = {'Origin': 'http://localhost:8080'}
    found = client.post('/v1/chat/completions', json=chat, headers=own)
    assert found.status_code == 200
    assert len(engine.asked) == 1


def test_an_allowed_origin_may_ask(made, chat):
    origin = 'http://localhost:3000'
    client = _client(made, origins=frozenset({origin}))
    asks = {'Origin': origin, 'Access-Control-Request-Method': 'POST'}
    before = client.options('/v1/chat/completions', headers=asks)
    assert before.status_code == 204
    assert before.headers['access-control-allow-origin'] == origin
    names = 'authorization,content-type,x-stainless-lang'
    asks['Access-Control-Request-Headers'] = names
    before = client.options('/v1/chat/completions', headers=asks)
    assert before.headers['access-control-allow-headers'] == names
    found = client.post('/v1/chat/completions', json=chat, headers={'Origin': origin})
    assert found.status_code == 200
    assert found.headers['access-control-allow-origin'] == origin
    assert found.headers['vary'] == 'Origin'
    refused = client.post('/v1/chat/completions', headers={'Origin': 'http://other'})
    assert refused.status_code == 403


def test_the_page_comes_with_its_headers(made):
    client = _client(made)
    for path, name in (('/', 'index.html'), ('/chat.css', 'chat.css')):
        found = client.get(path)
        assert found.text == f'<p>{name}</p>'
        assert found.headers['x-content-type-options'] == 'nosniff'


def _config(tmp_path, **changes) -> config.ServeConfig:
    return config.ServeConfig(
        **({'base_model': 'tiny', 'personas': str(tmp_path)} | changes)
    )


def test_a_key_is_demanded_where_others_reach_the_server(tmp_path):
    for host in ('127.0.0.1', 'localhost', '::1', '127.0.0.5'):
        assert access.checked_key('', _config(tmp_path, host=host)) is None
    for host in ('0.0.0.0', '::', 'cast.example', '192.168.0.7'):
        cfg = _config(tmp_path, host=host)
        with pytest.raises(errors.InputError, match='PPJAX_API_KEY'):
            access.checked_key(None, cfg)
        assert access.checked_key(_KEY, cfg) == _KEY
    for key in ('ä', 'two words', 'a\nb'):
        with pytest.raises(errors.InputError, match='PPJAX_API_KEY must be'):
            access.checked_key(key, _config(tmp_path))
    with pytest.raises(errors.InputError, match='every web page'):
        access.checked_key(None, _config(tmp_path, allow_origin='*'))


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'base_model': None}, '--base_model must be given'),
        ({'personas': None}, '--personas must be given'),
        ({'personas': '/none/at/all'}, 'is no folder'),
        ({'demo': True}, '--demo brings its own'),
        ({'max_tokens': 4096}, 'leaves no room for a prompt'),
        ({'slots': 0}, '--slots must be in'),
        ({'allow_origin': 'http://x/path'}, 'is no origin'),
        ({'allow_origin': 'localhost'}, 'is no origin'),
        ({'pin': 'jack,jack'}, 'names a persona twice'),
        ({'pin': 'jack', 'mesh': 'data:2'}, '--pin keeps weights'),
        ({'drain_seconds': -1.0}, '--drain_seconds must be in'),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, said):
    with pytest.raises(errors.InputError, match=said):
        _config(tmp_path, **changes)


def test_settings_that_can(tmp_path):
    cfg = _config(tmp_path, allow_origin='http://a:1, https://b.c', pin='jack, ida')
    assert cfg.origins == {'http://a:1', 'https://b.c'}
    assert cfg.pinned == ('jack', 'ida')
    assert config.ServeConfig(demo=True).is_local
