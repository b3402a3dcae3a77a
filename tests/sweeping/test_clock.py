"""Seconds of cells, over killed sessions too."""

import json

import pytest

from ppjax.sweeping import clock


def _status(cell, started, updated):
    cell.mkdir(exist_ok=True, parents=True)
    text = json.dumps({'started': f'2026-01-01T{started}', 'updated': updated})
    (cell / 'status.json').write_text(text)


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0.4, '0 s'), (89, '89 s'), (90, '2 min'), (2460, '41 min'), (12240, '3.4 h')],
)
def test_durations(seconds, text):
    assert clock.duration(seconds) == text


def test_a_killed_session_counts_once(tmp_path):
    path, cell = tmp_path / 'sessions.json', tmp_path / 'cell'
    first = clock.Clock(path)
    first.start(cell)
    assert first.mean() is None
    # Killed: nothing but the cell's own status.json tells of it.
    _status(cell, '10:00:00+00:00', '2026-01-01T10:00:50+00:00')
    for _ in range(2):  # The second time it is killed before it writes a status.
        again = clock.Clock(path)
        again.start(cell)
        assert again.seconds('cell') == 50
    _status(cell, '11:00:00+00:00', '2026-01-01T11:00:30+00:00')
    again.stop(cell)
    assert 50 <= again.seconds('cell') < 51
    assert again.mean() == again.seconds('cell')


def test_what_comes_after_a_cell_is_done_does_not_count(tmp_path):
    path, cell = tmp_path / 'sessions.json', tmp_path / 'cell'
    first = clock.Clock(path)
    first.start(cell)
    _status(cell, '10:00:00+00:00', '2026-01-01T10:00:50+00:00')
    first.stop(cell)
    took = first.seconds('cell')
    _status(cell, '12:00:00+00:00', '2026-01-01T12:30:00+00:00')
    later = clock.Clock(path)
    later.start(cell)
    assert later.seconds('cell') == took
    later.stop(cell)
    assert clock.Clock(path).seconds('cell') == took
