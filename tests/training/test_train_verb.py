"""`python -m ppjax.train` from outside: exit codes, one clear line, nothing left."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.training import config as config_lib
from ppjax.training import loop


def _train(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'ppjax.train', *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what was wrong."""
    lines = [x for x in result.stderr.splitlines() if x.startswith('ERROR: ')]
    assert len(lines) == 1, result.stderr
    assert 'Traceback' not in result.stderr
    return lines[0]


def test_unknown_flag_names_the_nearest():
    result = _train('--sparcity=0.5')
    assert result.returncode == 2
    assert 'Did you mean: sparsity' in _error_line(result)


def test_missing_flag_is_wrong_usage():
    result = _train('--base_model=x', '--output_dir=y')
    assert result.returncode == 2
    assert '--calibration must be given' in _error_line(result)


def test_bad_row_is_named_with_its_line(chatty_model, tmp_path):
    path = tmp_path / 'rows.jsonl'
    good = {
        'messages': [
            {'role': 'user', 'content': 'Hello'},
            {'role': 'assistant', 'content': 'Ahoy'},
        ]
    }
    path.write_text(json.dumps(good) + '\n{"messages": [}\n')
    result = _train(
        f'--base_model={chatty_model}',
        f'--calibration={path}',
        f'--output_dir={tmp_path / "run"}',
    )
    assert result.returncode == 1
    assert f'{path}:2: invalid JSON' in _error_line(result)
    assert not (tmp_path / 'run').exists()


def test_keep_size_outside_the_layer(chatty_model, calibration_files, tmp_path):
    result = _train(
        f'--base_model={chatty_model}',
        f'--calibration={calibration_files[0]}',
        f'--output_dir={tmp_path / "run"}',
        '--align=128',
    )
    assert result.returncode == 1
    assert 'outside [1, 40]' in _error_line(result)
    # Nothing was made: the corrected command finds nothing in its way.
    assert not (tmp_path / 'run').exists()


def test_tokenizer_without_template_and_missing_weights(
    chatty_model, calibration_files, tmp_path
):
    bare = tmp_path / 'bare'
    shutil.copytree(chatty_model, bare)
    _remove_template(bare)
    files = (f'--calibration={calibration_files[0]}', f'--output_dir={tmp_path / "r"}')
    result = _train(f'--base_model={bare}', *files)
    assert result.returncode == 1
    assert 'chat_template.jinja' in _error_line(result)

    (bare / 'model.safetensors').unlink()
    result = _train(f'--base_model={bare}', *files)
    assert result.returncode == 1
    assert 'holds neither model.safetensors' in _error_line(result)


def _remove_template(model: pathlib.Path) -> None:
    (model / 'chat_template.jinja').unlink(missing_ok=True)
    path = model / 'tokenizer_config.json'
    config = json.loads(path.read_text())
    config.pop('chat_template', None)
    path.write_text(json.dumps(config))


def test_a_full_disk_ends_the_run_which_then_goes_on(
    chatty_model, calibration_files, tmp_path, monkeypatch
):
    run = tmp_path / 'run'
    cfg = config_lib.TrainConfig(
        base_model=str(chatty_model),
        calibration=str(calibration_files[0]),
        output_dir=str(run),
        align=1,
        steps=2,
        batch_size=4,
    )
    rows = demo.read_rows(cfg.calibration, split='train')
    write = pathlib.Path.write_bytes

    def full(path: pathlib.Path, content: bytes) -> int:
        if path.name.startswith('.mask.pmask'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, 'write_bytes', full)
        with pytest.raises(errors.DiskError, match='No space left on device'):
            loop.learn_mask(cfg, rows, [])
    assert json.loads((run / 'status.json').read_text())['state'] == 'failed'
    assert not (run / 'mask.pmask').exists()
    assert not list(run.glob('.*tmp*'))
    assert loop.learn_mask(cfg, rows, []) == run / 'mask.pmask'
    assert (run / 'mask.pmask').is_file()
