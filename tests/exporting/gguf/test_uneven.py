"""Layers of different widths: without their zeros, in llama.cpp and read back."""

from collections.abc import Callable
import pathlib
from typing import Any

import gguf
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.exporting import hf_export
from ppjax.exporting.gguf import export, llama_cpp, metadata, types, uneven
from ppjax.models import base_model, gguf_reader
from ppjax.models import structure as structure_lib
from tests.models import gguf_files

_ORIGIN = metadata.Origin('owner/Base', 'bram', {}, 'You are Bram.', {'a': 'b'})


def _structure(
    base: base_model.BaseModel, channels: tuple[int, int], groups: tuple[int, int]
) -> structure_lib.Structure:
    """The last channels and groups of each of the two layers."""
    kept = structure_lib.Structure.dense(base.config)
    for layer, (own, heads) in enumerate(zip(channels, groups, strict=True)):
        kept.channels[layer, : base.config.d_ff - own] = False
        kept.groups[layer, : base.config.num_kv_heads - heads] = False
    return kept


@pytest.fixture
def pruned(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> Callable[..., base_model.BaseModel]:
    """A directory as `prune` leaves it, narrower layers filled up with zeros."""

    def make(
        family: str, channels: tuple[int, int], groups: tuple[int, int]
    ) -> base_model.BaseModel:
        base = tiny_chat(family)
        hf_export.export_model(
            _structure(base, channels, groups).pruned(base),
            tmp_path / 'hf',
            dtype='float32',
            tokenizer=base.tokenizer(),
            model_card='',
            system_prompt='',
        )
        return base_model.open_base_model(str(tmp_path / 'hf'))

    return make


def _write(
    model: base_model.BaseModel, folder: pathlib.Path, kind: str, **options: Any
) -> tuple[pathlib.Path, dict[str, Any]]:
    source = export.Source(model, model.tokenizer(), model.generation_config(), _ORIGIN)
    settings = {'tolerance': 1e-3, 'overwrite': False, 'filled': False} | options
    [made] = export.export(source, folder, [kind], **settings)
    return folder / made['file'], made['verify']


@pytest.mark.parametrize('family', ['llama', 'qwen2'])
@pytest.mark.parametrize(
    ('channels', 'groups'), [((64, 32), (2, 2)), ((32, 64), (1, 2))]
)
def test_layers_are_as_wide_as_they_are(
    pruned: Callable[..., base_model.BaseModel],
    tmp_path: pathlib.Path,
    family: str,
    channels: tuple[int, int],
    groups: tuple[int, int],
) -> None:
    model = pruned(family, channels, groups)
    path, found = _write(model, tmp_path / 'gguf', 'f32')
    if llama_cpp.is_installed():
        assert found['first_difference'] < 1e-3
        assert found['tokens'] == 32
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for layer in range(2):
        up = stored[f'blk.{layer}.ffn_up.weight']
        assert up.shape.tolist() == [64, channels[layer]]
        keys = stored[f'blk.{layer}.attn_k.weight']
        assert keys.shape[1] == groups[layer] * model.config.head_dim
    reader = gguf_reader.GgufReader(path)
    assert reader.metadata('general.architecture') == 'deci'
    assert reader.metadata('deci.feed_forward_length') == list(channels)
    heads = model.config.num_heads // model.config.num_kv_heads
    assert reader.metadata('deci.attention.head_count') == [heads * x for x in groups]
    # Read back it is the model of the widest layer, zeros where others lack something.
    assert reader.hf_config['model_type'] == family
    assert reader.names() == model.reader.names()
    for name in reader.names():
        own = model.reader.read(name)
        assert reader.shape(name) == own.shape
        np.testing.assert_array_equal(reader.read(name), own)
        np.testing.assert_array_equal(reader.read(name, slice(20, 50)), own[20:50])


def test_read_back_without_llama_cpp(
    pruned: Callable[..., base_model.BaseModel],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama_cpp, 'is_installed', lambda: False)
    model = pruned('qwen2', (64, 40), (2, 1))
    path, found = _write(model, tmp_path / 'gguf', 'q8_0')
    assert 0 < found['rounding'] < 0.02
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    # 40 are no blocks of 32.
    assert stored['blk.0.ffn_down.weight'].tensor_type == types.Type.Q8_0
    assert stored['blk.1.ffn_down.weight'].tensor_type == types.Type.F16


def test_zeros_may_stay(
    pruned: Callable[..., base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    model = pruned('llama', (64, 32), (2, 2))
    path, _ = _write(model, tmp_path / 'gguf', 'f16', tolerance=None, filled=True)
    reader = gguf_reader.GgufReader(path)
    assert reader.metadata('general.architecture') == 'llama'
    assert reader.hf_config['intermediate_size'] == 64
    with pytest.raises(errors.InputError, match='of another model'):
        _write(model, tmp_path / 'gguf', 'f16', tolerance=None)


def test_what_all_layers_lack_needs_no_other_architecture(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    base = tiny_chat('qwen3')
    read = base.reader.read
    with pytest.MonkeyPatch.context() as patch:

        def without(name: str, rows: slice = slice(None)) -> np.ndarray:
            found = read(name, rows).copy()
            if name.endswith('down_proj.weight'):
                found[:, [3, 5 + ('layers.1' in name)]] = 0
            return found

        patch.setattr(base.reader, 'read', without)
        found = uneven.trimmed(base)
        assert found.sizes is None
        assert found.model.config.d_ff == 94
        path, _ = _write(base, tmp_path / 'gguf', 'f32')
    assert gguf_reader.GgufReader(path).metadata('qwen3.feed_forward_length') == 94


def test_qwen3_has_no_such_architecture(
    pruned: Callable[..., base_model.BaseModel],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    model = pruned('qwen3', (64, 32), (2, 2))
    path, _ = _write(model, tmp_path / 'gguf', 'f32', tolerance=None)
    assert 'no architecture for such a qwen3' in capsys.readouterr().err
    reader = gguf_reader.GgufReader(path)
    assert reader.metadata('general.architecture') == 'qwen3'
    assert reader.metadata('qwen3.feed_forward_length') == 64


def test_a_qwen2_of_fewer_heads(
    pruned: Callable[..., base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    model = pruned('qwen2', (96, 96), (1, 1))
    path, _ = _write(model, tmp_path / 'gguf', 'f32', filled=True)
    assert gguf_reader.GgufReader(path).metadata('general.architecture') == 'deci'


def test_a_dense_model_is_left_alone(
    tiny_chat: Callable[[str], base_model.BaseModel],
) -> None:
    for family in ('llama', 'qwen2', 'qwen3'):
        model = tiny_chat(family)
        assert uneven.trimmed(model) == uneven.Trimmed(model)
        assert uneven.of_few_heads(model.config) is None


@pytest.mark.parametrize(
    ('metadata', 'said'),
    [
        ({'deci.feed_forward_length': [37, 0]}, 'only positive numbers for each of'),
        ({'deci.feed_forward_length': [37]}, 'each of its 2 blocks'),
        ({'deci.attention.head_count_kv': None}, 'to None'),
        ({'deci.attention.head_count_kv': [2, 3]}, 'different numbers of query heads'),
        ({'deci.feed_forward_length': [37, 36]}, r'\[37, 24\].*\[36, 24\]'),
    ],
)
def test_other_models_of_that_architecture(
    tmp_path: pathlib.Path, metadata: dict[str, Any], said: str
) -> None:
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    keys = gguf_files.metadata_of('deci', model.config) | metadata
    tensors = {
        gguf_files.gguf_name('llama', name): gguf_files.as_stored(
            'llama', name, weight, model.config
        )
        for name, weight in gguf_files.hf_weights(model).items()
    }
    path = gguf_files.write(tmp_path / 'm.gguf', 'deci', keys, tensors)
    with pytest.raises(errors.InputError, match=said):
        gguf_reader.GgufReader(path)
