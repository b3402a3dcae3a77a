"""Checkpoints as they come: whole, in shards, damaged, or another model's."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from ppjax.base import errors, json_lines
from ppjax.models import (
    base_model,
    checkpoint,
    loading,
    open_checkpoint,
    weights,
)
from ppjax.models import config as config_lib
from ppjax.parallel import sharding

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


def _load(folder, dtype=jnp.float32):
    return loading.load_decoder(*_open(folder), dtype=dtype)


def _refused(action, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        action()
    message = str(caught.value)
    assert '\n' not in message
    for part in parts:
        assert part in message


def _assert_equal(first, second) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


# --- What is read -------------------------------------------------------------


def test_every_tensor_lands_where_its_name_says(tiny_models, source):
    found = weights.weights_of(tiny_models('llama-biased').decoder)
    _, tensors = source
    seen = set()
    for attribute, weight in loading.BLOCK_WEIGHTS.items():
        if attribute not in found['blocks']:
            # Of other families, and of rotated models.
            assert attribute in ('q_norm', 'k_norm', 'turn_attention', 'turn_ffn')
            continue
        for layer in range(3):
            name = weight.hf_name.format(layer)
            seen.add(name)
            value = tensors[name].T if weight.transpose else tensors[name]
            np.testing.assert_array_equal(found['blocks'][attribute][layer], value)
    for attribute, weight in loading.TOP_WEIGHTS.items():
        if attribute not in found:
            assert attribute in ('last_turn', 'last_down', 'last_bias')
            continue
        seen.add(weight.hf_name)
        np.testing.assert_array_equal(found[attribute], tensors[weight.hf_name])
    assert seen == set(tensors)


def test_shards_equal_one_file(tmp_path, source):
    one = _write(tmp_path / 'one', *source)
    three = _write(tmp_path / 'three', *source, shards=3)
    assert not (three / 'model.safetensors').exists()
    _assert_equal(_load(one), _load(three))


def test_shards_as_transformers_writes_them(tiny_models, tmp_path):
    tiny = tiny_models('qwen3')
    tiny.hf.save_pretrained(tmp_path, max_shard_size='20KB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 2
    _assert_equal(_load(tmp_path), tiny.decoder)


@pytest.mark.parametrize('kind', [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_float_types_are_converted(tmp_path, source, kind):
    config, tensors = source
    rounded = {name: value.astype(kind) for name, value in tensors.items()}
    got = _load(_write(tmp_path / 'other', config, rounded))
    back = {name: value.astype(np.float32) for name, value in rounded.items()}
    _assert_equal(got, _load(_write(tmp_path / 'float32', config, back)))


def test_parameters_have_the_dtype_asked_for(tmp_path, source):
    decoder = _load(_write(tmp_path / 'a', *source), dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(decoder):
        assert leaf.dtype == jnp.bfloat16


@pytest.mark.parametrize('entries', [1, 50, 1000])
def test_tensors_may_be_read_in_pieces(tmp_path, source, monkeypatch, entries):
    config, tensors = source
    folder = _write(tmp_path / 'x', config, tensors)
    whole = _load(folder)
    monkeypatch.setattr(loading, '_READ_ENTRIES', entries)
    pieces = _load(folder)
    for one, other in zip(jax.tree.leaves(pieces), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('entries', [1, 50, 1 << 22])
@pytest.mark.parametrize(
    'text', ['data:8', 'fsdp:8', 'fsdp:4,tensor:2', 'data:2,fsdp:2,tensor:2']
)
@pytest.mark.parametrize('int8_matrices', [False, True])
def test_a_mesh_gets_the_same_weights(
    tmp_path, source, monkeypatch, text, entries, int8_matrices
):
    config, tensors = source
    # 104 words can be shared out.
    tensors = dict(tensors)
    for name in ('model.embed_tokens.weight', 'lm_head.weight'):
        tensors[name] = np.resize(tensors[name], (104, tensors[name].shape[1]))
    folder = _write(tmp_path / 'x', config | {'vocab_size': 104}, tensors)
    settings = {'dtype': jnp.bfloat16, 'int8_matrices': int8_matrices}
    plain = loading.load_decoder(*_open(folder), **settings)
    monkeypatch.setattr(loading, '_READ_ENTRIES', entries)
    mesh = sharding.make_mesh(text, jax.devices())
    spread = loading.load_decoder(*_open(folder), **settings, mesh=mesh)
    _assert_equal(plain, spread)
    placed = sharding.shardings(weights.weights_of(plain), mesh)
    for value, place in zip(
        jax.tree.leaves(weights.weights_of(spread)),
        jax.tree.leaves(placed),
        strict=True,
    ):
        assert value.sharding == place


def test_a_mesh_that_does_not_fit_is_refused(tmp_path, source):
    folder = _write(tmp_path / 'x', *source)
    mesh = sharding.make_mesh('fsdp:1,tensor:8', jax.devices())
    with pytest.raises(errors.InputError, match='tensor:8 does not divide'):
        loading.load_decoder(*_open(folder), dtype=jnp.float32, mesh=mesh)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(300, 7), (3, 5, 11), (1,)])
def test_a_cpu_takes_weights_over_without_a_copy(dtype, shape):
    ours = loading._aligned_empty(shape, dtype)
    ours[:] = 1
    placed = jax.device_put(ours, jax.devices('cpu')[0])
    assert placed.unsafe_buffer_pointer() == ours.ctypes.data
    assert placed.dtype == dtype
    assert placed.shape == shape


def test_rows_are_a_range_of_the_leading_axis(tmp_path, source):
    reader, _ = _open(_write(tmp_path / 'a', *source))
    name = 'model.layers.1.mlp.up_proj.weight'
    whole = source[1][name]
    np.testing.assert_array_equal(reader.read(name), whole)
    np.testing.assert_array_equal(reader.read(name, slice(3, 8)), whole[3:8])
    np.testing.assert_array_equal(reader.read(name, slice(50, None)), whole[50:])
    assert reader.shape(name) == (52, 24)
    assert reader.dtype(name) == np.float32
    assert reader.names() == sorted(source[1])


def test_progress_counts_every_tensor(tmp_path, source):
    calls = []
    reader, cfg = _open(_write(tmp_path / 'a', *source))
    loading.load_decoder(
        reader, cfg, dtype=jnp.float32, progress=lambda *call: calls.append(call)
    )
    total = len(source[1])
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_tied_checkpoints_may_repeat_the_embedding(tiny_models, tmp_path, source):
    tiny = tiny_models('llama-tied')
    config = json.loads((tiny.path / 'config.json').read_text())
    tensors = safetensors_numpy.load_file(tiny.path / 'model.safetensors')
    assert 'lm_head.weight' not in tensors
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
    _assert_equal(_load(_write(tmp_path / 'a', config, tensors)), tiny.decoder)


def test_rope_buffers_of_old_checkpoints_are_passed_over(tmp_path, source):
    config, tensors = source
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    more = tensors | {name: np.ones(5, np.float32)}
    _assert_equal(
        _load(_write(tmp_path / 'a', config, more)),
        _load(_write(tmp_path / 'b', config, tensors)),
    )


# --- What is refused ----------------------------------------------------------

_UP = 'model.layers.1.mlp.up_proj.weight'


def test_missing_tensor(tmp_path, source):
    config, tensors = source
    left = {name: value for name, value in tensors.items() if name != _UP}
    folder = _write(tmp_path / 'a', config, left)
    _refused(lambda: _load(folder), str(folder), _UP, '1 of 51')
    reader, _ = _open(folder)
    for action in (reader.shape, reader.dtype, reader.read):
        _refused(lambda action=action: action(_UP), _UP)


def test_unknown_tensor(tmp_path, source):
    config, tensors = source
    name = 'model.layers.1.mlp.router.weight'
    more = tensors | {name: np.ones((2, 2), np.float32)}
    _refused(lambda: _load(_write(tmp_path / 'a', config, more)), name, 'llama')


@pytest.mark.parametrize('name', [_UP, 'model.norm.weight', 'lm_head.weight'])
def test_wrong_shape(tmp_path, source, name):
    config, tensors = source
    wrong = tensors | {name: tensors[name][:-1]}
    folder = _write(tmp_path / 'a', config, wrong)
    _refused(
        lambda: _load(folder),
        name,
        str(tensors[name][:-1].shape),
        str(tensors[name].shape),
    )


def test_transposed_tensor(tmp_path, source):
    config, tensors = source
    wrong = tensors | {_UP: np.ascontiguousarray(tensors[_UP].T)}
    _refused(
        lambda: _load(_write(tmp_path / 'a', config, wrong)),
        _UP,
        '(24, 52)',
        '(52, 24)',
    )


@pytest.mark.parametrize('kind', [np.int8, np.uint8, np.int32, np.bool_])
def test_wrong_dtype(tmp_path, source, kind):
    config, tensors = source
    wrong = tensors | {_UP: tensors[_UP].astype(kind)}
    _refused(lambda: _load(_write(tmp_path / 'a', config, wrong)), _UP, 'GGUF')


def test_missing_shard(tmp_path, source):
    folder = _write(tmp_path / 'a', *source, shards=3)
    gone = folder / 'model-00002-of-00003.safetensors'
    gone.unlink()
    _refused(lambda: _open(folder), str(gone), 'does not exist')


@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path, source, share):
    folder = _write(tmp_path / 'a', *source)
    file = folder / 'model.safetensors'
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    _refused(lambda: _open(folder), str(file), 'truncated')


def test_truncated_shard(tmp_path, source):
    folder = _write(tmp_path / 'a', *source, shards=2)
    file = folder / 'model-00002-of-00002.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
    _refused(lambda: _open(folder), str(file), 'truncated')


@pytest.mark.parametrize('kind', ['../x', '/abs', 'sub/x', '..', '.', '', 5, None])
def test_shard_path_that_leaves_the_directory(tmp_path, source, kind):
    folder = _write(tmp_path / 'a', *source)
    # What it points at is a good checkpoint: only the path is refused.
    inside = folder / 'model.safetensors'
    (tmp_path / 'x').write_bytes(inside.read_bytes())
    (folder / 'sub').mkdir()
    (folder / 'sub' / 'x').write_bytes(inside.read_bytes())
    inside.unlink()
    file = str(tmp_path / 'x') if kind == '/abs' else kind
    where = dict.fromkeys(source[1], file)
    (folder / _INDEX).write_text(json.dumps({'weight_map': where}))
    _refused(lambda: _open(folder), _INDEX, f'{file!r} is not a file name')


def test_index_that_names_the_wrong_shard(tmp_path, source):
    folder = _write(tmp_path / 'a', *source, shards=2)
    index = json.loads((folder / _INDEX).read_text())
    first, second = sorted(set(index['weight_map'].values()))
    index['weight_map'][_UP] = second if index['weight_map'][_UP] == first else first
    (folder / _INDEX).write_text(json.dumps(index))
    _refused(lambda: _open(folder), _UP, 'lacks tensor')


@pytest.mark.parametrize('index', ['{}', '{"weight_map": []}', '[]', '{"weight_', ''])
def test_damaged_index(tmp_path, source, index):
    folder = _write(tmp_path / 'a', *source, shards=2)
    (folder / _INDEX).write_text(index)
    _refused(lambda: _open(folder), _INDEX)


@pytest.mark.parametrize(
    'config', [b'', b'{', b'[]', b'\xff\xfe', b'null', b'[' * 100_000]
)
def test_damaged_config(tmp_path, source, config):
    folder = _write(tmp_path / 'a', *source)
    (folder / 'config.json').write_bytes(config)
    _refused(lambda: _open(folder), 'config.json')


def test_unreadable_config(tmp_path, source):
    folder = _write(tmp_path / 'a', *source)
    (folder / 'config.json').unlink()
    _refused(lambda: _open(folder), 'config.json', 'does not exist')
    (folder / 'config.json').mkdir()
    _refused(lambda: _open(folder), 'config.json')


def test_pickles_are_not_weights(tmp_path, source):
    folder = _write(tmp_path / 'a', *source)
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
    _refused(lambda: _open(folder), str(folder), '.bin')


# --- Base models --------------------------------------------------------------


def test_directory_opens(tiny_models):
    tiny = tiny_models('qwen2')
    base = base_model.open_base_model(str(tiny.path))
    assert base.config == tiny.config
    assert base.generation_config()['eos_token_id'] == 2
    _refused(base.tokenizer, str(tiny.path), 'tokenizer')


def test_generation_config_is_the_files_or_the_configs(tmp_path, source):
    folder = _write(tmp_path / 'a', *source)
    base = base_model.open_base_model(str(folder))
    assert base.generation_config() == {
        'bos_token_id': 1,
        'eos_token_id': 2,
        'pad_token_id': 0,
    }
    (folder / 'generation_config.json').write_text('{"eos_token_id": [5, 6]}')
    assert base.generation_config() == {'eos_token_id': [5, 6]}
    (folder / 'generation_config.json').write_text('{')
    _refused(base.generation_config, 'generation_config.json')


def test_neither_directory_nor_gguf(tmp_path, source):
    file = tmp_path / 'model.safetensors'
    safetensors_numpy.save_file(source[1], file)
    _refused(lambda: base_model.open_base_model(str(file)), str(file), '.gguf')


def test_other_architectures_are_refused_before_weights_are_read(tmp_path, source):
    config, tensors = source
    folder = _write(tmp_path / 'a', config | {'model_type': 'mixtral'}, tensors)
    _refused(lambda: base_model.open_base_model(str(folder)), 'mixtral')


def test_safetensors_reader_reads_json_objects_only(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"a": 1}')
    assert json_lines.read_object(path) == {'a': 1}
    path.write_text('3')
    _refused(lambda: json_lines.read_object(path), str(path))
