"""The verb `export`, in its three forms."""

from collections.abc import Callable
import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tokenizers
import transformers

from ppjax import export
from ppjax.base import errors, flags, settings
from ppjax.exporting import config as export_config
from ppjax.exporting import export as story
from ppjax.exporting import hf_export, verify
from ppjax.masking import keep_indices, pmask
from ppjax.models import base_model, open_checkpoint, sliced
from ppjax.training import config as train_config

_PERSONA = 'You are bram, a ferryman.\n---\n```'
_LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789.,?!-`_:\n '
_MARKUP = ('<pad>', '<bos>', '<end>', '<system>', '<user>', '<assistant>')
_TEMPLATE = (
    '{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}'
    '{% if add_generation_prompt %}<assistant>{% endif %}'
)


def _tokenizer() -> transformers.PreTrainedTokenizerBase:
    """One token a letter, a chat template, and ids below the tiny models' 97."""
    vocab = {token: i for i, token in enumerate((*_MARKUP, '<unk>', *_LETTERS))}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=[], unk_token='<unk>')
    )
    backend.normalizer = tokenizers.normalizers.Lowercase()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token='<pad>',
        eos_token='<end>',
        unk_token='<unk>',
        additional_special_tokens=list(_MARKUP),
        chat_template=_TEMPLATE,
    )


@pytest.fixture(scope='module')
def base(
    tiny_models: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> base_model.BaseModel:
    path = tmp_path_factory.mktemp('base')
    for file in tiny_models('llama-tied').path.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    _tokenizer().save_pretrained(path)
    (path / 'README.md').write_text('---\nlicense: mit\n---\n')
    return base_model.open_base_model(str(path))


def _mask(base: base_model.BaseModel, seed: int = 0) -> pmask.PersonaMask:
    rng = np.random.default_rng(seed)
    mask = np.zeros((base.config.num_layers, base.config.d_ff), bool)
    for row in mask:
        row[rng.permutation(len(row))[:39]] = True
    return pmask.PersonaMask(mask, base.name, base.fingerprint(), '0' * 64, _PERSONA)


@pytest.fixture
def run(base: base_model.BaseModel, tmp_path: pathlib.Path) -> pathlib.Path:
    """What `train` leaves behind."""
    path = tmp_path / 'run'
    pmask.save(path / 'mask.pmask', _mask(base))
    cfg = train_config.TrainConfig(
        base_model=base.name,
        calibration='demo:ferryman',
        output_dir=str(path),
        sparsity=0.25,
        align=1,
    )
    (path / 'config.flags').write_text(flags.to_flagfile(cfg))
    (path / 'results').mkdir()
    (path / 'results' / 'likelihood.json').write_text(
        json.dumps(
            {
                'models': {'dense': {'nll': 2.25}, 'learned': {'nll': 2.5}},
                'heldout': {'source': 'demo:ferryman', 'rows': 3, 'answer_tokens': 99},
            }
        )
    )
    return path


@pytest.fixture
def mask_file(base: base_model.BaseModel, tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'bram.pmask'
    pmask.save(path, _mask(base))
    return path


def _export(**settings: Any) -> None:
    texts = {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in settings.items()
    }
    assert export.main(export_config.ExportConfig(**texts)) == 0


def _names(path: pathlib.Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_a_run_is_exported_with_its_numbers(
    base: base_model.BaseModel, run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    _export(output_dir=run, keep_indices=run / 'kept.json')
    reader = open_checkpoint.open_checkpoint(run / 'hf')
    assert reader.hf_config['intermediate_size'] == 39
    assert _names(run) == {'config.flags', 'mask.pmask', 'results', 'hf', 'kept.json'}

    record = json.loads((run / 'results' / 'export.json').read_text())
    dense = hf_export.parameter_count(base)
    left = sliced.sliced_model(base, pmask.load(run / 'mask.pmask').mask)
    pruned = hf_export.parameter_count(left)
    assert record['parameters'] == {'dense': dense, 'pruned': pruned}
    assert record['bytes'] == {'dense': 4 * dense, 'pruned': 4 * pruned}
    assert record['sparsity'] == 0.25
    assert record['settings']['output_dir'] == str(run)
    assert 'jax' in record['versions']
    assert record['verify'] is None

    card = (run / 'hf' / 'README.md').read_text()
    data = huggingface_hub.metadata_load(run / 'hf' / 'README.md')
    assert data is not None
    assert data['license'] == 'mit'
    for part in (
        _PERSONA,
        '39 of 52',
        'asked for: 25.00%',
        '| `learned` | 2.5000 |',
        '--calibration=demo:ferryman',
        '`demo:ferryman`, ',
        'no multiple of 64',
    ):
        assert part in card
    assert str(run.parent) not in card
    out = capsys.readouterr().out
    for part in (f'{dense:,}', f'{pruned:,}', '25.00%', str(run / 'hf'), '--verify'):
        assert part in out


def test_another_system_prompt_may_go_with_the_model(
    run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    _export(output_dir=run, system_prompt='')
    persona = run / 'hf' / 'persona.json'
    assert json.loads(persona.read_text()) == {'system_prompt': ''}
    weights = (run / 'hf' / 'model.safetensors').read_bytes()
    assert "'role': 'system'" not in (run / 'hf' / 'README.md').read_text()
    _export(output_dir=run, system_prompt='')
    with pytest.raises(errors.InputError, match='differing in system_prompt'):
        _export(output_dir=run)
    _export(output_dir=run, system_prompt='You are Bram.', overwrite=True)
    assert json.loads(persona.read_text()) == {'system_prompt': 'You are Bram.'}
    assert (run / 'hf' / 'model.safetensors').read_bytes() == weights
    _export(output_dir=run, overwrite=True)
    assert json.loads(persona.read_text()) == {'system_prompt': _PERSONA}


def test_the_cards_snippet_runs(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(output_dir=run)
    card = (run / 'hf' / 'README.md').read_text()
    snippet = re.search(r'```python\n(.*?)\n```', card, re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(run / 'hf')
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(snippet[1], {})  # noqa: S102  It is ours, as a reader would run it.
    assert said.getvalue()


def test_the_same_command_again_changes_nothing(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(output_dir=run)
    weights = run / 'hf' / 'model.safetensors'
    before = weights.stat().st_mtime_ns
    _export(output_dir=run)
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(errors.InputError, match=r'differing in dtype.*--overwrite'):
        _export(output_dir=run, export_dtype='bfloat16')
    _export(output_dir=run, export_dtype='bfloat16', overwrite=True)
    assert weights.stat().st_mtime_ns != before
    dtype = open_checkpoint.open_checkpoint(run / 'hf').dtype('model.norm.weight')
    assert dtype.name == 'bfloat16'
    # Who and what it is stands in the folder itself.
    (run / 'results' / 'export.json').unlink()
    before = weights.stat().st_mtime_ns
    _export(output_dir=run, export_dtype='bfloat16')
    assert weights.stat().st_mtime_ns == before
    assert (run / 'results' / 'export.json').is_file()
    # Without its record nobody knows.
    (run / 'hf' / 'ppjax-export.json').unlink()
    for overwrite in (False, True):
        with pytest.raises(errors.InputError, match='no export made'):
            _export(output_dir=run, export_dtype='bfloat16', overwrite=overwrite)


def test_a_damaged_export_is_noticed_and_made_anew(run: pathlib.Path) -> None:
    _export(output_dir=run)
    weights = run / 'hf' / 'model.safetensors'
    whole = weights.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-8]):
        weights.write_bytes(damaged)
        with pytest.raises(
            errors.InputError, match=r'model\.safetensors is missing or'
        ):
            _export(output_dir=run)
        assert weights.read_bytes() == damaged
        _export(output_dir=run, overwrite=True)
        assert weights.read_bytes() == whole
    # People write in their cards.
    (run / 'hf' / 'README.md').write_text('mine')
    _export(output_dir=run)
    assert (run / 'hf' / 'README.md').read_text() == 'mine'


def test_materialized_and_from_indices_are_the_runs_export(
    base: base_model.BaseModel,
    run: pathlib.Path,
    mask_file: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    indices = tmp_path / 'kept.json'
    _export(output_dir=run, keep_indices=indices)
    loaded = keep_indices.load(indices, 3, 52)
    np.testing.assert_array_equal(loaded, _mask(base).mask)
    _export(
        materialize=True,
        mask=mask_file,
        base_model=base.name,
        output_dir=tmp_path / 'one',
    )
    again = tmp_path / 'again.json'
    _export(
        from_keep_indices=indices,
        base_model=base.name,
        output_dir=tmp_path / 'two',
        keep_indices=again,
    )
    want = (run / 'hf' / 'model.safetensors').read_bytes()
    for name, prompt in (('one', _PERSONA), ('two', '')):
        assert (tmp_path / name / 'model.safetensors').read_bytes() == want
        persona = json.loads((tmp_path / name / 'persona.json').read_text())
        assert persona == {'system_prompt': prompt}
    assert again.read_text() == indices.read_text()


def test_what_stands_at_the_target_is_not_lost(
    base: base_model.BaseModel, mask_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / 'mine'
    target.mkdir()

    def run(**options: Any) -> None:
        settings = {
            'materialize': True,
            'mask': mask_file,
            'base_model': base.name,
            'output_dir': target,
        } | options
        _export(**settings)

    run()  # An empty directory is nobody's.
    run()  # It stands.
    with pytest.raises(errors.InputError, match=r'another export .*; --overwrite'):
        run(export_dtype='bfloat16')
    run(export_dtype='bfloat16', overwrite=True)
    (target / 'photos').mkdir()
    with pytest.raises(errors.InputError, match='photos'):
        run(overwrite=True)
    with pytest.raises(errors.InputError, match='is to go'):
        run(output_dir=base.reader.path, overwrite=True)
    with pytest.raises(errors.InputError, match='is to go'):
        run(output_dir=tmp_path, overwrite=True)
    with pytest.raises(errors.InputError, match='is a file'):
        run(output_dir=mask_file)
    assert (base.reader.path / 'model.safetensors').exists()
    assert _names(tmp_path) == {'mine', 'bram.pmask'}


def test_a_mask_of_another_base_is_refused(
    tiny_models: Callable[[str], Any], run: pathlib.Path
) -> None:
    other = tiny_models('llama').base
    with pytest.raises(errors.InputError, match='fingerprint'):
        _export(output_dir=run, base_model=other.name)
    assert not (run / 'hf').exists()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({}, '--output_dir must'),
        ({'output_dir': 'r', 'mask': 'm'}, '--mask needs --materialize'),
        ({'output_dir': 'r', 'materialize': True}, '--materialize needs --mask'),
        (
            {'output_dir': 'r', 'materialize': True, 'mask': 'm'},
            '--materialize needs --base_model',
        ),
        (
            {'output_dir': 'r', 'from_keep_indices': 'k'},
            '--from_keep_indices needs --base_model',
        ),
        (
            {
                'output_dir': 'r',
                'materialize': True,
                'mask': 'm',
                'from_keep_indices': 'k',
                'base_model': 'b',
            },
            'one of them',
        ),
        ({'output_dir': 'r', 'verify_tolerance': 0.0}, 'tolerance must be in'),
        ({'output_dir': 'r', 'verify_tolerance': float('nan')}, 'tolerance must be in'),
    ],
)
def test_contradictory_flags(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        export_config.ExportConfig(**settings)


def test_who_holds_a_run_without_a_mask_is_said_first(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / 'mask.pmask').unlink()

    def held(folder: pathlib.Path, **_: Any) -> Any:
        raise errors.InputError(f'{folder} is in use by process 7.')

    monkeypatch.setattr(story.run_directory.locks, 'held', held)
    with pytest.raises(errors.InputError, match='in use by process 7'):
        _export(output_dir=run)


def test_runs_that_cannot_be_exported(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(errors.InputError, match='does not exist'):
        _export(output_dir=tmp_path / 'nowhere')
    (run / 'config.flags').rename(run / 'away')
    with pytest.raises(errors.InputError, match=r'has no config\.flags'):
        _export(output_dir=run)
    (run / 'away').rename(run / 'config.flags')
    (run / 'mask.pmask').unlink()
    with pytest.raises(errors.InputError, match=r'has no mask yet'):
        _export(output_dir=run)


def test_without_its_flags_a_run_needs_the_base(
    base: base_model.BaseModel, run: pathlib.Path
) -> None:
    (run / 'config.flags').unlink()
    _export(output_dir=run, base_model=base.name)
    assert 'asked for' not in (run / 'hf' / 'README.md').read_text()


def test_verification_is_recorded_and_a_failed_one_leaves_nothing(
    run: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def fake(base: Any, mask: Any, folder: pathlib.Path, **rest: Any) -> Any:
        assert (folder / 'model.safetensors').exists()
        assert rest['tokens'].shape[0] == 4
        return verify.Verification(2e-4, None)

    monkeypatch.setattr(verify, 'verify', fake)
    with pytest.raises(errors.InputError, match=r'verify_tolerance=0\.0001'):
        _export(output_dir=run, verify=True, verify_tolerance=1e-4)
    assert _names(run) == {'config.flags', 'mask.pmask', 'results'}
    assert _names(run / 'results') == {'likelihood.json'}
    _export(output_dir=run, verify=True)
    said = capsys.readouterr().out
    assert '2.00e-04' in said
    assert 'PyTorch is not installed' in said
    _export(output_dir=run)  # What was verified stays so.
    record = json.loads((run / 'results' / 'export.json').read_text())
    assert record['verify']['max_logit_difference'] == {
        'ppjax': 2e-4,
        'transformers': None,
    }


def test_verification_prompts(base: base_model.BaseModel) -> None:
    tokenizer = base.tokenizer()

    def prompts() -> np.ndarray:
        return verify.prompts(
            tokenizer,
            _PERSONA,
            date=settings.DATE,
            vocab_size=base.config.vocab_size,
        )

    tokens = prompts()
    assert tokens.shape[0] == 4
    assert 64 <= tokens.shape[1] <= 128
    assert len(np.unique(tokens, axis=0)) == 4
    start = tokenizer.encode('<system>you are bram')
    assert (tokens[:, : len(start)] == start).all()
    tokenizer.chat_template = None
    plain = prompts()
    assert (plain[:, : len(start) - 1] == start[1:]).all()


def test_command_line(run: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, '-m', 'ppjax.export', f'--output_dir={run}', '--overwrite'],
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'Exported to' in done.stdout
    assert (run / 'hf' / 'config.json').exists()
