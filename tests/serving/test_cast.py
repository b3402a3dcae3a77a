"""Who is in the cast: files that come, go, change, and are no personas."""

import json
import os
import pathlib
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors, reading
from ppjax.masking import granularity, pmask
from ppjax.models import base_model as base_lib
from ppjax.models import loading
from ppjax.serving import cast as cast_lib
from ppjax.serving import cast_files, demo_masks, pictures, watching
from tests.personas.conftest import CardFiles


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / 'personas'
    made.mkdir()
    return made


@pytest.fixture
def said():
    return []


@pytest.fixture
def make_cast(tiny_base, folder, said):
    return lambda: cast_lib.Cast(tiny_base, [folder], say=said.append)


def _names(cast):
    return list(cast.members())


def test_mask_files_are_members_behind_the_base(
    make_cast, make_mask, folder, tiny_base
):
    for seed, name in enumerate(('zoe', 'amy')):
        pmask.save(folder / f'{name}.pmask', make_mask(seed))
    cast = make_cast()
    base = cast_lib.base_id(tiny_base)
    assert base == pathlib.Path(tiny_base.name).name
    assert _names(cast) == [base, 'amy', 'zoe']
    assert cast.get(base) is cast.dense
    assert cast.dense.is_dense
    assert cast.get('Amy') is None
    amy = cast.get('amy')
    mask = make_mask(1)
    assert amy.scale.dtype == bool
    np.testing.assert_array_equal(amy.scale, mask.mask)
    assert amy.digest == mask.decoder_masks().digest()
    assert amy.sparsity == 0.25
    assert (amy.system_prompt, amy.title) == ('You are number 1.', 'amy')
    assert amy.created == int(os.stat(folder / 'amy.pmask').st_mtime)
    with pytest.raises(TypeError):
        cast.members()['x'] = amy


def test_gains_and_widths_are_kept(make_cast, make_mask, folder, tiny_base):
    rng = np.random.default_rng(0)
    plain = make_mask(0)
    gained = make_mask(0, gains=rng.normal(1, 0.1, (3, 39)).astype(np.float16))
    kept = rng.random(plain.mask.shape) < 0.6
    uneven = pmask.PersonaMask.of_widths(
        kept,
        **{
            name: getattr(plain, name)
            for name in ('base_model', 'base_fingerprint', 'persona_sha256')
        },
    )
    pmask.save(folder / 'gained.pmask', gained)
    pmask.save(folder / 'uneven.pmask', uneven)
    cast = make_cast()
    found = cast.get('gained')
    assert found.scale.dtype == np.float16
    np.testing.assert_array_equal(found.scale.astype(np.float32), gained.scaled())
    assert found.digest == gained.decoder_masks().digest()
    found = cast.get('uneven')
    assert found.scale.dtype == bool
    np.testing.assert_array_equal(found.scale, kept)
    assert found.digest == uneven.decoder_masks().digest()
    assert found.sparsity == pytest.approx(1 - kept.mean())


def test_cards_bring_what_they_say(make_cast, make_card, folder):
    card = {
        'name': 'Marta Quill',
        'description': 'Mends nets.',
        'first_mes': 'Mind it.',
    }
    picture = CardFiles.png(
        CardFiles.text_chunk(CardFiles.payload(card)),
        CardFiles.text_chunk(b'secret', keyword='Comment'),
    )
    make_card(folder / 'quill.png', 1, source=picture)
    make_card(folder / 'ida.json', 2)
    cast = make_cast()
    quill, ida = cast.get('quill'), cast.get('ida')
    assert (quill.title, quill.persona.greeting) == ('Marta Quill', 'Mind it.')
    assert quill.system_prompt == 'You are number 1.'
    # The picture alone: no card, no mask, no other text.
    assert quill.picture.media_type == 'image/png'
    assert quill.picture.content == CardFiles.png()
    assert (ida.title, ida.picture) == ('Ida', None)


def _charx(card, entries, head=b''):
    return head + CardFiles.charx({'card.json': json.dumps(card).encode()} | entries)


def test_pictures_of_charx_files(make_cast, make_card, folder, said):
    png = CardFiles.png()
    jpeg = b'\xff\xd8\xff\xe0\0\x10JFIF\0' + b'x' * 64
    webp = b'RIFF\x10\0\0\0WEBPVP8 '

    def card(*assets):
        data = {'name': 'Ida', 'description': 'Bakes.', 'assets': list(assets)}
        return {'spec': 'chara_card_v3', 'spec_version': '3.0', 'data': data}

    icons = [
        {'type': 'icon', 'name': name, 'uri': f'embeded://assets/{file}', 'ext': 'png'}
        for name, file in (('sad', 'sad.png'), ('main', 'main.webp'))
    ]
    files = {'assets/sad.png': png, 'assets/main.webp': webp}
    svg = {'assets/sad.png': b'<svg onload="x()"/>'}
    for name, source in {
        'main.charx': _charx(card(*icons), files),
        'only.charx': _charx(card(icons[0]), files),
        'folder.charx': CardFiles.charx(
            {
                'ida/card.json': json.dumps(card(icons[0])).encode(),
                'ida/assets/sad.png': png,
            }
        ),
        'before.jpg': _charx(card(), {}, head=jpeg),
        'none.charx': _charx(card({'type': 'icon', 'uri': 'https://a/b.png'}, 5), {}),
        'script.charx': _charx(card(icons[0]), svg),
    }.items():
        make_card(folder / name, source=source)
    cast = make_cast()
    found = {
        name: member.picture and (member.picture.media_type, member.picture.content)
        for name, member in cast.members().items()
        if member.source
    }
    assert found == {
        'main': ('image/webp', webp),
        'only': ('image/png', png),
        'folder': ('image/png', png),
        'before': ('image/jpeg', jpeg),
        'none': None,
        'script': None,
    }, said


def test_runs_are_called_as_their_folders(make_cast, make_mask, folder, tiny_base):
    (folder / 'jack' / 'deep').mkdir(parents=True)
    pmask.save(folder / 'jack' / 'mask.pmask', make_mask(1))
    pmask.save(folder / 'jack' / 'deep' / 'mask.pmask', make_mask(2))
    pmask.save(folder / 'mask.pmask', make_mask(3))
    (folder / 'empty').mkdir()
    (folder / 'status.json').write_text('{"state": "done"}')
    assert _names(make_cast())[1:] == ['jack', 'personas']
    # Links are called as they are called here.
    (folder / 'link').symlink_to(folder / 'jack')
    (folder / 'other').mkdir()
    (folder / 'other' / 'mask.pmask').symlink_to(folder / 'jack' / 'mask.pmask')
    assert _names(make_cast())[1:] == ['jack', 'link', 'other', 'personas']
    # A run by itself is a folder of one.
    alone = cast_lib.Cast(tiny_base, [folder / 'jack'], say=print)
    assert _names(alone)[1:] == ['deep', 'jack']


def test_names_that_would_be_the_same(
    make_cast, make_mask, make_card, folder, tiny_base
):
    base = cast_lib.base_id(tiny_base)
    (folder / 'b').mkdir()
    (folder / base).mkdir()
    for path in ('a.pmask', 'b.pmask', 'b/mask.pmask', f'{base}/mask.pmask', 'c.pmask'):
        pmask.save(folder / path, make_mask())
    make_card(folder / 'a.json', 1)
    (folder / 'c.json').write_text('[]')  # No persona, so it takes no name.
    cast = make_cast()
    assert _names(cast)[1:] == sorted(
        ['a.json', 'a.pmask', 'b', 'b.pmask', 'c', f'{base}-2']
    )
    assert cast.get('b').source == folder / 'b' / 'mask.pmask'
    assert cast.dense.name == base
    (folder / 'a.json').unlink()
    cast.refresh()
    assert 'a' in _names(cast)


@pytest.mark.parametrize(
    ('file', 'name'),
    [
        ('two\nlines.pmask', 'two_lines'),
        ('a\\b.pmask', 'a_b'),
        ('...pmask', None),
        ('.hidden.pmask', None),
        (' .pmask', '_'),
        ('x...pmask', 'x'),
        ('caf\u00e9 \u202eevil\u200b.pmask', 'caf\u00e9 _evil_'),
        (os.fsdecode(b'bad\xff.pmask'), 'bad_'),
        ('A.PMASK', 'A'),
    ],
)
def test_hostile_names(make_cast, make_mask, folder, said, file, name):
    (folder / file).write_bytes(pmask.to_bytes(make_mask()))
    assert _names(make_cast())[1:] == ([name] if name else [])
    assert all(line.isprintable() for line in said)


def test_what_is_refused_is_said_once_and_stops_nothing(
    make_cast, make_mask, make_card, folder, said
):
    pmask.save(folder / 'good.pmask', make_mask())
    pmask.save(folder / 'other.pmask', make_mask(base_fingerprint='e' * 64))
    blocks = np.array([[True, False, True]])
    pmask.save(
        folder / 'blocks.pmask',
        make_mask(mask=blocks, granularity=granularity.BLOCKS.name),
    )
    (folder / 'cut.pmask').write_bytes(pmask.to_bytes(make_mask())[:-9])
    (folder / 'empty.pmask').write_bytes(b'')
    (folder / 'half.json').write_text('{"data": {"na')
    (folder / 'plain.json').write_text('{"name": "Ida", "description": "Bakes."}')
    (folder / 'face.png').write_bytes(CardFiles.png())
    (folder / 'photo.jpg').write_bytes(b'\xff\xd8\xff\xe0\0')
    (folder / 'settings.json').write_text('{"a": 1}')
    (folder / 'notes.txt').write_text('x')
    (folder / 'nowhere.pmask').symlink_to(folder / 'gone')
    os.mkfifo(folder / 'pipe.pmask')
    cast = make_cast()
    assert _names(cast)[1:] == ['good']
    refused = [line for line in said if line.startswith('Not in the cast: ')]
    assert [line for line in said if line not in refused] == [
        f'In the cast: good ({folder / "good.pmask"}, 25% of the channels pruned).'
    ]
    reasons = {
        'other.pmask': 'fingerprint',
        'blocks.pmask': 'whole blocks',
        'cut.pmask': 'no readable mask file',
        'empty.pmask': 'no readable mask file',
        'half.json': 'JSON',
        'plain.json': 'carries no mask',
        'face.png': 'no character card',
    }
    assert len(refused) == len(reasons)
    for file, reason in reasons.items():
        assert any(file in line and reason in line for line in refused), (file, refused)
    assert all(line.isprintable() and len(line) < 600 for line in refused)
    said.clear()
    assert not cast.refresh()
    assert said == []


def test_files_come_change_and_go(make_cast, make_mask, folder, said, monkeypatch):
    cast = make_cast()
    assert len(cast.members()) == 1
    read = []
    monkeypatch.setattr(
        cast_files,
        'read',
        lambda *a, real=cast_files.read, **more: read.append(a[0]) or real(*a, **more),
    )
    # Half a file, as it is being written.
    whole = pmask.to_bytes(make_mask(1))
    (folder / 'amy.pmask').write_bytes(whole[:100])
    assert not cast.refresh()
    assert not cast.refresh()
    (folder / 'amy.pmask').write_bytes(whole)
    assert cast.refresh()
    assert _names(cast)[1:] == ['amy']
    assert len(read) == 2
    first = cast.get('amy')

    pmask.save(folder / 'zoe.pmask', make_mask(2))
    assert cast.refresh()
    assert cast.get('amy') is first
    assert len(read) == 3

    # The same length, another content.
    cast.pin([first])
    pmask.save(folder / 'amy.pmask', make_mask(3, system_prompt='You are number 1.'))
    assert cast.refresh()
    assert cast.get('amy').digest != first.digest
    assert said[-2].startswith('Changed in the cast: amy')
    assert said[-1].startswith('amy has another mask than its own smaller weights')
    cast.pin([])

    # Touched, and the same.
    os.utime(folder / 'amy.pmask', (1, 1))
    assert not cast.refresh()

    (folder / 'amy.pmask').write_bytes(b'damaged')
    (folder / 'zoe.pmask').unlink()
    assert cast.refresh()
    assert _names(cast)[1:] == []
    assert said[-2:] == ['Left the cast: amy.', 'Left the cast: zoe.']


def test_a_file_that_goes_away_while_it_is_read(
    make_cast, make_mask, folder, said, monkeypatch
):
    pmask.save(folder / 'amy.pmask', make_mask(1))
    real = cast_files.read

    def read(path, base, **more):
        path.unlink()
        return real(path, base, **more)

    monkeypatch.setattr(cast_files, 'read', read)
    assert len(make_cast().members()) == 1
    assert said == []


def test_an_archive_larger_than_what_is_read_whole(
    make_cast, make_card, folder, monkeypatch
):
    icon = {'type': 'icon', 'name': 'main', 'uri': 'embeded://a.png', 'ext': 'png'}
    card = {
        'spec': 'chara_card_v3',
        'spec_version': '3.0',
        'data': {'name': 'Ida', 'description': 'Bakes.', 'assets': [icon]},
    }
    files = {'a.png': CardFiles.png(), 'noise': os.urandom(2**18)}
    make_card(folder / 'ida.charx', source=_charx(card, files))
    monkeypatch.setattr(reading, 'MAX_FILE_BYTES', 2**16)
    assert make_cast().get('ida').picture.content == CardFiles.png()
    monkeypatch.setattr(pictures, 'MOST_BYTES', 20)
    assert make_cast().get('ida').picture is None


def test_a_fault_of_the_reader_is_one_files(
    make_cast, make_mask, folder, said, monkeypatch
):
    pmask.save(folder / 'amy.pmask', make_mask(1))
    pmask.save(folder / 'zoe.pmask', make_mask(2))
    real = cast_files.read

    def read(path, base, **more):
        if path.name == 'amy.pmask':
            raise RuntimeError('line\nbreak')
        return real(path, base, **more)

    monkeypatch.setattr(cast_files, 'read', read)
    assert _names(make_cast())[1:] == ['zoe']
    assert said[0] == (
        f'Not in the cast: {folder / "amy.pmask"}: cannot be read '
        '(RuntimeError: line\\nbreak).'
    )


def test_a_folder_that_is_not_there(tiny_base, tmp_path):
    (tmp_path / 'file').write_text('')
    for name in ('nowhere', 'file', 'nul\0'):
        with pytest.raises(errors.InputError, match='Cannot list the personas'):
            cast_lib.Cast(tiny_base, [tmp_path / name])


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [('owner/model-1b', 'model-1b'), ('smollm2-135m', 'smollm2-135m'), ('/', 'base')],
)
def test_the_bases_own_id(tiny_base, given, wanted):
    assert (
        cast_lib.base_id(base_lib.BaseModel(given, tiny_base.reader, tiny_base.config))
        == wanted
    )


def test_the_id_of_a_file(tiny_base, tmp_path):
    (tmp_path / 'llama.Q8_0.gguf').write_bytes(b'')
    base = base_lib.BaseModel(
        str(tmp_path / 'llama.Q8_0.gguf'), tiny_base.reader, tiny_base.config
    )
    assert cast_lib.base_id(base) == 'llama.Q8_0'


def _until(true):
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_watcher_keeps_up_and_outlives_errors(make_cast, make_mask, folder, said):
    cast = make_cast()
    watcher = watching.Watcher(cast, seconds=0.01, say=said.append)
    pmask.save(folder / 'amy.pmask', make_mask(1))
    _until(lambda: cast.get('amy'))
    folder.rename(folder.parent / 'away')
    _until(lambda: any('stays as it is' in line for line in said))
    time.sleep(0.1)
    assert cast.get('amy')
    assert sum('stays as it is' in line for line in said) == 1
    (folder.parent / 'away').rename(folder)
    pmask.save(folder / 'zoe.pmask', make_mask(2))
    _until(lambda: cast.get('zoe'))
    watcher.stop()
    assert not [t for t in threading.enumerate() if t.name == 'ppjax-cast']


def test_masks_of_the_demo(chatty_model, tmp_path, said):
    base = base_lib.open_base_model(str(chatty_model))
    decoder = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    folder = tmp_path / 'made' / 'here'
    demo_masks.make(base, decoder, folder)
    cast = cast_lib.Cast(base, [folder], say=said.append)
    assert _names(cast)[1:] == sorted(demo.personas())
    digests = {member.digest for member in cast.members().values()}
    assert len(digests) == 4
    ferryman = cast.get('ferryman')
    assert ferryman.sparsity == pytest.approx(demo_masks.SPARSITY)
    assert demo.persona('ferryman') in ferryman.system_prompt
    # What is there is kept; what is damaged is made anew, and is the same.
    before = (folder / 'ferryman.pmask').read_bytes()
    state = os.stat(folder / 'clockmaker.pmask')
    (folder / 'ferryman.pmask').write_bytes(b'x')
    demo_masks.make(base, decoder, folder)
    assert (folder / 'ferryman.pmask').read_bytes() == before
    assert os.stat(folder / 'clockmaker.pmask').st_ino == state.st_ino


def test_where_the_demos_masks_are_kept(tiny_base, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
    kept = demo_masks.folder_of(tiny_base)
    assert kept.parent == pathlib.Path('/somewhere/ppjax/demo')
    assert tiny_base.fingerprint().startswith(kept.name)
