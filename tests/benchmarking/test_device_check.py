"""The check of a device: all of it on a CPU, and what becomes of parts that fail."""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
import zipfile

import jax
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.benchmarking.device_check import (
    equality,
    parts,
    runner,
    shapes,
    sizes,
    steps,
    torch_steps,
)
from ppjax.models import weights
from ppjax.planning import chips
from tests.benchmarking import device_parts

_ROOT = pathlib.Path(__file__).parents[2]
_MASK_STEPS = {
    'mask_step_3b': shapes.LLAMA_3B,
    'mask_step_8b': shapes.LLAMA_8B,
    'mask_step_32b': shapes.QWEN_32B,
    'mask_step_3b_nothing_recomputed': shapes.LLAMA_3B,
}


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp('check') / 'out.json'
    done = subprocess.run(
        ['bash', str(_ROOT / 'launch' / 'gpu_check.sh'), str(out), '--seconds=500'],
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHON': sys.executable},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'nothing here is a figure of a GPU' in done.stdout
    return json.loads(out.read_text())


def test_a_run_on_a_cpu_does_not_look_like_a_gpu(found):
    assert (found['is_gpu'], found['size']) == (False, 'tiny')
    assert found['warning'].startswith('Measured on cpu: nothing here is a figure of')
    assert list(found['parts']) == [part.name for part in parts.PARTS]
    for part in found['parts'].values():
        assert part['device'] == {'platform': 'cpu', 'kind': 'cpu', 'is_gpu': False}
        figures = part.get('figures', {})
        assert figures.get('mfu') is None
        assert figures.get('is_cut_down', True)
    assert found['finished'] > found['started']


def test_every_part_is_done_but_what_a_cpu_cannot_do(found):
    skipped = {
        name: part['reason']
        for name, part in found['parts'].items()
        if part['state'] == runner.SKIPPED
    }
    compiled = 'torch.compile is left out where models are tiny.'
    assert skipped == {
        'mask_step_3b_fused_attention': 'cuDNN computes no attention on this device.',
        'pytorch_mask_step_3b_compiled': compiled,
        'pytorch_mask_step_8b_compiled': compiled,
    }
    others = [part for name, part in found['parts'].items() if name not in skipped]
    assert {part['state'] for part in others} == {runner.DONE}


def test_the_machine(found):
    figures = found['parts']['machine']['figures']
    assert figures['versions']['jax'] == jax.__version__
    assert figures['stated_peak']['flops_per_s'] is None
    assert figures['matrix_product']['flops_per_s'] > 0
    assert figures['host_memory_bytes'] > 2**30


def test_equality(found):
    figures = found['parts']['equality']['figures']
    assert figures['is_equal']
    assert not figures['is_of_two_platforms']
    [model] = figures['models']
    assert set(model['differences']) == {'losses', 'score_gradients', 'logits'}
    assert all(own['largest_value'] > 0 for own in model['differences'].values())


@pytest.mark.parametrize('name', _MASK_STEPS)
def test_mask_steps_and_their_plan(found, name):
    figures = found['parts'][name]['figures']
    step, seconds = figures['step'], figures['step_seconds']['median']
    assert figures['shape_of'] == _MASK_STEPS[name]
    assert figures['examples_per_s'] == pytest.approx(step['batch'] / seconds)
    assert figures['tokens_per_s'] > figures['answer_tokens_per_s'] > 0
    assert figures['is_finite']
    assert 0 < figures['loss'] < 20
    assert figures['compile_seconds'] > 0
    assert figures['plan']['fits']
    assert figures['plan']['peak_memory_bytes'] > 2 * figures['parameters']
    assert (step['dtype'], step['sparsity']) == ('bfloat16', 0.25)
    # A CPU tells neither.
    assert figures['peak_memory_bytes'] is None
    assert figures['plan']['step_seconds'] is None
    plain = found['parts']['mask_step_3b']['figures']['examples_per_s']
    if 'speed_to_plain' in figures:
        ratio = figures['examples_per_s'] / plain
        assert figures['speed_to_plain'] == pytest.approx(ratio)


@pytest.mark.parametrize('size', ['3b', '8b'])
def test_pytorch_beside_ours(found, size):
    figures = found['parts'][f'pytorch_mask_step_{size}']['figures']
    ours = found['parts'][f'mask_step_{size}']['figures']
    for key in ('useful_flops_per_step', 'parameters', 'shape_of'):
        assert figures[key] == ours[key]
    ratio = ours['examples_per_s'] / figures['examples_per_s']
    assert figures['ours_to_pytorch'] == pytest.approx(ratio)
    assert not figures['is_compiled']
    assert np.isfinite(figures['loss'])


def test_scoring_and_generation(found):
    scoring = found['parts']['scoring_3b']['figures']
    [call] = scoring['by_tokens_a_call'].values()
    assert call['is_finite']
    rate = scoring['queries'] / call['seconds']['median']
    assert scoring['examples_per_s'] == pytest.approx(rate)
    generation = found['parts']['generation_3b']['figures']
    assert list(generation['by_rows']) == ['1', '3']
    for rows, own in generation['by_rows'].items():
        tokens = int(rows) * (generation['answer_tokens'] - 1)
        rate = tokens / own['decode_seconds']['median']
        assert own['decode_tokens_per_s'] == pytest.approx(rate)
        assert own['prefill_tokens_per_s'] > 0


def test_kernels(found):
    figures = found['parts']['kernels']['figures']
    attention = figures['packed_attention_of_a_layer']
    assert attention['plain']['seconds']['median'] > 0
    assert attention['cudnn'] == {
        'failed': 'cuDNN computes no attention on this device.'
    }
    assert set(figures['ffn_product']) == {'after', 'inside'}


def _part(measure, name, seconds=60.0, **environment):
    return parts.Part(name, seconds, measure, environment)


def test_what_becomes_of_parts(tmp_path):
    out = tmp_path / 'out.json'
    chosen = [
        _part(device_parts.fine, 'first'),
        _part(device_parts.hang, 'hangs', seconds=0.5),
        _part(device_parts.die, 'dies'),
        _part(device_parts.fail, 'fails'),
        _part(device_parts.refuse, 'refuses'),
        _part(device_parts.tell, 'tells', PPJAX_TOLD='said'),
        _part(device_parts.fine, 'last'),
    ]
    found = runner.check(out, size='tiny', seconds=400, parts=chosen)
    assert json.loads(out.read_text())['parts'].keys() == found['parts'].keys()
    told = {
        name: (part['state'], part.get('reason'))
        for name, part in found['parts'].items()
    }
    assert told == {
        'first': ('done', None),
        'hangs': ('failed', 'stopped after 0 s'),
        'dies': ('failed', 'its process ended with exit code 7'),
        'fails': (
            'failed',
            'RuntimeError: RESOURCE_EXHAUSTED: out\\nof memory',
        ),
        'refuses': ('skipped', 'there is no such device'),
        'tells': ('done', None),
        'last': ('done', None),
    }
    last = json.loads(out.read_text())['parts']['last']['figures']
    assert last == {'size': 'tiny', 'before': ['first', 'tells'], 'odd': 'nan'}
    assert found['parts']['tells']['figures'] == {'told': 'said'}


def test_no_time_and_no_device_are_said(tmp_path, monkeypatch):
    chosen = [_part(device_parts.fine, 'first'), _part(device_parts.fine, 'second')]
    found = runner.check(tmp_path / 'a.json', size='tiny', seconds=3, parts=chosen)
    first, second = found['parts'].values()
    assert (first['state'], first['reason']) == ('skipped', '3 s of 3 s were left')
    assert second['reason'] == 'no device was found'

    # Each is in the file before it runs, and the others wait.
    seen = []

    def answer(part, size, before, seconds):
        seen.append(json.loads((tmp_path / 'b.json').read_text())['parts'])
        return {'state': 'failed', 'reason': 'no driver'}

    monkeypatch.setattr(runner, '_in_time', answer)
    found = runner.check(tmp_path / 'b.json', size='tiny', seconds=60, parts=chosen)
    assert seen == [{'first': {'state': 'running'}, 'second': {'state': 'waiting'}}]
    assert found['parts']['second']['reason'] == 'no device was found'


def test_a_kill_loses_nothing_and_leaves_nobody(tmp_path):
    pid_file, out = tmp_path / 'pid', tmp_path / 'out.json'
    program = f"""
import pathlib
from ppjax.benchmarking.device_check import parts, runner
from tests.benchmarking import device_parts
hang = parts.Part('b', 60, device_parts.hang, {{'PPJAX_PID_FILE': {str(pid_file)!r}}})
chosen = [parts.Part('a', 60, device_parts.fine), hang]
runner.check(pathlib.Path({str(out)!r}), size='tiny', seconds=100, parts=chosen)
"""
    check = subprocess.Popen(
        [sys.executable, '-c', program],
        cwd=_ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not pid_file.exists() and check.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    check.kill()
    check.wait()
    told = json.loads(out.read_text())['parts']
    assert [told[name]['state'] for name in 'ab'] == ['done', 'running']
    pid = int(pid_file.read_text())
    while pathlib.Path(f'/proc/{pid}').exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_gpu_is_said_to_be_one():
    told = runner._kind({'kind': 'NVIDIA H200', 'is_gpu': True}, 'full')
    assert told == {'is_gpu': True, 'size': 'full', 'warning': None}
    told = runner._kind({'kind': 'NVIDIA H200', 'is_gpu': True}, 'tiny')
    assert told['warning'] == 'Models are tiny: rates say nothing.'


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        (shapes.SMOLLM2, 134_515_008),
        (shapes.LLAMA_3B, 3_212_749_824),
        (shapes.LLAMA_8B, 8_030_261_248),
        (shapes.QWEN_32B, 32_763_876_352),
    ],
)
def test_shapes_are_the_published_ones(name, parameters):
    shaped = shapes.shaped(name, tiny=False)
    assert weights.num_parameters(shaped.config) == parameters
    assert not shaped.is_cut
    assert sizes.FULL.step(name).layers == shaped.config.num_layers


def test_what_no_device_can_hold_is_refused():
    shaped = shapes.shaped(shapes.QWEN_32B, tiny=False)
    chip = chips.Chip('some GPU', 24 * 10**9, None)
    with pytest.raises(errors.InputError, match=r'65\.5 GB, and the device lends 24'):
        steps._check_fits(shaped, 32_763_876_352, 2, chip)
    steps._check_fits(shaped, 10**10, 2, chip)
    steps._check_fits(shaped, 10**12, 2, chips.of_kind('some GPU'))


def test_a_gpu_has_the_memory_that_it_lends():
    class Device:
        device_kind = 'NVIDIA A100-SXM4-40GB'
        stats: dict[str, int] | None = None

        def memory_stats(self):
            return self.stats

    device = Device()
    assert chips.of_device(device).memory == 80 * 2**30
    device.stats = {'bytes_limit': 30 * 2**30}
    chip = chips.of_device(device)
    assert (chip.memory, chip.flops_per_s) == (30 * 2**30, 312e12)


def test_pytorch_without_a_gpu_is_nothing_to_compare_with():
    with pytest.raises(errors.InputError, match='has no CUDA device'):
        torch_steps.measure_3b(sizes.FULL, {})


def test_mfu_needs_a_known_peak():
    shape = sizes.FULL.step(shapes.LLAMA_3B)
    cfg = shapes.shaped(shapes.LLAMA_3B, tiny=False).config
    peak = chips.of_kind('NVIDIA H200').flops_per_s
    known, unknown = (steps.rates(shape, cfg, 0.25, x) for x in (peak, None))
    assert known['mfu'] == known['useful_flops_per_step'] / 0.25 / 989e12
    assert unknown['mfu'] is None
    assert known['examples_per_s'] == 64
    assert known['tokens_per_s'] == 64 * (256 + 16 + 256)


def test_differences_are_found():
    want = {'logits': np.array([1.0, -4.0]), 'losses': np.array([2.0])}
    near = {'logits': want['logits'] + 3e-4, 'losses': want['losses']}
    found = equality.differences(near, want)
    assert all(own['is_equal'] for own in found.values())
    assert found['logits']['largest_difference'] == pytest.approx(3e-4)
    assert found['logits']['largest_value'] == 4.0
    far = {'logits': want['logits'] + 5e-4, 'losses': np.array([np.nan])}
    found = equality.differences(far, want)
    assert not found['logits']['is_equal']
    assert found['losses'] == {'is_finite': False, 'is_equal': False}


@pytest.fixture(scope='module')
def script():
    path = _ROOT / 'launch' / 'gpu_check.py'
    spec = importlib.util.spec_from_file_location('gpu_check', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_missing_packages(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, '_NEEDED', {'ppjax_absent': 'ppjax-absent'})
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py', str(tmp_path / 'out.json')])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setenv('WHEELS', str(tmp_path))
    assert script.main() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert 'lacks ppjax-absent; install them, or put their pure-Python wheels' in line
    assert list(tmp_path.iterdir()) == []

    with zipfile.ZipFile(tmp_path / 'ppjax_absent-1-py3-none-any.whl', 'w') as wheel:
        wheel.writestr('ppjax_absent.py', 'HERE = True\n')
    monkeypatch.setattr(script, '_check', lambda given: 0)
    assert script.main() == 0


@pytest.mark.parametrize(
    ('states', 'is_equal', 'code'),
    [
        (('done', 'skipped'), True, 0),
        (('done', 'failed'), True, 1),
        (('done', 'done'), False, 1),
    ],
)
def test_exit_codes(script, states, is_equal, code, monkeypatch, capsys):
    first, second = states
    equality_part = {'state': first, 'figures': {'is_equal': is_equal}}
    found = {
        'parts': {'equality': equality_part, 'kernels': {'state': second}},
        'warning': None,
        'seconds': 1.0,
    }
    monkeypatch.setattr(runner, 'check', lambda *_, **__: found)
    monkeypatch.setattr(script.signal, 'signal', lambda *_: None)
    given = argparse.Namespace(out='out.json', tiny=True, seconds=10.0)
    assert script._check(given) == code
    assert f'{states.count("failed")} failed' in capsys.readouterr().out
