"""`python -m ppjax.train` from outside: exit codes, one clear line, nothing left."""

import json
import pathlib
import shutil
import subprocess
import sys


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


def test_full_disk_is_one_line(chatty_model, calibration_files, tmp_path, monkeypatch):
    """The mask cannot be written: the run fails plainly and can be gone on with."""
    run = tmp_path / 'run'
    command = (
        f'--base_model={chatty_model}',
        f'--calibration={calibration_files[0]}',
        f'--output_dir={run}',
        '--align=1',
        '--steps=2',
        '--batch_size=4',
    )
    # A module that is loaded first makes writing the mask fail as a full disk does.
    hook = tmp_path / 'site' / 'sitecustomize.py'
    hook.parent.mkdir()
    hook.write_text(
        'import errno, os, pathlib\n'
        'write = pathlib.Path.write_bytes\n'
        'def full(path, content):\n'
        '    if path.name.startswith(".mask.pmask"):\n'
        '        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n'
        '    return write(path, content)\n'
        'pathlib.Path.write_bytes = full\n'
    )
    monkeypatch.setenv('PYTHONPATH', str(hook.parent))
    result = _train(*command)
    assert result.returncode == 1
    assert 'No space left on device' in _error_line(result)
    assert not (run / 'mask.pmask').exists()
    assert not list(run.glob('.*tmp*'))
    monkeypatch.delenv('PYTHONPATH')
    assert _train(*command).returncode == 0
    assert (run / 'mask.pmask').is_file()
