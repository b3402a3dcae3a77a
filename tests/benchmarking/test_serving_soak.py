"""launch/serving_soak.py: what it must find, and what it must not."""

import asyncio
import json
import pathlib
import random
import sys

import pytest

from ppjax.base import errors
from ppjax.benchmarking import serve_client
from tests.benchmarking import chat_server

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'launch'))
import serving_soak
from soaking import bodies, clients, folder, record


@pytest.fixture
def masks(tmp_path):
    path = tmp_path / 'masks'
    path.mkdir()
    for name in ('anna', 'bram', 'cleo'):
        (path / f'{name}.pmask').write_bytes(b'mask')
    return path


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(serving_soak, '_IDLE_SECONDS', 1.0)
    monkeypatch.setattr(folder, 'SETTLED_SECONDS', 0.3)


def _soaked(masks, fault='none', **changed):
    cfg = serving_soak.Settings(
        **{
            'personas': str(masks),
            'output_dir': str(masks.parent / 'soak'),
            'minutes': 0.05,
            'change_seconds': 0.3,
            'prompts': 2,
            'answer_length': 5,
            'most_growth': 0.25,
            'warm_up': 0.3,
            'patience': 60.0,
        }
        | changed
    )
    found = serving_soak.soak(
        cfg, [sys.executable, chat_server.__file__, f'--fault={fault}']
    )
    stored = json.loads((masks.parent / 'soak' / 'soak.json').read_text())
    assert stored == json.loads(json.dumps(found))
    return found


def test_a_sound_server_has_no_faults(masks):
    found = _soaked(masks)
    assert found['faults'] == {}
    assert found['exit_code'] == 0
    assert found['answers_that_were_right'] > 30
    assert found['idle_by'] == ['chat_running']
    assert found['resident_bytes']['max'] > 10_000_000
    assert abs(found['resident_bytes']['growth_after_warm_up']) < 0.25
    done = found['done']
    assert done['leave: left'] > 3 and done['bad body: 400'] > 3
    assert done['folder: persona taken away'] > 0
    assert {path.stem for path in masks.iterdir()} == {'anna', 'bram', 'cleo'}


def test_faults_are_found(masks):
    found = _soaked(masks, 'text,cut,leak,stuck,500,exit')
    faults = found['faults']
    assert {'wrong text', 'cut short', 'memory grows', 'never idle'} <= set(faults)
    assert {'status 500', 'exit code'} <= set(faults)
    assert found['exit_code'] == 1
    assert 'and alone' in faults['wrong text']['told'][0]
    assert 'chat_running' in faults['never idle']['told'][0]
    assert found['answers_that_were_right'] > 10


def _met(masks, acts, *, fault='none', take_away=None):
    """Kinds of faults that one client finds by some acts."""
    own = folder.Folder(sorted(masks.glob('*.pmask')), masks.parent / 'own')
    seen = record.Record()

    async def meet(url):
        async with serve_client.open_client(url) as client:
            one = clients.Clients(
                client,
                url.removesuffix('/v1'),
                own,
                seen,
                max_tokens=3,
                rng=random.Random(0),
            )
            await one.learn(['base', 'anna'], ['Who?'])
            (own.path / f'{folder.DAMAGED}.pmask').write_bytes(b'damaged')
            if take_away:
                (own.path / f'{take_away}.pmask').unlink()
            await acts(one)

    chat = chat_server.Chat(folder=own.path, fault=fault)
    with chat_server.running(chat) as url:
        asyncio.run(meet(url))
    return seen


def test_a_removed_persona_must_be_gone(masks):
    def ask(one):
        return one.ask(('anna', 'Who?'))

    sound = _met(masks, ask, take_away='anna')
    assert sound.kinds == []
    assert sound.as_json()['done'] == {'ask: 404': 1}


def test_a_removed_persona_that_answers_is_found(masks):
    found = _met(
        masks, lambda one: one.ask(('anna', 'Who?')), fault='stale', take_away='anna'
    )
    assert found.kinds == ['removed persona answers']


def test_a_damaged_file_that_is_listed_is_found(masks):
    seen = _met(masks, lambda one: one._look(), fault='damaged')
    assert seen.kinds == ['damaged file listed']


def test_a_bad_body_that_is_taken_is_found(masks):
    seen = _met(masks, lambda one: one._send_bad_body(), fault='careless')
    assert seen.kinds == ['bad body taken']


def test_a_server_that_dies_is_found(masks):
    found = _soaked(masks, 'die', minutes=1.0)
    # What it was saying then is cut short, and nothing else is wrong.
    assert {'died'} <= set(found['faults']) <= {'died', 'cut short'}
    assert 'code 3' in found['faults']['died']['told'][0]


def test_a_server_that_does_not_start(masks):
    cfg = serving_soak.Settings(personas=str(masks), output_dir=str(masks / 'out'))
    command = [sys.executable, '-c', 'print("No such model."); raise SystemExit(1)']
    with pytest.raises(errors.InputError, match=r'ended with code 1: No such model\.'):
        serving_soak.soak(cfg, command)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'personas': None}, '--personas must be given'),
        ({'personas': 'nowhere'}, 'holds 0 .pmask files; two are needed'),
        ({'output_dir': '.'}, 'exists; name a new folder'),
    ],
)
def test_what_is_refused(masks, changed, message):
    with pytest.raises(errors.InputError, match=message):
        _soaked(masks, **changed)


def test_growth_is_that_after_the_warm_up():
    assert record.growth([10, 50, 100, 100, 100, 100, 100, 100], 0.25) == 0
    assert record.growth([100] * 4 + [110] * 2 + [120] * 3, 0) == pytest.approx(0.2)
    assert record.growth([100] * 5, 0) is None


def test_the_folder_always_has_someone(masks, tmp_path):
    own = folder.Folder(sorted(masks.glob('*.pmask')), tmp_path / 'own')
    rng = random.Random(0)
    done = {own.change(rng) for _ in range(60) if list(own.path.glob('[abc]*.pmask'))}
    assert len(done) == 4
    changed = [name for name in ('anna', 'bram') if not own.is_settled(name, 1e12)]
    assert not changed
    own.restore()
    assert all(own.is_there(name) for name in ('anna', 'bram', 'cleo', 'base'))


def test_bad_bodies_are_bad():
    """All are refused by whoever reads them with care."""
    for name, make in bodies.BAD.items():
        if name not in ('no such model', 'a huge body'):
            assert chat_server._checked(make('anna')) is None, name
    sound = json.dumps(bodies._sound('anna') | bodies.draw_sampled(random.Random(1)))
    assert chat_server._checked(sound.encode()) is not None
