"""Locks where a lock file is left over, or the disk knows none."""

import errno
import fcntl
import os

import pytest

from ppjax.base import locks


@pytest.mark.parametrize('text', ['', '[]', '{"pid": 1}', 'no JSON'])
def test_a_lock_file_of_a_dead_process_is_taken_whatever_it_says(tmp_path, text):
    (tmp_path / locks.NAME).write_text(text)
    with locks.held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with locks.held(tmp_path):
        pass
    assert 'cannot be locked' in capsys.readouterr().err
