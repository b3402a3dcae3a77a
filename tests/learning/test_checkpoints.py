"""A damaged newest checkpoint makes way for the one before."""

import errno
import os
import pathlib
import shutil

from etils import epath
import jax
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.learning import checkpoints as checkpoints_lib


def _state(value: float) -> dict[str, jax.Array]:
    return {'scores': jax.numpy.full((3, 5), value), 'count': jax.numpy.int32(value)}


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run with checkpoints of steps 2 and 4."""
    checkpoints = checkpoints_lib.Checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.save(step, _state(step))
        checkpoints.wait()
    checkpoints.close()
    return tmp_path


def _newest(run: pathlib.Path) -> tuple[int, dict[str, jax.Array] | None]:
    checkpoints = checkpoints_lib.Checkpoints(run)
    try:
        found = checkpoints.newest(jax.eval_shape(lambda: _state(0)))
        # What comes after has a place.
        checkpoints.save(4, _state(4))
        checkpoints.wait()
        return found
    finally:
        checkpoints.close()


def test_the_newest_is_taken(saved):
    step, state = _newest(saved)
    assert step == 4
    np.testing.assert_array_equal(state['scores'], np.full((3, 5), 4.0))


def _cut(path: pathlib.Path) -> None:
    for file in path.rglob('*'):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _without_data(path: pathlib.Path) -> None:
    for file in (path / 'default').rglob('*'):
        if file.is_file() and not file.name.startswith('_'):
            file.unlink()


def _without_metadata(path: pathlib.Path) -> None:
    for file in path.rglob('_*'):
        if file.is_file():
            file.unlink()


def _without_item(path: pathlib.Path) -> None:
    shutil.rmtree(path / 'default')


@pytest.mark.parametrize(
    'damage', [_without_item, _cut, _without_data, _without_metadata]
)
def test_a_damaged_one_is_said_and_the_one_before_taken(saved, damage, capsys):
    damage(saved / 'checkpoints' / '4')
    step, state = _newest(saved)
    assert step == 2
    np.testing.assert_array_equal(state['scores'], np.full((3, 5), 2.0))
    assert 'going on from the one before' in capsys.readouterr().err
    names = {path.name for path in (saved / 'checkpoints').iterdir()}
    assert names == {'2', '4', '4.damaged'}


def test_one_of_another_version_is_not_lost(saved):
    checkpoints = checkpoints_lib.Checkpoints(saved)
    try:
        other = jax.eval_shape(lambda: {'scores': jax.numpy.zeros(2)})
        assert checkpoints.newest(other) == (0, None)
    finally:
        checkpoints.close()
    for step in (2, 4):
        folder = saved / 'checkpoints' / f'{step}.damaged'
        folder.rename(folder.with_name(str(step)))
    assert _newest(saved)[0] == 4


def test_without_a_whole_one_the_run_starts_anew(saved):
    for step in (2, 4):
        _cut(saved / 'checkpoints' / str(step))
    assert _newest(saved) == (0, None)


def test_a_failed_save_is_one_error_and_no_traceback(tmp_path, monkeypatch, caplog):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints = checkpoints_lib.Checkpoints(tmp_path)
    # Orbax's threads write their own records by it.
    monkeypatch.setattr(epath.Path, 'write_text', full)
    with pytest.raises(errors.DiskError, match=r'No space left .* one before'):
        checkpoints.save(2, _state(2))
        checkpoints.wait()
    assert not [record for record in caplog.records if record.exc_info]
