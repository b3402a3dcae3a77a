"""Weights have one fingerprint, however they are stored."""

import dataclasses
import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ppjax.models import (
    base_model,
    checkpoint,
    loading,
    open_checkpoint,
)
from ppjax.models import config as config_lib

_INDEX = 'model.safetensors.index.json'


@pytest.fixture(scope='module')
def source(tiny_models):
    """(config.json, tensors) of the variant with every kind of bias."""
    tiny = tiny_models('llama-biased')
    config = json.loads((tiny.path / 'config.json').read_text())
    return config, safetensors_numpy.load_file(tiny.path / 'model.safetensors')


def _write(
    folder: pathlib.Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    *,
    shards: int = 1,
) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    if shards == 1:
        safetensors_numpy.save_file(tensors, folder / 'model.safetensors')
        return folder
    where = {}
    for shard in range(shards):
        file = f'model-{shard + 1:05d}-of-{shards:05d}.safetensors'
        names = sorted(tensors)[shard::shards]
        part = {name: tensors[name] for name in names}
        safetensors_numpy.save_file(part, folder / file)
        where |= dict.fromkeys(names, file)
    (folder / _INDEX).write_text(json.dumps({'metadata': {}, 'weight_map': where}))
    return folder


def _open(folder) -> tuple[checkpoint.CheckpointReader, config_lib.ModelConfig]:
    reader = open_checkpoint.open_checkpoint(folder)
    return reader, config_lib.from_hf_config(reader.hf_config)


_UP = 'model.layers.1.mlp.up_proj.weight'


class _Memory(checkpoint.CheckpointReader):
    """A checkpoint that is a dict."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.path = pathlib.Path('memory')
        self.tensors = tensors

    def names(self):
        return sorted(self.tensors)

    def shape(self, name):
        return self.tensors[name].shape

    def dtype(self, name):
        return self.tensors[name].dtype

    def read(self, name, rows=slice(None)):
        return self.tensors[name][rows]


@pytest.fixture(scope='module')
def identity(source):
    """(config, tensors, fingerprint)."""
    cfg = config_lib.from_hf_config(source[0])
    return cfg, source[1], loading.fingerprint(_Memory(source[1]), cfg)


def test_fingerprint_is_of_the_weights_not_the_files(tmp_path, source, identity):
    *_, want = identity
    assert len(want) == 64
    one = _write(tmp_path / 'one', *source)
    three = _write(tmp_path / 'three', *source, shards=3)
    assert loading.fingerprint(*_open(one)) == want
    assert loading.fingerprint(*_open(three)) == want
    assert base_model.open_base_model(str(three)).fingerprint() == want


def test_fingerprint_of_bfloat16_is_that_of_the_same_values_widened(tmp_path, source):
    config, tensors = source
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    wide = {name: value.astype(np.float32) for name, value in half.items()}
    assert loading.fingerprint(
        *_open(_write(tmp_path / 'half', config, half))
    ) == loading.fingerprint(*_open(_write(tmp_path / 'wide', config, wide)))
    # Rounding has changed the weights.
    assert loading.fingerprint(
        *_open(_write(tmp_path / 'half', config, half))
    ) != loading.fingerprint(*_open(_write(tmp_path / 'full', config, tensors)))


@pytest.mark.parametrize(
    'name',
    [
        'model.embed_tokens.weight',
        'model.norm.weight',
        'lm_head.weight',
        *(
            weight.hf_name.format(layer)
            for layer, (attribute, weight) in enumerate(loading.BLOCK_WEIGHTS.items())
            # Those of rotated models: baselines/slicegpt/test_slicegpt.py.
            if attribute not in ('q_norm', 'k_norm', 'turn_attention', 'turn_ffn')
            for layer in (layer % 3,)
        ),
    ],
)
def test_fingerprint_notices_one_value_in_any_tensor(identity, name):
    cfg, tensors, want = identity
    last = len(tensors[name]) - 1
    for row in {0, last // 2, last}:
        changed = tensors[name].copy()
        # The smallest change there is, in one value of the row.
        place = (row,) if changed.ndim == 1 else (row, 7)
        changed[place] = np.nextafter(changed[place], np.float32(9))
        assert loading.fingerprint(_Memory(tensors | {name: changed}), cfg) != want


def test_fingerprint_notices_layers_changing_places(identity):
    cfg, tensors, want = identity
    other = _UP.replace('.1.', '.2.')
    swapped = tensors | {_UP: tensors[other], other: tensors[_UP]}
    assert loading.fingerprint(_Memory(swapped), cfg) != want


@pytest.mark.parametrize(
    'changes',
    [
        {'norm_eps': 1e-4},
        {'rope_theta': 778.0},
        {'rope_scaling': config_lib.Llama3Scaling(2.0, 1.0, 4.0, 128)},
        {'num_heads': 2, 'num_kv_heads': 1, 'head_dim': 20},
        {'family': 'qwen3'},
    ],
)
def test_fingerprint_notices_another_config(identity, changes):
    cfg, tensors, want = identity
    changed = dataclasses.replace(cfg, **changes)
    assert loading.fingerprint(_Memory(tensors), changed) != want


def test_fingerprint_does_not_depend_on_how_far_the_model_was_meant_to_run(identity):
    cfg, tensors, want = identity
    longer = dataclasses.replace(cfg, max_position=10**6)
    assert loading.fingerprint(_Memory(tensors), longer) == want
