"""Files of JSON lines that are no files."""

import os

import pytest

from ppjax.base import errors, json_lines


@pytest.mark.parametrize(
    'spoil',
    [
        os.mkfifo,
        lambda path: path.mkdir(),
        lambda path: path.symlink_to('/dev/zero'),
        lambda path: path.symlink_to(path),
    ],
)
def test_what_could_keep_a_reader_waiting_is_refused(tmp_path, spoil):
    path = tmp_path / 'log.jsonl'
    spoil(path)
    with pytest.raises(errors.InputError, match=r'no regular file|symbolic links'):
        json_lines.AppendLog(path)
    with pytest.raises(
        errors.InputError, match=r'Rows .*(no regular file|symbolic links)'
    ):
        list(json_lines.read(path, 'Rows'))


def test_half_a_surrogate_pair_is_kept_as_its_escape(tmp_path):
    path = tmp_path / 'log.jsonl'
    log = json_lines.AppendLog(path)
    log.append({'text': 'a\ud800é'})
    log.close()
    assert path.read_text('utf-8') == '{"text": "a\\ud800é"}\n'
    assert json_lines.AppendLog(path).entries == [{'text': 'a\ud800é'}]
