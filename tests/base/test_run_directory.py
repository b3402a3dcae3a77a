"""A run directory proves what it is, keeps what it did not make, and has one holder."""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from ppjax.base import atomic, errors, flags, locks, run_directory


@dataclasses.dataclass(frozen=True)
class _Settings:
    output_dir: str = flags.setting(None, 'Where to.')
    seed: int = flags.setting(1, 'A number.')
    source: str | None = flags.setting(None, 'What is read.')


_MAKES = ('made/*.txt', 'mask')


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Callable[..., bool]:
    """Opens tmp_path/runs/a, lets `work` do something there; whether a run was found."""
    folder = tmp_path / 'runs' / 'a'

    def go(
        work: Callable[[pathlib.Path], None] = lambda folder: None,
        *,
        overwrite: bool = False,
        stage: str | None = None,
        **settings: object,
    ) -> bool:
        directory = run_directory.RunDirectory(folder, stage=stage)
        opened = directory.opened(
            _Settings(output_dir=str(folder), **settings),
            {'data': '1'},
            resumable=frozenset({'output_dir', 'source'}),
            overwrite=overwrite,
            makes=_MAKES,
        )
        with opened as found, directory.stage('test'):
            work(folder)
            directory.done()
        return found

    return go


def _make(folder: pathlib.Path) -> None:
    (folder / 'made').mkdir(exist_ok=True)
    (folder / 'made' / 'a.txt').write_text('a')
    (folder / 'mask').write_text('m')


def _files(folder: pathlib.Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file()
    }


_RECORDS = {'ppjax-run.json', 'config.flags', 'inputs.json', 'status.json'}


def test_the_same_run_goes_on_and_another_is_refused(run, tmp_path):
    assert not run(_make)
    assert run()
    folder = tmp_path / 'runs' / 'a'
    assert _files(folder) == _RECORDS | {'made/a.txt', 'mask'}
    with pytest.raises(errors.InputError, match=r'--seed \(1 there, 2 now\)'):
        run(seed=2)
    assert json.loads((folder / 'status.json').read_text())['state'] == 'done'


@pytest.mark.parametrize('name', ['inputs.json', 'status.json', 'stages/train.flags'])
@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_without_a_marker_is_no_run(run, tmp_path, name, overwrite):
    path = tmp_path / 'runs' / 'a' / name
    path.parent.mkdir(parents=True)
    path.write_text('{}')
    (tmp_path / 'runs' / 'a' / 'thesis.txt').write_text('precious')
    with pytest.raises(errors.InputError, match='no run'):
        run(overwrite=overwrite)
    assert _files(tmp_path / 'runs' / 'a') == {name, 'thesis.txt'}


def test_overwrite_removes_what_a_run_made_and_names_the_rest(run, tmp_path, capsys):
    run(_make)
    folder = tmp_path / 'runs' / 'a'
    (folder / 'thesis.txt').write_text('precious')
    (folder / 'made' / 'notes.doc').write_text('mine')
    assert not run(seed=2, overwrite=True)
    assert _files(folder) == _RECORDS | {'thesis.txt', 'made/notes.doc'}
    assert 'since no run made it: made, thesis.txt.' in capsys.readouterr().err


@pytest.mark.parametrize(
    'given', ['{}/mask', 'x,{}/made/a.txt:20', '{}/made/{{persona}}.txt']
)
def test_overwrite_of_what_is_read_is_refused(run, tmp_path, given):
    run(_make)
    folder = tmp_path / 'runs' / 'a'
    before = _files(folder)
    with pytest.raises(errors.InputError, match=r'--source: .* nothing was removed'):
        run(seed=2, overwrite=True, source=given.format(folder))
    assert _files(folder) == before


def test_links_are_removed_and_what_they_lead_to_stays(run, tmp_path):
    run(_make)
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside' / 'thesis.txt').write_text('precious')
    mask = tmp_path / 'runs' / 'a' / 'mask'
    mask.unlink()
    mask.symlink_to(tmp_path / 'outside', target_is_directory=True)
    run(seed=2, overwrite=True)
    assert not mask.is_symlink()
    assert (tmp_path / 'outside' / 'thesis.txt').exists()


@pytest.mark.parametrize('name', ['..', '/', '../thesis.txt', '../*'])
def test_a_marker_cannot_name_what_lies_outside(run, tmp_path, name):
    run(_make)
    (tmp_path / 'runs' / 'thesis.txt').write_text('precious')
    marker = tmp_path / 'runs' / 'a' / run_directory.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {'makes': [name]}))
    run(seed=2, overwrite=True)
    assert (tmp_path / 'runs' / 'thesis.txt').exists()


def test_what_is_added_later_is_discarded_too(run, tmp_path):
    run(_make)
    folder = tmp_path / 'runs' / 'a'
    with run_directory.visiting(folder, makes=('later.json',)):
        (folder / 'later.json').write_text('{}')
    run(seed=2, overwrite=True)
    assert _files(folder) == _RECORDS


def test_a_run_within_is_discarded_by_its_own_marker(run, tmp_path):
    inner = tmp_path / 'runs' / 'a' / 'mask'  # A name that the outer run makes.

    def nest(folder: pathlib.Path) -> None:
        directory = run_directory.RunDirectory(inner)
        with directory.opened(
            _Settings(output_dir=str(inner)),
            {},
            resumable=frozenset(),
            overwrite=False,
            makes=('own',),
        ):
            (inner / 'own').write_text('')

    run(nest)
    (inner / 'mine').write_text('mine')
    run(seed=2, overwrite=True)
    assert _files(inner) == {'mine', 'ppjax-run.json'}
    (inner / 'mine').unlink()
    run(seed=3, overwrite=True)
    assert not inner.exists()


def test_a_refusal_leaves_no_folder_unless_something_was_made(run, tmp_path):
    def refuse(folder: pathlib.Path) -> None:
        raise errors.InputError('no')

    def make_and_refuse(folder: pathlib.Path) -> None:
        _make(folder)
        raise errors.InputError('no')

    with pytest.raises(errors.InputError, match='no'):
        run(refuse)
    assert not (tmp_path / 'runs').exists()
    with pytest.raises(errors.InputError, match='no'):
        run(make_and_refuse)
    folder = tmp_path / 'runs' / 'a'
    assert json.loads((folder / 'status.json').read_text())['state'] == 'failed'
    with pytest.raises(errors.InputError, match='no'):
        run(refuse)
    assert (folder / 'mask').exists()


def test_a_refused_stage_leaves_what_another_made(run, tmp_path):
    def stages(folder: pathlib.Path) -> None:
        run(_make, stage='first')
        raise errors.InputError('second says no')

    with pytest.raises(errors.InputError, match='second'):
        run(stages)
    assert _files(tmp_path / 'runs' / 'a') > _RECORDS


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('inputs.json', b'[]'),
        ('inputs.json', b'\xff\xfe'),
        ('inputs.json', b'{'),
        ('inputs.json', None),
        ('ppjax-run.json', b'[]'),
        ('ppjax-run.json', b'{"format": "ppjax.run.v1", "makes": 3}'),
        ('ppjax-run.json', b'{"format": "ppjax.run.v9", "makes": []}'),
        ('config.flags', b'--sede=1\n'),
        ('config.flags', b'\xff'),
    ],
)
def test_damaged_records_are_one_line(run, tmp_path, name, content):
    run(_make)
    path = tmp_path / 'runs' / 'a' / name
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(errors.InputError) as caught:
        run()
    assert '\n' not in str(caught.value)
    assert str(tmp_path / 'runs' / 'a') in str(caught.value)
    assert (tmp_path / 'runs' / 'a' / 'mask').exists()


@pytest.mark.parametrize('cut', [1, 2, 3, 4, 5, 6, 7])
def test_a_kill_during_the_first_writes_is_no_obstacle(run, tmp_path, cut, monkeypatch):
    """The n-th rename never happens, and what was being written stays behind."""
    renames = 0

    def replace(source: pathlib.Path, target: pathlib.Path) -> None:
        nonlocal renames
        renames += 1
        if renames == cut:
            raise SystemExit(137)
        pathlib.Path(source).rename(target)

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, 'replace', replace)
        patched.setattr(pathlib.Path, 'unlink', lambda *_, **__: None)
        try:
            run(_make)
        except SystemExit:
            # As after a kill: the lock is gone with its process.
            assert not locks._held
    assert any(map(atomic.is_temporary, _names(tmp_path))) or cut > renames
    run(_make)
    assert not any(map(atomic.is_temporary, _names(tmp_path)))
    assert _files(tmp_path / 'runs' / 'a') == _RECORDS | {'made/a.txt', 'mask'}


def _names(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.rglob('*')]


_HOLD = """
import pathlib, sys, time
from ppjax.base import locks
with locks.held(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_one_process_holds_it_until_it_is_killed(run, tmp_path):
    run(_make)
    folder = tmp_path / 'runs' / 'a'
    before = _files(folder)
    with subprocess.Popen(
        [sys.executable, '-c', _HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == 'held\n'
        for overwrite in (False, True):
            with pytest.raises(errors.InputError, match=f'process {holder.pid} on '):
                run(overwrite=overwrite)
        holder.send_signal(signal.SIGKILL)
    assert run()
    assert _files(folder) == before


def test_a_process_may_hold_it_twice(tmp_path):
    with locks.held(tmp_path):
        with locks.held(tmp_path):
            assert (tmp_path / locks.NAME).exists()
        assert (tmp_path / locks.NAME).exists()
    assert not (tmp_path / locks.NAME).exists()


def test_a_full_disk_still_says_that_the_run_failed(run, tmp_path, monkeypatch):
    def work(folder: pathlib.Path) -> None:
        _make(folder)

        def full(*_: object) -> None:
            raise errors.DiskError('Cannot write: No space left on device.')

        monkeypatch.setattr(atomic, 'write_json', full)
        raise errors.DiskError('A checkpoint could not be saved.')

    with pytest.raises(errors.DiskError, match='checkpoint'):
        run(work)
    status = json.loads((tmp_path / 'runs' / 'a' / 'status.json').read_text())
    assert (status['state'], status['error']) == ('failed', 'disk full')


def test_settings_that_no_flagfile_holds_leave_nothing(run, tmp_path):
    with pytest.raises(errors.InputError, match='--source must be one line'):
        run(source='a\nb')
    assert list(tmp_path.iterdir()) == []


def test_half_a_surrogate_pair_in_a_record_survives(run, tmp_path):
    run(_make)
    marker = tmp_path / 'runs' / 'a' / run_directory.MARKER
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps(content | {'note': '\ud800', 'makes': []}))
    assert run()
    written = json.loads(marker.read_text('utf-8'))
    assert written['note'] == '\ud800'
    assert written['makes'] == list(_MAKES)


@pytest.mark.parametrize('name', ['inputs.json', run_directory.MARKER, 'config.flags'])
def test_a_record_that_is_a_pipe_keeps_nobody_waiting(run, tmp_path, name):
    run(_make)
    path = tmp_path / 'runs' / 'a' / name
    path.unlink()
    os.mkfifo(path)
    # A reader that waits would be let go by one who writes nothing.
    writer = threading.Timer(5, lambda: path.write_text(''))
    writer.start()
    with pytest.raises(errors.InputError, match='is a pipe and no regular file'):
        run()
    writer.cancel()


def test_a_name_too_long_for_a_folder_is_one_line():
    name = 'n' * 300
    directory = run_directory.RunDirectory(name)
    opened = directory.opened(
        _Settings(output_dir=name),
        {},
        resumable=frozenset(),
        overwrite=False,
        makes=(),
    )
    with pytest.raises(errors.DiskError, match=r'^--output_dir=n+: File name too long'):
        opened.__enter__()
