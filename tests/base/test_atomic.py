"""Files and folders are whole or absent, whatever goes wrong on the way."""

import errno
import json
import os
import pathlib

import pytest

from ppjax.base import atomic, errors


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    with atomic.file(path) as temporary:
        temporary.write_text('one')
        assert not path.exists()
        assert temporary.parent == path.parent  # A rename must not cross disks.
    assert path.read_text() == 'one'
    assert _names(path.parent) == ['a.txt']


def test_file_replaces_an_older_one(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with atomic.file(str(path)) as temporary:
        temporary.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'


@pytest.mark.parametrize('error', [RuntimeError('bug'), KeyboardInterrupt()])
def test_failed_file_leaves_the_old_one_and_no_litter(tmp_path, error):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(type(error)), atomic.file(path) as temporary:
        temporary.write_text('half')
        raise error
    assert path.read_text() == 'old'
    assert _names(tmp_path) == ['a.txt']


def test_full_disk_is_one_line_naming_the_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(errors.InputError) as caught, atomic.file(path) as temporary:
        temporary.write_text('half')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = str(caught.value)
    assert str(path) in message
    assert 'No space left on device' in message
    assert '\n' not in message
    assert path.read_text() == 'old'
    assert _names(tmp_path) == ['a.txt']


def test_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / 'plain').write_text('')
    with pytest.raises(errors.InputError, match='plain'):
        atomic.write_text(tmp_path / 'plain' / 'a.txt', 'x')
    with (
        pytest.raises(errors.InputError, match='plain'),
        atomic.directory(tmp_path / 'plain' / 'b'),
    ):
        pass


def test_data_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        events.append(os.readlink(f'/proc/self/fd/{descriptor}'))
        sync(descriptor)

    def record_replace(source, target):
        events.append('rename')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', record_sync)
    monkeypatch.setattr(os, 'replace', record_replace)
    with atomic.file(tmp_path / 'a') as temporary:
        temporary.write_text('x')
    assert events == [str(temporary), 'rename', str(tmp_path)]

    events.clear()
    with atomic.directory(tmp_path / 'd') as temporary:
        (temporary / 'sub').mkdir()
        (temporary / 'sub' / 'f').write_text('x')
    assert events.index(str(temporary / 'sub' / 'f')) < events.index('rename')
    assert events[-1] == str(tmp_path)


def test_directory_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / 'new' / 'hf'
    with atomic.directory(path) as temporary:
        (temporary / 'config.json').write_text('{}')
        assert not path.exists()
    assert _names(path) == ['config.json']
    assert _names(path.parent) == ['hf']


def test_directory_replaces_an_older_one_as_a_whole(tmp_path):
    path = tmp_path / 'hf'
    path.mkdir()
    (path / 'stale').write_text('old')
    with atomic.directory(path) as temporary:
        (temporary / 'fresh').write_text('new')
        assert _names(path) == ['stale']
    assert _names(path) == ['fresh']
    assert _names(tmp_path) == ['hf']


def test_failed_directory_leaves_the_old_one_and_no_litter(tmp_path):
    path = tmp_path / 'hf'
    path.mkdir()
    (path / 'old').write_text('old')
    with pytest.raises(RuntimeError), atomic.directory(path) as temporary:
        (temporary / 'half').write_text('half')
        raise RuntimeError('bug')
    assert _names(path) == ['old']
    assert _names(tmp_path) == ['hf']


def test_directory_comes_back_if_the_new_one_cannot_take_its_name(
    tmp_path, monkeypatch
):
    path = tmp_path / 'hf'
    path.mkdir()
    (path / 'old').write_text('old')
    replace = os.replace

    def fail_once(source, target):
        if pathlib.Path(source).name.startswith('.hf.ppjax-tmp'):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, 'replace', fail_once)
    with (
        pytest.raises(errors.InputError, match='nothing was changed'),
        atomic.directory(path) as temporary,
    ):
        (temporary / 'fresh').write_text('new')
    assert _names(path) == ['old']
    assert _names(tmp_path) == ['hf']


def test_write_json_reads_back_and_keeps_text_readable(tmp_path):
    path = tmp_path / 'a.json'
    value = {'name': 'Bjørk 🚀', 'loss': 0.1, 'none': None}
    atomic.write_json(path, value)
    assert json.loads(path.read_text(encoding='utf-8')) == value
    assert 'Bjørk 🚀' in path.read_text(encoding='utf-8')


def test_write_json_refuses_what_json_has_no_word_for(tmp_path):
    path = tmp_path / 'a.json'
    atomic.write_json(path, {'loss': 1.0})
    before = path.read_bytes()
    for value in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='JSON'):
            atomic.write_json(path, {'loss': value})
    assert path.read_bytes() == before


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_dead_processes_left_is_removed_by_the_next(tmp_path, kind):
    dead = tmp_path / '.a.ppjax-tmp-0123456789ab'
    other = tmp_path / '.b.ppjax-tmp-0123456789ab'
    for path in (dead, other):
        path.mkdir()
        (path / 'model.safetensors').write_text('half')
    if kind == 'file':
        atomic.write_text(tmp_path / 'a', 'new')
    else:
        with atomic.directory(tmp_path / 'a') as folder:
            (folder / 'b').write_text('new')
    assert _names(tmp_path) == [other.name, 'a']
    atomic.remove_dead(tmp_path)
    assert _names(tmp_path) == ['a']


def test_what_a_living_process_writes_stays(tmp_path):
    with (
        atomic.file(tmp_path / 'a') as mine,
        atomic.directory(tmp_path / 'd') as folder,
    ):
        mine.write_text('mine')
        (folder / 'b').write_text('mine')
        atomic.remove_dead(tmp_path)
        with atomic.file(tmp_path / 'a') as theirs:
            theirs.write_text('theirs')
        assert (tmp_path / 'a').read_text() == 'theirs'
    assert (tmp_path / 'a').read_text() == 'mine'
    assert _names(tmp_path / 'd') == ['b']


def test_a_folder_moved_aside_for_one_that_never_came_is_put_back(tmp_path):
    aside = tmp_path / '.hf.ppjax-old-0123456789ab'
    aside.mkdir()
    (aside / 'model.safetensors').write_text('whole')
    (tmp_path / '.hf.ppjax-tmp-0123456789ab').mkdir()
    atomic.remove_dead(tmp_path)
    assert _names(tmp_path) == ['hf']
    assert (tmp_path / 'hf' / 'model.safetensors').read_text() == 'whole'
