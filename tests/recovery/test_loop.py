"""Whole runs on a tiny model: artefacts, resuming, refusals, kill -9."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from ppjax import demo
from ppjax.base import errors, run_directory
from ppjax.exporting import model_card, pruned_source
from ppjax.learning import data as data_lib
from ppjax.models import base_model, open_checkpoint
from ppjax.parallel import sharding
from ppjax.recovery import config, loop, rates
from ppjax.recovery import run as run_lib

# Of `pruned`.
_KEEP = 24


def _settings(files: Any, output: pathlib.Path, **changes: Any) -> Any:
    values = {
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(output),
        'batch_size': 4,
        'micro_batches': 2,
        'steps': 4,
        'checkpoint_every': 2,
        'heldout_every': 2,
        'learning_rate': 1e-3,
        # Eight devices for four examples would compile for long.
        'mesh': 'data:2,fsdp:4',
    }
    return config.RecoverConfig(**(values | changes))


def _recover(cfg: config.RecoverConfig) -> pathlib.Path | None:
    cfg = cfg.resolved()
    held = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    return loop.recover(cfg, demo.read_rows(cfg.calibration, split='train'), held)


def _metrics(run: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / 'metrics.jsonl').open()]


def _logits(model: Any) -> np.ndarray:
    tokens = torch.tensor(np.random.default_rng(1).integers(3, 999, (2, 19)))
    with torch.inference_mode():
        return model.eval()(tokens).logits.numpy()


def _load(path: pathlib.Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.fixture(scope='module')
def finished(
    pruned: Any, calibration_files: Any, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """An unbroken run from a pruned directory."""
    run = tmp_path_factory.mktemp('runs') / 'unbroken'
    model = _recover(_settings(calibration_files, run, model=str(pruned[1])))
    assert model == run / 'hf'
    return run


def test_a_run_leaves_an_ordinary_directory_and_its_figures(
    finished: pathlib.Path, pruned: Any
) -> None:
    status = json.loads((finished / 'status.json').read_text())
    assert (status['state'], status['stage'], status['step']) == ('done', 'recover', 4)
    assert list((finished / 'tensorboard').glob('events*'))
    assert not (finished / 'checkpoints').exists()
    before, after = _load(pruned[1]), _load(finished / 'hf')
    assert after.config.intermediate_size == _KEEP
    assert after.lm_head.weight is after.model.embed_tokens.weight
    assert np.abs(_logits(after) - _logits(before)).max() > 1e-2
    persona = json.loads((finished / 'hf' / 'persona.json').read_text())
    # The persona of the rows, whoever the model was before.
    ferryman = demo.rows('ferryman', 'train')[0].system_prompt
    assert persona == {'system_prompt': ferryman} and 'ferry' in ferryman
    assert base_model.open_base_model(str(finished / 'hf')).tokenizer().chat_template
    card = (finished / 'hf' / 'README.md').read_text()
    assert card.startswith('# The card before\n\n## Recovery finetuning\n')
    assert 'All weights were finetuned on 20 conversations of `train.jsonl`' in card
    found = json.loads((finished / 'results' / 'recovery.json').read_text())
    assert set(found['models']) == {'start', 'recovered'}
    tokens = sum(example['answer_tokens'] for example in found['examples'])
    for name, value in found['models'].items():
        total = sum(example[name] for example in found['examples'])
        assert value['nll'] == pytest.approx(total / tokens, rel=1e-6)
        assert f'| `{name}` | {value["nll"]:.4f} |' in card
    assert found['models']['recovered']['nll'] < found['models']['start']['nll']
    assert found['settings']['model'] == str(pruned[1])
    assert found['versions']['jax']


def test_metrics_have_every_step(finished: pathlib.Path) -> None:
    entries = _metrics(finished)
    steps = [entry for entry in entries if entry['stage'] == 'recover']
    assert [entry['step'] for entry in steps] == [1, 2, 3, 4]
    assert set(steps[0]) == {
        'stage',
        'step',
        'loss',
        'grad_norm',
        'learning_rate',
        'examples_per_s',
        'answer_tokens_per_s',
    }
    held = [entry for entry in entries if entry['stage'] == 'heldout']
    assert [entry['step'] for entry in held] == [2, 4]
    found = json.loads((finished / 'results' / 'recovery.json').read_text())
    assert held[-1]['heldout_nll'] == pytest.approx(
        found['models']['recovered']['nll'], rel=1e-6
    )


def test_a_mask_over_its_base_is_the_pruned_directory(
    finished: pathlib.Path,
    pruned: Any,
    chatty_model: pathlib.Path,
    calibration_files: Any,
    tmp_path: pathlib.Path,
) -> None:
    """The same start, so the same model; and the dense one is known and measured."""
    run = tmp_path / 'run'
    cfg = _settings(
        calibration_files, run, base_model=str(chatty_model), mask=str(pruned[0])
    )
    _recover(cfg)
    ours, theirs = (path / 'hf' / 'model.safetensors' for path in (run, finished))
    assert ours.read_bytes() == theirs.read_bytes()
    found = json.loads((run / 'results' / 'recovery.json').read_text())
    assert list(found['models']) == ['dense', 'start', 'recovered']
    assert found['models']['dense']['nll'] != found['models']['start']['nll']
    card = (run / 'hf' / 'README.md').read_text()
    assert 'Channels kept: 24 of 40' in card
    assert '| `dense` |' in card


def test_paused_and_resumed_run_is_bit_identical(
    finished: pathlib.Path, pruned: Any, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / 'paused'
    cfg = _settings(calibration_files, run, model=str(pruned[1]))
    assert _recover(dataclasses.replace(cfg, stop_after=3)) is None
    assert json.loads((run / 'status.json').read_text())['state'] == 'paused'
    assert not (run / 'hf').exists()
    assert _recover(cfg) == run / 'hf'
    ours, theirs = (path / 'hf' / 'model.safetensors' for path in (run, finished))
    assert ours.read_bytes() == theirs.read_bytes()
    ours, theirs = (
        [(e['step'], e.get('loss'), e.get('heldout_nll')) for e in _metrics(path)]
        for path in (run, finished)
    )
    assert ours == theirs


def test_finished_run_is_not_done_again(
    finished: pathlib.Path, pruned: Any, calibration_files: Any
) -> None:
    weights = finished / 'hf' / 'model.safetensors'
    before = weights.stat().st_mtime_ns
    _recover(_settings(calibration_files, finished, model=str(pruned[1])))
    assert weights.stat().st_mtime_ns == before
    for changes in ({'seed': 1}, {'lora_rank': 2}, {'learning_rate': 1e-4}):
        [name] = changes
        with pytest.raises(errors.InputError, match=f'--{name}'):
            _recover(
                _settings(calibration_files, finished, model=str(pruned[1]), **changes)
            )


@pytest.mark.parametrize('method', [{}, {'lora_rank': 2}, {'gains': True}])
def test_an_export_is_verified_before_it_stands_there(
    method: dict[str, Any],
    pruned: Any,
    calibration_files: Any,
    tmp_path: pathlib.Path,
) -> None:
    cfg = _settings(
        calibration_files,
        tmp_path / 'run',
        **method,
        model=str(pruned[1]),
        heldout=None,
        steps=1,
        verify=True,
        mesh=None,
    )
    with pytest.raises(errors.InputError, match='from the recovered model'):
        _recover(dataclasses.replace(cfg, verify_tolerance=1e-30))
    assert not (tmp_path / 'run' / 'hf').exists()
    assert _recover(cfg) == tmp_path / 'run' / 'hf'
    found = json.loads((tmp_path / 'run' / 'results' / 'recovery.json').read_text())
    largest = found['verify']['max_logit_difference']
    assert 0 < max(largest['ppjax'], largest['transformers']) < 1e-3


def test_a_step_of_several_personas_runs_one_prompt(
    pruned: Any, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    rows = demo.read_rows(str(calibration_files[0]), split='train')
    other = tmp_path / 'other.jsonl'
    lines = [json.loads(line) for line in calibration_files[0].open()]
    for line in lines:
        line['messages'][0]['content'] = 'You are Ida Holm, who keeps bees on a roof.'
    other.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    both = f'{calibration_files[0]},{other}'
    cfg = _settings(
        [both, None],
        tmp_path / 'run',
        model=str(pruned[1]),
        mesh='data:1',
        micro_batches=1,
    ).resolved()
    source = pruned_source.open_source(model=cfg.model)
    data = data_lib.prepare_data(
        source.files,
        demo.read_rows(both, split='train'),
        [],
        max_length=1024,
        date=cfg.date,
    )
    where = sharding.make_mesh('data:1', jax.devices()[:1])
    directory = run_directory.RunDirectory(str(tmp_path / 'run'))
    found = run_lib.RecoveryRun(cfg, source, data, directory, where)
    of = {i: example.persona for i, example in enumerate(data.train)}
    drawn = [{of[i] for i in batch} for _, batch in found.batches]
    assert all(len(personas) == 1 for personas in drawn)
    assert len(set.union(*drawn)) == 2
    assert len(data.train) == 2 * len(rows)
    assert found.shapes[False].prefix == min(group.prefix for group in found.groups)
    assert found.shapes[False].prefix > data.prefix


def test_adapters_alone_are_the_merged_model(
    pruned: Any, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / 'run'
    _recover(
        _settings(
            calibration_files,
            run,
            model=str(pruned[1]),
            lora_rank=2,
            lora_alpha=6,
            lora_targets='q_proj,down_proj',
            learning_rate=2e-2,
            heldout=None,
        )
    )
    merged = _logits(_load(run / 'hf'))
    adapted = peft.PeftModel.from_pretrained(_load(pruned[1]), run / 'adapter')
    np.testing.assert_allclose(_logits(adapted), merged, atol=1e-4, rtol=0)
    assert np.abs(merged - _logits(_load(pruned[1]))).max() > 0.05
    before, after = (
        open_checkpoint.open_checkpoint(path) for path in (pruned[1], run / 'hf')
    )
    changed = {
        name.split('.')[-2]
        for name in after.names()
        if not np.array_equal(before.read(name), after.read(name))
    }
    assert changed == {'q_proj', 'down_proj'}
    found = json.loads((run / 'results' / 'recovery.json').read_text())
    assert (found['method'], 'models' in found) == ('lora', False)
    # 2 layers, rank 2: q 24 -> 32, down 24 -> 24.
    assert found['trained_parameters'] == 2 * 2 * (24 + 32 + _KEEP + 24)


def test_a_run_of_mask_learning_names_everything(
    pruned: Any,
    chatty_model: pathlib.Path,
    calibration_files: Any,
    tmp_path: pathlib.Path,
) -> None:
    run = tmp_path / 'mine'
    run.mkdir()
    cfg = config.RecoverConfig(run=str(run), output_dir='o', heldout='other.jsonl')
    with pytest.raises(
        errors.InputError, match=r'has no config\.flags|has no mask yet'
    ):
        cfg.resolved()
    (run / 'mask.pmask').write_bytes(pruned[0].read_bytes())
    (run / 'config.flags').write_text(
        f'--base_model={chatty_model}\n--calibration={calibration_files[0]}\n'
        f'--heldout={calibration_files[1]}\n--output_dir={run}\n'
    )
    resolved = cfg.resolved()
    assert resolved.run is None
    assert resolved.base_model == str(chatty_model)
    assert resolved.mask == str(run / 'mask.pmask')
    assert resolved.calibration == str(calibration_files[0])
    assert resolved.heldout == 'other.jsonl'
    with pytest.raises(errors.InputError, match='a folder of its own'):
        _recover(dataclasses.replace(resolved, heldout=None, output_dir=str(run)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, 'got none'),
        ({'model': 'a', 'base_model': 'b'}, 'got --base_model and --model'),
        ({'model': 'a', 'mask': 'm'}, '--mask needs --base_model'),
        ({'model': 'a', 'calibration': None}, '--calibration must be given'),
        ({'model': 'a', 'lora_targets': 'q'}, "no 'q'; there are q_proj, "),
        ({'model': 'a', 'lora_rank': -1}, '--lora_rank must not be negative'),
        ({'model': 'a', 'micro_batches': 0}, '--micro_batches must be at least 1'),
        ({'model': 'a', 'output_dir': None}, '--output_dir must be given'),
    ],
)
def test_contradictory_flags(changes: dict[str, Any], message: str) -> None:
    values = {'calibration': 'c', 'output_dir': 'o'} | changes
    with pytest.raises(errors.InputError, match=message):
        config.RecoverConfig(**values)


@pytest.mark.parametrize(
    ('method', 'small', 'middle', 'large'),
    [
        ('full', 1e-4, 2e-5, 5e-5),
        ('lora', 2e-3, 2e-3, 1e-4),
        ('neeko', 2e-3, 2e-3, 1e-4),
        ('gains', 1e-2, 1e-2, 1e-2),
    ],
)
def test_default_rates(method: str, small: float, middle: float, large: float) -> None:
    assert rates.usual(method, 134_000_000) == small
    assert rates.usual(method, 3 * 10**8) == middle
    assert rates.usual(method, 10**9 - 1) == middle
    # The paper's, from a billion parameters on.
    assert rates.usual(method, 10**9) == large
    described = {f.name: f for f in dataclasses.fields(config.RecoverConfig)}
    assert rates.text() in described['learning_rate'].metadata['help']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lora_rank': 25}, '--lora_rank=25 is more than q_proj has'),
        ({'mesh': 'fsdp:5'}, "--mesh='fsdp:5' does not make use of the 8 devices"),
        ({'mesh': 'tensor:8,lora:2'}, 'is not AXIS:SIZE'),
        ({'mesh': 'data:-1', 'model': 'nowhere'}, '--model='),
    ],
)
def test_what_does_not_fit_leaves_no_folder(
    pruned: Any,
    calibration_files: Any,
    tmp_path: pathlib.Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    values = {'model': str(pruned[1])} | changes
    with pytest.raises(errors.InputError, match=message):
        _recover(_settings(calibration_files, tmp_path / 'run', **values))
    assert not (tmp_path / 'run').exists()


def test_a_mask_of_another_base_is_refused(
    tiny_models: Any, pruned: Any, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    cfg = _settings(
        calibration_files,
        tmp_path / 'run',
        base_model=str(tiny_models('llama').path),
        mask=str(pruned[0]),
    )
    with pytest.raises(errors.InputError, match='This mask is for 2 layers of 40'):
        _recover(cfg)


def _command(model: pathlib.Path, files: Any, run: pathlib.Path) -> list[str]:
    return [
        sys.executable,
        '-m',
        'ppjax.recover',
        f'--model={model}',
        f'--calibration={files[0]}',
        f'--output_dir={run}',
        '--batch_size=4',
        '--micro_batches=2',
        '--steps=16',
        '--checkpoint_every=1',
        '--learning_rate=1e-3',
    ]


def test_sigterm_and_kill_9_give_the_same_bits(
    pruned: Any, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    """The checkpoint of every step is among what a kill may cut short."""
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    subprocess.run(
        _command(pruned[1], calibration_files, whole), check=True, timeout=400
    )

    def start() -> subprocess.Popen[bytes]:
        """Returns after the first steps that had not been done."""
        done, deadline = _steps_done(broken), time.monotonic() + 300
        process = subprocess.Popen(
            _command(pruned[1], calibration_files, broken), stderr=subprocess.DEVNULL
        )
        while _steps_done(broken) <= done and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process

    process = start()
    process.terminate()
    assert process.wait(120) == 0
    status = json.loads((broken / 'status.json').read_text())
    assert (status['state'], status['step']) == ('paused', _steps_done(broken))
    process = start()
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = _steps_done(broken)
    assert killed_at < 16
    subprocess.run(
        _command(pruned[1], calibration_files, broken), check=True, timeout=400
    )
    ours, theirs = (path / 'hf' / 'model.safetensors' for path in (broken, whole))
    assert ours.read_bytes() == theirs.read_bytes(), killed_at
    ours, theirs = (
        [(e['step'], e['loss']) for e in _metrics(run)] for run in (broken, whole)
    )
    assert ours == theirs


def _steps_done(run: pathlib.Path) -> int:
    path = run / 'metrics.jsonl'
    return path.read_text().count('\n') if path.exists() else 0


def test_a_card_of_a_base_without_one() -> None:
    card = model_card.bare('someone/base', {'license': 'mit'})
    assert card.startswith('---\nbase_model: someone/base\n')
    assert 'license: mit\n' in card
    assert 'pruned' not in card
    assert '# `someone/base`, finetuned for one persona\n' in card
