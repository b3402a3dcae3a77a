"""A run directory as later commands find it: whole, unfinished, damaged, or none."""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest

from ppjax.base import errors, flags
from ppjax.masking import pmask
from ppjax.training import config
from ppjax.training.trained_run import TrainedRun


def _made(path: pathlib.Path, **settings: object) -> pathlib.Path:
    path.mkdir()
    given = {
        'base_model': 'tiny',
        'calibration': 'demo:ferryman',
        'output_dir': str(path),
    } | settings
    cfg = config.TrainConfig(**given)
    (path / 'config.flags').write_text(flags.to_flagfile(cfg))
    return path


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    return _made(tmp_path / 'run', heldout='demo:ferryman')


def _learned(run: pathlib.Path) -> None:
    mask = np.arange(6).reshape(2, 3) % 3 < 2
    pmask.save(
        run / 'mask.pmask',
        pmask.PersonaMask(mask, 'tiny', 'ab', hashlib.sha256(b'').hexdigest()),
    )


def _refused(path: pathlib.Path) -> str:
    with pytest.raises(errors.InputError) as caught:
        TrainedRun.open_finished(path)
    message = str(caught.value)
    assert '\n' not in message
    assert f'--run={path}' in message
    return message


def test_what_a_run_holds(run):
    _learned(run)
    found = TrainedRun.open_finished(run)
    assert found.settings.calibration == 'demo:ferryman'
    assert found.mask().keep == 2
    assert found.calibration_count() > len(found.heldout_rows()) > 0
    assert found.exported is None
    assert found.result('likelihood') is None
    (run / 'hf').mkdir()
    (run / 'hf' / 'config.json').write_text('{}')
    assert found.exported == run / 'hf'


def test_folders_that_are_no_finished_run(run, tmp_path):
    assert 'does not exist' in _refused(tmp_path / 'none')
    assert 'no run directory' in _refused(tmp_path)
    assert TrainedRun.open(run).settings.heldout == 'demo:ferryman'
    assert 'has no mask yet' in _refused(run)
    (run / 'config.flags').write_text('--sparcity=0.5\n')
    assert 'sparcity' in _refused(run)
    (run / 'config.flags').write_bytes(b'\xff\xfe\x00')
    assert 'damaged' in _refused(run)


def test_a_mask_without_settings_is_nobodys(run):
    _learned(run)
    (run / 'config.flags').unlink()
    assert 'no run directory' in _refused(run)


def test_a_run_of_several_personas_names_them(tmp_path):
    run = _made(tmp_path / 'many', calibration='{persona}.jsonl', personas='Ada,Bram')
    assert f'{run}/personas/Ada' in _refused(run)


@pytest.mark.parametrize('text', ['[1]', '{"models": ', '"x"'])
def test_damaged_results_are_named(run, text):
    (run / 'results').mkdir()
    file = run / 'results' / 'likelihood.json'
    file.write_text(json.dumps({'models': {}}))
    assert TrainedRun.open(run).result('likelihood') == {'models': {}}
    file.write_text(text)
    with pytest.raises(errors.InputError, match=r'likelihood\.json is damaged'):
        TrainedRun.open(run).result('likelihood')


def test_rows_are_found_where_a_moved_run_has_them(tmp_path):
    other = tmp_path / 'other.jsonl'
    other.write_text('')
    run = _made(
        tmp_path / 'run',
        calibration=str(tmp_path / 'run' / 'calibration' / 'train.jsonl'),
        heldout=str(other),
    )
    (run / 'calibration').mkdir()
    for name in ('train', 'test'):
        (run / 'calibration' / f'{name}.jsonl').write_text('')
    # Rows of other settings lie beside those that were read.
    assert TrainedRun.open(run).heldout_source == str(other)
    moved = tmp_path / 'moved'
    shutil.copytree(run, moved)
    found = TrainedRun.open(moved)
    assert found.calibration_source == str(moved / 'calibration' / 'train.jsonl')
    other.unlink()
    assert found.heldout_source == str(moved / 'calibration' / 'test.jsonl')
