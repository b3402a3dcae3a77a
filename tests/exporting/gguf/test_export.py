"""`export --gguf`: from runs, masks, directories and GGUF files."""

from collections.abc import Callable
import errno
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ppjax import export
from ppjax.base import errors, flags, run_directory
from ppjax.exporting import config as export_config
from ppjax.exporting.gguf import llama_cpp, writing
from ppjax.masking import pmask
from ppjax.models import base_model, gguf_reader, gguf_tokenizer, sliced
from ppjax.training import config as train_config

_PERSONA = 'You are Bram, a ferryman.'
_KEEP = 64


@pytest.fixture(autouse=True)
def _without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp says is tested elsewhere."""
    monkeypatch.setattr(llama_cpp, 'is_installed', lambda: False)


def _mask(base: base_model.BaseModel) -> np.ndarray:
    mask = np.zeros((base.config.num_layers, base.config.d_ff), bool)
    for seed, row in enumerate(mask):
        row[np.random.default_rng(seed).permutation(len(row))[:_KEEP]] = True
    return mask


def _save(path: pathlib.Path, base: base_model.BaseModel) -> pathlib.Path:
    own = pmask.PersonaMask(
        _mask(base), base.name, base.fingerprint(), '0' * 64, _PERSONA
    )
    pmask.save(path, own)
    return path


@pytest.fixture
def base(tiny_chat: Callable[[str], base_model.BaseModel]) -> base_model.BaseModel:
    return tiny_chat('qwen2')


@pytest.fixture
def run(base: base_model.BaseModel, tmp_path: pathlib.Path) -> pathlib.Path:
    """What `train` leaves behind."""
    path = tmp_path / 'ferryman'
    _save(path / 'mask.pmask', base)
    cfg = train_config.TrainConfig(
        base_model=base.name,
        calibration='demo:ferryman',
        output_dir=str(path),
        sparsity=0.25,
        align=1,
    )
    (path / 'config.flags').write_text(flags.to_flagfile(cfg))
    marker = {'format': 'ppjax.run.v1', 'makes': ['mask.pmask']}
    (path / run_directory.MARKER).write_text(json.dumps(marker))
    return path


def _export(**settings: Any) -> None:
    texts = {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in settings.items()
    }
    assert export.main(export_config.ExportConfig(**texts)) == 0


def _names(path: pathlib.Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def _assert_pruned(path: pathlib.Path, base: base_model.BaseModel) -> None:
    """The file holds the channels that the mask keeps."""
    reader = gguf_reader.GgufReader(path)
    want = sliced.sliced_model(base, _mask(base)).reader
    assert reader.hf_config['intermediate_size'] == _KEEP
    for name in reader.names():
        np.testing.assert_array_equal(reader.read(name), want.read(name))


def test_a_runs_model_goes_beside_it(
    base: base_model.BaseModel, run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    _export(output_dir=run, gguf='f32,q8_0', verify=False)
    stem = f'{pathlib.Path(base.name).name}-ferryman'
    files = {f'{stem}-F32.gguf', f'{stem}-Q8_0.gguf'}
    assert _names(run / 'gguf') == {*files, 'Modelfile'}
    assert (run / 'hf' / 'config.json').is_file()
    _assert_pruned(run / 'gguf' / f'{stem}-F32.gguf', base)
    modelfile = (run / 'gguf' / 'Modelfile').read_text()
    assert f'FROM ./{stem}-F32.gguf' in modelfile
    assert _PERSONA in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    record = json.loads((run / 'results' / 'export.json').read_text())
    assert [entry['file'] for entry in record['gguf']] == sorted(files)
    assert record['gguf'][0]['verify'] is None
    # A new run in this folder may discard them.
    marker = json.loads((run / run_directory.MARKER).read_text())
    assert {f'gguf/{name}' for name in files} < set(marker['makes'])
    out = capsys.readouterr().out
    for part in ('llama-quantize', 'Q4_K_M', 'ollama create ferryman', '--align=256'):
        assert part in out


def test_what_stands_stays_and_what_is_asked_for_later_comes_to_it(
    base: base_model.BaseModel, run: pathlib.Path
) -> None:
    _export(output_dir=run, gguf='q8_0')
    [first] = (run / 'gguf').glob('*.gguf')
    before = first.stat().st_mtime_ns
    _export(output_dir=run, gguf='q4_0,q8_0')
    assert first.stat().st_mtime_ns == before
    assert len(list((run / 'gguf').glob('*.gguf'))) == 2
    _export(output_dir=run, gguf='q8_0')
    modelfile = (run / 'gguf' / 'Modelfile').read_text()
    assert f'\nFROM ./{first.name}\n' in modelfile
    assert f'\n# FROM ./{first.name.replace("Q8", "Q4")}\n' in modelfile
    # Another prompt is another file.
    with pytest.raises(errors.InputError, match=r'of another model.*--overwrite'):
        _export(model=run / 'hf', gguf='q8_0', system_prompt='You are Ann.')
    whole = first.read_bytes()
    first.write_bytes(whole[:-9])
    with pytest.raises(errors.InputError, match=r'or damaged; --overwrite'):
        _export(output_dir=run, gguf='q8_0')
    # A header that is whole says nothing of what comes after it.
    first.write_bytes(whole[:-9] + bytes(9))
    _export(output_dir=run, gguf='q8_0', overwrite=True)
    assert first.read_bytes() == whole


def test_a_mask_and_a_directory_and_a_gguf_base_give_the_same_weights(
    base: base_model.BaseModel, tmp_path: pathlib.Path
) -> None:
    mask = _save(tmp_path / 'bram.pmask', base)
    target = tmp_path / 'out' / 'bram-hf'
    _export(
        materialize=True,
        mask=mask,
        base_model=base.name,
        output_dir=target,
        gguf='f32',
    )
    name = pathlib.Path(base.name).name
    _assert_pruned(tmp_path / 'out' / 'gguf' / f'{name}-bram-F32.gguf', base)
    # A directory that anyone made of it, also a recovered one.
    _export(model=target, gguf='f32', output_dir=tmp_path / 'again', verify=True)
    [again] = (tmp_path / 'again' / 'gguf').glob('*.gguf')
    assert again.name == f'{name}-bram-hf-F32.gguf'
    _assert_pruned(again, base)
    # The dense model as GGUF, and the mask of that.
    _export(model=base.name, gguf='f32', output_dir=tmp_path / 'dense')
    [dense] = (tmp_path / 'dense' / 'gguf').glob('*.gguf')
    of_gguf = base_model.open_base_model(str(dense))
    mask = _save(tmp_path / 'again.pmask', of_gguf)
    _export(
        materialize=True,
        mask=mask,
        base_model=dense,
        output_dir=tmp_path / 'third' / 'hf',
        gguf='f32',
    )
    [third] = (tmp_path / 'third' / 'gguf').glob('*.gguf')
    _assert_pruned(third, base)
    tokenizer = gguf_tokenizer.tokenizer_from_gguf(gguf_reader.GgufReader(third))
    own = base.tokenizer()
    assert tokenizer.get_vocab() == own.get_vocab()
    assert tokenizer.chat_template == own.chat_template


def test_layers_of_a_global_budget(
    base: base_model.BaseModel, tmp_path: pathlib.Path
) -> None:
    kept = np.zeros((2, 96), bool)
    kept[0, 1::2] = kept[1, :20] = True
    identity = {
        'base_model': base.name,
        'base_fingerprint': base.fingerprint(),
        'persona_sha256': '0' * 64,
    }
    pmask.save(tmp_path / 'm.pmask', pmask.PersonaMask.of_widths(kept, **identity))
    _export(
        materialize=True,
        mask=tmp_path / 'm.pmask',
        base_model=base.name,
        output_dir=tmp_path / 'hf',
        gguf='f32',
        verify=True,
    )
    [file] = (tmp_path / 'gguf').glob('*.gguf')
    reader = gguf_reader.GgufReader(file)
    assert reader.metadata('deci.feed_forward_length') == [48, 20]
    for layer in range(2):
        name = f'model.layers.{layer}.mlp.down_proj.weight'
        want = base.reader.read(name)[:, kept[layer]]
        np.testing.assert_array_equal(reader.read(name)[:, : want.shape[1]], want)
        assert not reader.read(name)[:, want.shape[1] :].any()


def test_of_a_recovered_run_the_recovered_model_is_written(
    base: base_model.BaseModel, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _export(output_dir=run)
    record = run / 'hf' / 'ppjax-export.json'
    changed = json.loads(record.read_text())
    changed['identity'] = {'run_sha256': '1'}
    record.write_text(json.dumps(changed))
    _export(output_dir=run, gguf='f32')
    [file] = (run / 'gguf').glob('*.gguf')
    keys = gguf_reader.GgufReader(file).metadata('persona.identity')
    assert 'model_fingerprint' in keys
    _assert_pruned(file, base)


def test_a_card_gives_its_name_and_first_message(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    card = tmp_path / 'card.json'
    card.write_text(
        json.dumps(
            {
                'spec': 'chara_card_v2',
                'spec_version': '2.0',
                'data': {
                    'name': 'Old Bram!',
                    'description': '{{char}} rows a ferry.',
                    'first_mes': 'Step in, {{user}}. I am {{char}}.',
                },
            }
        )
    )
    _export(output_dir=run, gguf='f16', persona=card)
    [file] = (run / 'gguf').glob('*-Old-Bram-F16.gguf')
    greeting = gguf_reader.GgufReader(file).metadata('persona.greeting')
    assert greeting.endswith('I am Old Bram!.')
    modelfile = (run / 'gguf' / 'Modelfile').read_text()
    assert f'MESSAGE assistant """{greeting}"""' in modelfile


def test_a_full_disk_leaves_nothing(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        yield np.zeros((1, 32), np.uint8)
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(writing, 'stored_pieces', full)
    with pytest.raises(errors.DiskError, match='No space left'):
        _export(output_dir=run, gguf='f16')
    assert not list((run / 'gguf').iterdir())


@pytest.mark.parametrize(
    ('file', 'change', 'said'),
    [
        ('config.json', {'num_attention_heads': 2}, 'shape'),
        ('tokenizer_config.json', {'chat_template': '{% if %}'}, 'chat template'),
    ],
)
def test_what_has_no_place_in_gguf_leaves_nothing(
    model_folder: Callable[[str], pathlib.Path],
    file: str,
    change: dict[str, Any],
    said: str,
) -> None:
    folder = model_folder('qwen2')
    if 'chat_template' in change:
        (folder / 'chat_template.jinja').unlink(missing_ok=True)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | change))
    with pytest.raises(errors.InputError, match=said):
        _export(model=folder, gguf='f16')
    assert not (folder.parent / 'gguf').exists()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'output_dir': 'r', 'gguf': 'q4_k_m'}, "'q4_k_m' is not written"),
        ({'model': 'm'}, 'give --gguf=TYPE'),
        ({'model': 'm', 'gguf': 'f16', 'mask': 'x'}, '--mask has no meaning'),
        (
            {'model': 'm', 'gguf': 'f16', 'export_dtype': 'float16'},
            '--export_dtype has no meaning',
        ),
        ({'output_dir': 'r', 'persona': 'p'}, '--persona is of --gguf'),
        ({'gguf': 'f16'}, '--output_dir must'),
    ],
)
def test_contradictory_flags(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        export_config.ExportConfig(**settings)


def test_command_line(base: base_model.BaseModel, tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'ppjax.export', f'--model={base.name}'),
            *('--gguf=q8_0', f'--output_dir={tmp_path}'),
        ],
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '-Q8_0.gguf' in done.stdout
    assert len(list((tmp_path / 'gguf').glob('*-Q8_0.gguf'))) == 1
