"""bench load: what it says of memory and time is true."""

import json
import math
import os
import time
from typing import Any

import numpy as np
import pytest

from ppjax import bench
from ppjax.base import errors
from ppjax.benchmarking import config, memory
from ppjax.models import base_model


def test_figures_belong_together(chatty_model, tmp_path):
    path = tmp_path / 'load.json'
    cfg = config.BenchConfig(base_model=str(chatty_model), rounds=1, result=str(path))
    assert bench.main(cfg, 'load') == 0
    found = json.loads(path.read_text('utf-8'))
    reader = base_model.open_base_model(str(chatty_model)).reader
    sizes = [4 * math.prod(reader.shape(name)) for name in reader.names()]
    # Tied: the unembedding is no tensor of its own.
    assert found['parameter_bytes'] == sum(sizes)
    assert found['largest_tensor_bytes'] == max(sizes)
    peaks = {name: found[name]['peak_bytes']['max'] for name in ('ppjax', 'pytorch')}
    assert found['peak_to_reference'] == pytest.approx(
        peaks['ppjax'] / peaks['pytorch']
    )
    assert found['ppjax']['beyond_parameters_in_largest_tensors'] == pytest.approx(
        (peaks['ppjax'] - sum(sizes)) / max(sizes)
    )
    assert found['ratio_to_reference'] == pytest.approx(
        found['pytorch']['seconds']['median'] / found['ppjax']['seconds']['median']
    )


_HELD = 64 * 2**20


def _hold() -> None:
    for _ in range(3):  # One after the other: they do not add up.
        held = np.ones(_HELD // 8)
        time.sleep(0.1)
        del held


def _measure_held() -> dict[str, Any]:
    return memory.measured(_hold)


def test_peak_is_what_a_load_held_at_once():
    # Elsewhere, as what other tests leave may be freed meanwhile.
    found = memory.alone(_measure_held)
    assert _HELD * 0.9 < found['peak_bytes'] < _HELD * 1.5
    assert found['seconds'] > 0.3


def test_onto_a_mesh_and_back(chatty_model, tmp_path):
    path = tmp_path / 'load.json'
    cfg = config.BenchConfig(
        base_model=str(chatty_model / 'config.json'), mesh='fsdp:2', result=str(path)
    )
    before = dict(os.environ)
    try:
        assert bench.main(cfg, 'load') == 0
    finally:
        os.environ.clear()
        os.environ.update(before)
    found = json.loads(path.read_text('utf-8'))
    assert found['same_weights']
    assert found['array_bytes'] == found['parameter_bytes']
    for name in ('load', 'export'):
        assert found[name]['peak_to_arrays'] == pytest.approx(
            found[name]['peak_bytes'] / found['array_bytes']
        )


def test_a_mesh_without_sizes(chatty_model):
    cfg = config.BenchConfig(base_model=str(chatty_model), mesh='fsdp:-1')
    with pytest.raises(errors.InputError, match='must give sizes'):
        bench.main(cfg, 'load')
