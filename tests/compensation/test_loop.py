"""Whole runs on a tiny model: artefacts, resuming by layer, refusals, SIGTERM."""

import dataclasses
import json
import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ppjax import compensate, demo
from ppjax.base import errors
from ppjax.compensation import config, layers, loop
from ppjax.exporting import verify
from ppjax.masking import pmask
from ppjax.models import base_model, open_checkpoint
from ppjax.models import masks as masks_lib
from ppjax.recovery import config as recover_config
from ppjax.recovery import loop as recovery_loop
from ppjax.synthesis import rewrite_local, rewriting

_KEEP = 24


@pytest.fixture(scope='module')
def mask_file(
    chatty_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    base = base_model.open_base_model(str(chatty_model))
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 40), bool)
    for row in mask:
        row[rng.permutation(40)[:_KEEP]] = True
    file = tmp_path_factory.mktemp('mask') / 'mask.pmask'
    pmask.save(
        file,
        pmask.PersonaMask(
            mask=mask,
            base_model=str(chatty_model),
            base_fingerprint=base.fingerprint(),
            persona_sha256='0' * 64,
            system_prompt='You are Bram.',
            gains=np.linspace(0.5, 1.5, 2 * _KEEP, dtype=np.float16).reshape(2, _KEEP),
        ),
    )
    return file


@pytest.fixture
def settings(
    chatty_model: pathlib.Path,
    mask_file: pathlib.Path,
    calibration_files: Any,
    tmp_path: pathlib.Path,
) -> config.CompensateConfig:
    return config.CompensateConfig(
        base_model=str(chatty_model),
        mask=str(mask_file),
        calibration=str(calibration_files[0]),
        heldout=str(calibration_files[1]),
        output_dir=str(tmp_path / 'run'),
        batch_size=6,
        damping='0.01,1',
        verify=False,
    )


def _compensate(cfg: config.CompensateConfig) -> pathlib.Path | None:
    train = demo.read_rows(str(cfg.calibration), split='train')
    return loop.compensate(cfg, train, demo.read_rows(str(cfg.heldout), split='test'))


def _weights(run: Any) -> bytes:
    return (pathlib.Path(run) / 'hf' / 'model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def finished(
    chatty_model: pathlib.Path,
    mask_file: pathlib.Path,
    calibration_files: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> config.CompensateConfig:
    """The settings of an unbroken run, by the verb, verified."""
    cfg = config.CompensateConfig(
        base_model=str(chatty_model),
        mask=str(mask_file),
        calibration=str(calibration_files[0]),
        heldout=str(calibration_files[1]),
        output_dir=str(tmp_path_factory.mktemp('runs') / 'unbroken'),
        batch_size=6,
        damping='0.01,1',
    )
    assert compensate.main(cfg) == 0
    return cfg


def test_a_run_leaves_an_ordinary_directory_and_its_figures(
    finished: config.CompensateConfig, mask_file: pathlib.Path
) -> None:
    run = pathlib.Path(finished.output_dir)
    status = json.loads((run / 'status.json').read_text())
    assert (status['state'], status['stage'], status['step']) == (
        'done',
        'compensate',
        2,
    )
    assert not (run / 'refit').exists()
    found = json.loads((run / 'results' / 'compensation.json').read_text())
    assert list(found['models']) == ['dense', 'start', 'refitted']
    nll = {name: value['nll'] for name, value in found['models'].items()}
    assert nll['refitted'] < nll['start']
    assert found['verify']['max_logit_difference']['transformers'] < 1e-3
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(x['stage'], x['step']) for x in entries] == [
        ('compensate', 1),
        ('compensate', 2),
    ]
    for entry, layer in zip(entries, found['layers'], strict=True):
        assert entry['damping'] in (0.01, 1.0)
        assert entry['heldback_error'] == pytest.approx(layer['heldback_error'])
        assert entry['fit_error'] < entry['fit_error_before']
    card = (run / 'hf' / 'README.md').read_text()
    assert 'Channels kept: 24 of 40' in card
    assert '## Reconstruction' in card and '20 conversations of `train.jsonl`' in card
    assert f'| `refitted` | {nll["refitted"]:.4f} |' in card
    persona = json.loads((run / 'hf' / 'persona.json').read_text())
    assert persona == {'system_prompt': 'You are Bram.'}
    # Nothing else than these rows has changed, and they from where gains are folded in.
    base = base_model.open_base_model(str(finished.base_model))
    before = pmask.load_for(mask_file, base).pruned(base).reader
    after = open_checkpoint.open_checkpoint(run / 'hf')
    changed = {
        name.split('.', 3)[-1]
        for name in after.names()
        if not np.array_equal(before.read(name), after.read(name))
    }
    assert changed == {'mlp.down_proj.weight'}


def test_paused_and_resumed_run_is_bit_identical(
    settings: config.CompensateConfig,
    finished: config.CompensateConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = pathlib.Path(settings.output_dir)
    assert _compensate(dataclasses.replace(settings, stop_after=1)) is None
    assert json.loads((run / 'status.json').read_text())['state'] == 'paused'
    first = run / 'refit' / 'layer-0000.safetensors'
    written = first.stat().st_mtime_ns
    assert not (run / 'hf').exists()
    # The second time it is told in the middle of a layer, which is then done again.
    fit = layers.layer_fit.LayerFit.add

    def told(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(layers.layer_fit.LayerFit, 'add', told)
        assert _compensate(settings) is None
    assert first.stat().st_mtime_ns == written
    assert not (run / 'refit' / 'layer-0001.safetensors').exists()
    assert _compensate(settings) == run / 'hf'
    assert _weights(run) == _weights(finished.output_dir)
    ours, theirs = (
        (pathlib.Path(path) / 'metrics.jsonl').read_text()
        for path in (run, finished.output_dir)
    )
    assert ours == theirs


def test_finished_run_is_not_done_again(
    finished: config.CompensateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _weights(finished.output_dir)
    monkeypatch.setattr(layers.Layers, 'run', None)
    assert _compensate(finished) is not None
    assert _weights(finished.output_dir) == before
    for changes in ({'seed': 1}, {'damping': '1'}, {'target': 'ffn'}):
        [name] = changes
        with pytest.raises(errors.InputError, match=f'--{name}'):
            _compensate(dataclasses.replace(finished, **changes))


def test_a_bias_loads_in_transformers(settings: config.CompensateConfig) -> None:
    model = _compensate(dataclasses.replace(settings, bias=True))
    hf = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert hf.config.mlp_bias
    mlp = hf.model.layers[1].mlp
    assert mlp.down_proj.bias.abs().max() > 0 and not mlp.up_proj.bias.any()
    tokens = np.random.default_rng(1).integers(3, 999, (2, 19))
    with torch.inference_mode():
        theirs = hf.eval()(torch.tensor(tokens)).logits.numpy()
    ours = verify.masked_logits(
        base_model.open_base_model(str(model)),
        masks_lib.DENSE,
        tokens.astype(np.int32),
        dtype='float32',
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_recovery_starts_from_the_refitted_model(
    finished: config.CompensateConfig, tmp_path: pathlib.Path
) -> None:
    cfg = recover_config.RecoverConfig(
        model=f'{finished.output_dir}/hf',
        calibration=finished.calibration,
        heldout=finished.heldout,
        output_dir=str(tmp_path / 'recovered'),
        batch_size=4,
        micro_batches=1,
        steps=1,
        lora_rank=2,
        mesh='data:2,fsdp:4',
    )
    recovery_loop.recover(
        cfg,
        demo.read_rows(str(cfg.calibration), split='train'),
        demo.read_rows(str(cfg.heldout), split='test'),
    )
    before, after = (
        json.loads((pathlib.Path(run) / 'results' / name).read_text())['models']
        for run, name in (
            (finished.output_dir, 'compensation.json'),
            (cfg.output_dir, 'recovery.json'),
        )
    )
    assert after['start']['nll'] == pytest.approx(before['refitted']['nll'], abs=1e-4)
    card = (tmp_path / 'recovered' / 'hf' / 'README.md').read_text()
    assert '## Reconstruction' in card and '## Recovery finetuning' in card


def test_blocks_are_refused(
    settings: config.CompensateConfig, tmp_path: pathlib.Path
) -> None:
    base = base_model.open_base_model(str(settings.base_model))
    blocks = pmask.PersonaMask(
        mask=np.array([[True, False]]),
        base_model='x',
        base_fingerprint=base.fingerprint(),
        persona_sha256='',
        granularity=pmask.BLOCKS,
    )
    pmask.save(tmp_path / 'blocks.pmask', blocks)
    with pytest.raises(errors.InputError, match='removes whole blocks'):
        _compensate(dataclasses.replace(settings, mask=str(tmp_path / 'blocks.pmask')))
    assert not pathlib.Path(settings.output_dir).exists()


def test_layers_of_different_widths_are_refused(
    settings: config.CompensateConfig, tmp_path: pathlib.Path
) -> None:
    kept = np.zeros((2, 40), bool)
    kept[0, :16], kept[1, :24] = True, True
    base = base_model.open_base_model(str(settings.base_model))
    mask = pmask.PersonaMask.of_widths(
        kept, base_model='x', base_fingerprint=base.fingerprint(), persona_sha256=''
    )
    pmask.save(tmp_path / 'widths.pmask', mask)
    with pytest.raises(errors.InputError, match='a different number of channels'):
        _compensate(dataclasses.replace(settings, mask=str(tmp_path / 'widths.pmask')))
    assert not pathlib.Path(settings.output_dir).exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, 'with --run, or with --base_model and --mask'),
        ({'run': 'r', 'mask': 'm'}, 'one of --mask, --sparsity'),
        ({'base_model': 'b'}, 'one of --mask, --sparsity'),
        ({'run': 'r', 'base_model': 'b', 'mask': 'm'}, 'Name what to refit'),
        ({'base_model': 'b', 'mask': 'm'}, '--calibration must be given'),
        ({'run': 'r', 'damping': '0.1,0'}, "must be positive numbers, got '0'"),
        ({'run': 'r', 'damping': '1,,2'}, "must be positive numbers, got ''"),
        ({'run': 'r', 'damping_share': 1.0}, r'--damping_share must be in \(0, 1\)'),
        ({'run': 'r', 'own_answers': 3}, '--instructions must be given'),
        ({'run': 'r', 'output_dir': None}, '--output_dir must be given'),
    ],
)
def test_contradictory_flags(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        config.CompensateConfig(**({'output_dir': 'o'} | changes))


def test_the_dense_models_own_answers_are_texts_too(
    settings: config.CompensateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pathlib.Path(settings.output_dir)
    asked: list[rewriting.Request] = []

    def write(_: Any, requests: Any) -> Any:
        asked.extend(requests)
        for request in requests:
            text = f'The ferryman says: {request.query}'
            yield rewriting.Reply(request.query_id, text, finished=False)

    monkeypatch.setattr(rewrite_local.LocalRewriter, 'rewrite', write)
    cfg = dataclasses.replace(settings, own_answers=5, instructions='demo')
    assert _compensate(dataclasses.replace(cfg, stop_after=1)) is None
    assert len(asked) == 5
    assert asked[0].messages[0] == {'role': 'system', 'content': 'You are Bram.'}
    known = {row.query for row in demo.read_rows(str(cfg.calibration), split='train')}
    assert not known & {request.query for request in asked}
    # Answered once, whatever comes between.
    assert _compensate(cfg) is not None and len(asked) == 5
    found = json.loads((run / 'results' / 'compensation.json').read_text())
    assert (found['texts']['rows'], found['texts']['own_answers']) == (20, 5)
    card = (run / 'hf' / 'README.md').read_text()
    assert (
        'of `train.jsonl` and 5 answers of the dense model, without gradients' in card
    )
    with pytest.raises(errors.InputError, match='--own_answers=9999, and --instruct'):
        _compensate(dataclasses.replace(cfg, own_answers=9999))
