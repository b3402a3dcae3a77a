"""Plans for the devices here, and for TPUs that are elsewhere."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from ppjax import plan
from ppjax.base import errors
from ppjax.planning import chips, compiled, config, topology

_LIBTPU = pathlib.Path(sys.prefix, 'libtpu')


def _plan(model, **changes: Any) -> int:
    values = {
        'base_model': str(model),
        'batch_size': 4,
        'prompt_length': 32,
        'answer_length': 16,
        'mesh': 'data:2,fsdp:4',
    }
    return plan.main(config.PlanConfig(**(values | changes)))


@pytest.fixture(scope='module')
def tiny(tiny_models):
    return tiny_models('qwen2')


def test_devices_here(tiny, tmp_path, capsys):
    file = tmp_path / 'plan.json'
    # The config alone is read.
    file_alone = tmp_path / 'config.json'
    file_alone.write_text((tiny.path / 'config.json').read_text())
    assert _plan(file_alone, result=str(file), dtype='float32') == 0
    shown = capsys.readouterr().out
    assert 'Memory     fits' in shown
    assert 'all-gather' in shown
    assert 'the peak of cpu is not known' in shown
    found = json.loads(file.read_text())
    assert found['parameters'] == tiny.hf.num_parameters()
    assert found['weights_bytes'] == 4 * tiny.hf.num_parameters()
    cfg = tiny.base.config
    entries = cfg.num_layers * cfg.d_ff
    assert found['mask_bytes'] == -(-entries // 8)
    assert found['optimizer_bytes'] == 12 * entries
    assert (found['chips'], found['fits']) == (8, True)
    memory = found['bytes_per_chip']
    # Weights shared out over four, the optimizer's part whole.
    assert found['weights_bytes'] / 4 < memory['arguments'] < found['weights_bytes']
    assert memory['temporaries'] > 0
    assert found['step']['rows'] == 8
    assert found['settings']['batch_size'] == 4


def test_personas_and_objective_are_planned_for(tiny, tmp_path):
    found = {}
    for name, changes in {
        'one': {},
        'many': {'personas': 'a,b,c', 'personas_per_step': 2},
        'number': {'personas': '3', 'personas_per_step': 2},
        'kl': {'objective': 'kl'},
    }.items():
        file = tmp_path / f'{name}.json'
        assert _plan(tiny.path, result=str(file), dtype='float32', **changes) == 0
        found[name] = json.loads(file.read_text())
    one, many, kl = found['one'], found['many'], found['kl']
    assert many['optimizer_bytes'] == 3 * one['optimizer_bytes']
    assert many['useful_flops_per_step'] == 2 * one['useful_flops_per_step']
    arguments = [x['bytes_per_chip']['arguments'] for x in (one, many)]
    # Beside more scores a second batch.
    assert arguments[1] > arguments[0] + 2 * one['optimizer_bytes']
    assert found['number']['bytes_per_chip'] == many['bytes_per_chip']
    assert one['useful_flops_per_step'] < kl['useful_flops_per_step']
    assert kl['useful_flops_per_step'] < 2 * one['useful_flops_per_step']
    for bad in ('0', str(10**9)):
        with pytest.raises(errors.InputError, match='--personas must be 1 to'):
            config.PlanConfig(base_model=str(tiny.path), personas=bad)


def test_int8_takes_less(tiny, tmp_path):
    found = []
    for int8_base in (False, True):
        file = tmp_path / f'{int8_base}.json'
        assert _plan(tiny.path, int8_base=int8_base, result=str(file)) == 0
        found.append(json.loads(file.read_text()))
    before, after = (x['bytes_per_chip']['arguments'] for x in found)
    assert after < before
    assert found[1]['weights_bytes'] < 0.8 * found[0]['weights_bytes']


def test_what_does_not_fit_says_so_and_what_would(tiny, monkeypatch, tmp_path, capsys):
    file = tmp_path / 'plan.json'
    settings = {'remat': 'none', 'batch_size': 32, 'answer_length': 64}
    assert _plan(tiny.path, result=str(file), **settings) == 0
    whole = json.loads(file.read_text())['bytes_per_chip']['peak']
    assert _plan(tiny.path, result=str(file), **(settings | {'remat': 'full'})) == 0
    less = json.loads(file.read_text())['bytes_per_chip']['peak']
    assert less < whole
    small = chips.Chip('small chip', (less + whole) // 2, 1e12)
    monkeypatch.setattr(chips, 'of_device', lambda device: small)
    capsys.readouterr()
    assert _plan(tiny.path, result=str(file), **settings) == 1
    shown = capsys.readouterr().out
    assert 'DOES NOT FIT' in shown
    assert 'Fits with --remat=full.' in shown
    assert json.loads(file.read_text())['suggestion'] == '--remat=full'


def test_where_nothing_fits_all_was_tried(tiny, monkeypatch, capsys):
    tiny_chip = chips.Chip('tiny chip', 1000, 1e12)
    monkeypatch.setattr(chips, 'of_device', lambda device: tiny_chip)
    assert _plan(tiny.path, remat='full') == 1
    shown = capsys.readouterr()
    assert 'No change that was tried fits' in shown.out
    for tried in ('--micro_batches=2', '--micro_batches=4', '--int8_base'):
        assert f'Trying {tried} ...' in shown.err


def test_seconds_and_hours(tiny, monkeypatch, tmp_path, capsys):
    chip = chips.Chip('chip', 10**12, 1e9)
    monkeypatch.setattr(chips, 'of_device', lambda device: chip)
    file = tmp_path / 'plan.json'
    assert _plan(tiny.path, result=str(file), utilisation=0.5, steps=100) == 0
    found = json.loads(file.read_text())
    seconds = found['useful_flops_per_step'] / (1e9 * 8 * 0.5)
    assert found['step_seconds'] == pytest.approx(seconds)
    assert found['hours'] == pytest.approx(seconds * 100 / 3600)
    assert 'h for 100 steps' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('told', 'sizes'),
    [
        ('RESOURCE_EXHAUSTED: ... Used 57.50G of 15.75G hbm.', (57.5, 15.75)),
        (
            '... for HLO temporaries (131.50G) exceeds available HBM (15.75G).',
            (131.5, 15.75),
        ),
    ],
)
def test_what_compilers_say(told, sizes):
    assert compiled._told(told) == tuple(int(size * 2**30) for size in sizes)
    assert compiled._told('RESOURCE_EXHAUSTED') == (None, None)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'mesh': 'data:3'}, 'does not make use of the 8 devices'),
        ({'mesh': 'tensor:8'}, 'cannot be split'),
        ({'base_model': 'nowhere'}, 'neither a directory'),
        ({'topology': 'v9:2x2'}, 'known chips are v4'),
    ],
)
def test_bad_settings(tiny, changes, message, monkeypatch):
    monkeypatch.setattr(topology, 'devices', lambda name: plan.jax.devices())
    with pytest.raises(errors.InputError, match=message):
        _plan(tiny.path, **changes)


def test_larger_slices():
    assert topology.larger('v5e:2x4') == ['v5e:4x4', 'v5e:4x8']
    assert topology.larger('v5p:2x2x2') == ['v5p:2x2x4', 'v5p:2x4x4']
    assert topology.larger('v5e:16x16') == []
    assert topology.spread_over_more('fsdp:8,tensor:8') == 'tensor:8,fsdp:-1'
    assert topology.spread_over_more(None) == 'fsdp:-1'
    assert topology.spread_over_more('tensor:-1') == 'fsdp:-1'


def test_without_libtpu(tiny, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(errors.InputError, match=r"pip install 'ppjax\[tpu-plan\]'"):
        topology.devices('v5e:2x2')


@pytest.mark.skipif(not _LIBTPU.exists(), reason='libtpu compiles for TPUs')
def test_a_slice_of_tpus(tiny, tmp_path):
    """The real step of a tiny model, compiled for chips that are not here."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = [str(pathlib.Path(plan.__file__).parents[1]), str(_LIBTPU)]
        return subprocess.run(
            [
                *(sys.executable, '-m', 'ppjax.plan', f'--base_model={tiny.path}'),
                *('--batch_size=4', '--prompt_length=32', '--answer_length=16'),
                *arguments,
            ],
            env=os.environ | {'PYTHONPATH': os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    file = tmp_path / 'plan.json'
    done = run('--topology=v5e:2x2', '--mesh=data:2,fsdp:2', f'--result={file}')
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert (found['chips'], found['chip']) == (4, 'TPU v5e')
    assert found['bytes_per_chip']['peak'] > found['bytes_per_chip']['arguments'] > 0
    assert found['collectives_per_step']
    assert found['step_seconds'] > 0
    unknown = run('--topology=v5e:7x7x7')
    assert unknown.returncode == 1
    assert 'ERROR: --topology=' in unknown.stderr
