"""GGUF reading against transformers, gguf's own dequantisation and real weights."""

from collections.abc import Mapping
import pathlib
from typing import Any

import gguf
import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from ppjax.base import errors
from ppjax.models import gguf_reader, gguf_tokenizer

_Type = gguf.GGMLQuantizationType

# No value is a default of any config class; 6 heads share 2 key/value heads.
_TINY: dict[str, Any] = {
    'hidden_size': 24,
    'intermediate_size': 37,
    'num_hidden_layers': 2,
    'num_attention_heads': 6,
    'num_key_value_heads': 2,
    'head_dim': 10,
    'rms_norm_eps': 3e-3,
    'max_position_embeddings': 77,
    'vocab_size': 51,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0},
    'bos_token_id': 7,
    'eos_token_id': 9,
    'pad_token_id': 11,
    'tie_word_embeddings': False,
}
# Rows are whole blocks of 32, and of 256.
_BLOCK_32 = {
    **_TINY,
    'hidden_size': 96,
    'intermediate_size': 160,
    'num_attention_heads': 3,
    'num_key_value_heads': 1,
    'head_dim': 32,
}
_BLOCK_256 = {
    **_TINY,
    'hidden_size': 256,
    'intermediate_size': 512,
    'num_attention_heads': 8,
    'num_key_value_heads': 2,
    'head_dim': 32,
    'num_hidden_layers': 1,
}
_ARCHS = {
    'llama': (transformers.LlamaConfig, gguf.MODEL_ARCH.LLAMA),
    'qwen2': (transformers.Qwen2Config, gguf.MODEL_ARCH.QWEN2),
    'qwen3': (transformers.Qwen3Config, gguf.MODEL_ARCH.QWEN3),
}


def _config(arch: str, **changes: Any) -> transformers.PretrainedConfig:
    return _ARCHS[arch][0](**{**_TINY, **changes})


def _model(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """Random everywhere, norms and biases too, so that no swap goes unseen."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _hf_weights(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    weights = {name: w.numpy() for name, w in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights['lm_head.weight']
    return weights


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does: rows j and j + H/2 of a head side by side."""
    stacked: list[np.ndarray] = []
    for head in np.split(rows, heads):
        first, second = np.split(head, 2)
        for pair in zip(first, second, strict=True):
            stacked += pair
    return np.stack(stacked)


def _as_stored(arch: str, name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    if arch == 'llama' and '.q_proj.' in name:
        return _interleaved(weight, config.num_attention_heads)
    if arch == 'llama' and '.k_proj.' in name:
        return _interleaved(weight, config.num_key_value_heads)
    return weight


def _metadata(arch: str, config: transformers.PretrainedConfig) -> dict[str, Any]:
    return {
        f'{arch}.block_count': config.num_hidden_layers,
        f'{arch}.context_length': config.max_position_embeddings,
        f'{arch}.embedding_length': config.hidden_size,
        f'{arch}.feed_forward_length': config.intermediate_size,
        f'{arch}.attention.head_count': config.num_attention_heads,
        f'{arch}.attention.head_count_kv': config.num_key_value_heads,
        f'{arch}.attention.key_length': config.head_dim,
        f'{arch}.attention.value_length': config.head_dim,
        f'{arch}.attention.layer_norm_rms_epsilon': config.rms_norm_eps,
        f'{arch}.rope.dimension_count': config.head_dim,
        f'{arch}.rope.freq_base': config.rope_parameters['rope_theta'],
        f'{arch}.vocab_size': config.vocab_size,
        'tokenizer.ggml.bos_token_id': config.bos_token_id,
        'tokenizer.ggml.eos_token_id': config.eos_token_id,
        'tokenizer.ggml.padding_token_id': config.pad_token_id,
    }


def _gguf_name(arch: str, hf_name: str) -> str:
    """gguf's own table is the reference for names."""
    stem, part = hf_name.rsplit('.', 1)
    return f'{gguf.get_tensor_name_map(_ARCHS[arch][1], 4).get_name(stem)}.{part}'


def _write(
    path: pathlib.Path,
    arch: str,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    types: dict[str, _Type] | None = None,
    *,
    endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> pathlib.Path:
    """Writes tensors under GGUF names; those in `types` are already raw bytes."""
    writer = gguf.GGUFWriter(path, arch, endianess=endianess)
    for key, value in metadata.items():
        match value:
            case None:
                continue
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_model(
    path: pathlib.Path,
    arch: str,
    model: transformers.PreTrainedModel,
    *,
    metadata: dict[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    types: dict[str, _Type] | None = None,
) -> pathlib.Path:
    """A float32 GGUF of a model; `metadata` and `tensors` replace or, None, drop."""
    stored: dict[str, np.ndarray | None] = {
        _gguf_name(arch, name): _as_stored(arch, name, weight, model.config)
        for name, weight in _hf_weights(model).items()
    }
    stored.update(tensors or {})
    return _write(
        path,
        arch,
        _metadata(arch, model.config) | (metadata or {}),
        {name: tensor for name, tensor in stored.items() if tensor is not None},
        types,
    )


def _assert_refused(path: pathlib.Path, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        gguf_reader.GgufReader(path)
    message = str(caught.value)
    assert '\n' not in message
    for part in (str(path), *parts):
        assert part in message


@pytest.mark.parametrize(
    ('arch', 'changes'),
    [
        ('llama', {}),
        ('llama', {'tie_word_embeddings': True}),
        ('llama', {'attention_bias': True}),
        ('llama', {'mlp_bias': True}),
        ('qwen2', {}),
        ('qwen3', {'tie_word_embeddings': True}),
    ],
)
def test_reads_back_the_weights_and_config_of_transformers(tmp_path, arch, changes):
    if arch == 'qwen2':
        # Qwen2 has no head_dim of its own; it is D / N, and no key states it.
        changes = {**changes, 'head_dim': 4}
    config = _config(arch, **changes)
    model = _model(config)
    drop = {} if arch == 'llama' else {f'{arch}.rope.dimension_count': None}
    if arch == 'qwen2':
        drop |= {f'qwen2.attention.{part}_length': None for part in ('key', 'value')}
    path = _write_model(tmp_path / 'm.gguf', arch, model, metadata=drop)

    reader = gguf_reader.GgufReader(path)

    weights = _hf_weights(model)
    assert reader.names() == sorted(weights)
    for name, weight in weights.items():
        assert reader.shape(name) == weight.shape
        assert reader.dtype(name) == np.float32
        np.testing.assert_array_equal(reader.read(name), weight, err_msg=name)
    for key in (*_TINY, 'model_type', *changes):
        assert reader.hf_config[key] == getattr(config, key), key
    rebuilt = _ARCHS[arch][0](**reader.hf_config)
    again = transformers.AutoModelForCausalLM.from_config(rebuilt).eval()
    assert reader.hf_config['architectures'] == [type(again).__name__]
    again.load_state_dict(model.state_dict())
    tokens = torch.arange(40)[None] % 51
    np.testing.assert_array_equal(
        again(tokens).logits.detach().numpy(), model(tokens).logits.detach().numpy()
    )


def test_reads_head_count_as_kv_count_where_absent(tmp_path):
    # The GGUF specification's meaning of the missing key.
    model = _model(_config('llama', num_key_value_heads=6))
    path = _write_model(
        tmp_path / 'm.gguf',
        'llama',
        model,
        metadata={'llama.attention.head_count_kv': None, 'llama.vocab_size': None},
    )
    reader = gguf_reader.GgufReader(path)
    assert reader.hf_config['num_key_value_heads'] == 6
    assert reader.hf_config['vocab_size'] == 51


def test_small_epsilon_is_the_shortest_decimal(tmp_path):
    path = _write_model(
        tmp_path / 'm.gguf', 'llama', _model(_config('llama', rms_norm_eps=1e-5))
    )
    reader = gguf_reader.GgufReader(path)
    assert reader.metadata('llama.attention.layer_norm_rms_epsilon') != 1e-5
    assert reader.hf_config['rms_norm_eps'] == 1e-5


def test_metadata_gives_python_values_or_the_default(tmp_path):
    extra = {'general.tags': ['a', 'b'], 'tokenizer.ggml.add_bos_token': True}
    path = _write_model(
        tmp_path / 'm.gguf', 'llama', _model(_config('llama')), metadata=extra
    )
    reader = gguf_reader.GgufReader(path)
    assert reader.metadata('general.tags') == ['a', 'b']
    assert reader.metadata('tokenizer.ggml.add_bos_token') is True
    assert reader.metadata('no.such.key') is None
    assert reader.metadata('no.such.key', 3) == 3


def _random_blocks(kind: _Type, shape: tuple[int, int]) -> np.ndarray:
    """Valid bytes of a type that gguf cannot quantise to: any, with finite scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    scales = rng.normal(size=(len(raw), 2)).astype(np.float16)
    if kind == _Type.Q4_K:
        raw[:, :4] = scales.view(np.uint8)
    else:
        raw[:, -2:] = scales[:, :1].copy().view(np.uint8)
    return raw.reshape(shape[0], -1)


@pytest.mark.parametrize(
    ('kind', 'tiny', 'error'),
    # Half a step as a share of the largest weight, a whole one where Q4_0 clips,
    # and a tenth for the scale's own rounding to float16.
    [
        (_Type.Q8_0, _BLOCK_32, 0.55 / 127),
        (_Type.Q4_0, _BLOCK_32, 1.1 / 8),
        (_Type.Q4_1, _BLOCK_32, 1.1 / 15),
        (_Type.Q4_K, _BLOCK_256, None),
        (_Type.Q6_K, _BLOCK_256, None),
    ],
)
def test_quantised_matrices_give_gguf_values(tmp_path, kind, tiny, error):
    model = _model(_config('llama', **tiny))
    raw = {}
    for name, weight in _hf_weights(model).items():
        if weight.ndim == 2:
            stored = _as_stored('llama', name, weight, model.config)
            raw[name] = (
                _random_blocks(kind, weight.shape)
                if error is None
                else gguf.quants.quantize(stored, kind)
            )
    renamed = {_gguf_name('llama', name): name for name in raw}
    path = _write_model(
        tmp_path / 'm.gguf',
        'llama',
        model,
        tensors={name: raw[hf_name] for name, hf_name in renamed.items()},
        types=dict.fromkeys(renamed, kind),
    )

    reader = gguf_reader.GgufReader(path)

    assert reader.hf_config['dtype'] == 'float32'
    for name, weight in _hf_weights(model).items():
        got = reader.read(name)
        assert got.dtype == reader.dtype(name) == np.float32
        assert got.shape == reader.shape(name) == weight.shape
        if name not in raw:
            np.testing.assert_array_equal(got, weight)
            continue
        want = gguf.quants.dequantize(raw[name], kind)
        np.testing.assert_array_equal(
            _as_stored('llama', name, got, model.config), want
        )
        if error is not None:
            np.testing.assert_allclose(
                got, weight, rtol=0, atol=error * np.abs(weight).max()
            )


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_keeps_its_dtype(tmp_path, dtype):
    model = _model(_config('llama'))
    kind = _Type.F16 if dtype == np.float16 else _Type.BF16
    halves = {
        name: weight.astype(dtype)
        for name, weight in _hf_weights(model).items()
        if weight.ndim == 2
    }
    tensors = {}
    for name, weight in halves.items():
        stored = _as_stored('llama', name, weight, model.config)
        tensors[_gguf_name('llama', name)] = (
            stored if kind == _Type.F16 else stored.view(np.uint8)
        )
    path = _write_model(
        tmp_path / 'm.gguf',
        'llama',
        model,
        tensors=tensors,
        types=dict.fromkeys(tensors, kind),
    )

    reader = gguf_reader.GgufReader(path)

    assert reader.hf_config['dtype'] == np.dtype(dtype).name
    assert reader.dtype('model.norm.weight') == np.float32
    for name, weight in halves.items():
        got = reader.read(name)
        assert got.dtype == reader.dtype(name) == dtype
        np.testing.assert_array_equal(got, weight, err_msg=name)


def test_two_half_precisions_widen_to_float32(tmp_path):
    model = _model(_config('llama'))
    name = 'blk.0.ffn_up.weight'
    half = _hf_weights(model)['model.layers.0.mlp.up_proj.weight'].astype(np.float16)
    path = _write_model(tmp_path / 'm.gguf', 'llama', model, tensors={name: half})
    assert gguf_reader.GgufReader(path).hf_config['dtype'] == 'float32'


@pytest.fixture(scope='module')
def quantised(tmp_path_factory) -> gguf_reader.GgufReader:
    """Q8_0 projections, a bfloat16 embedding and float32 norms in one file."""
    model = _model(_config('llama', **_BLOCK_32))
    tensors, types = {}, {}
    for name, weight in _hf_weights(model).items():
        stored = _as_stored('llama', name, weight, model.config)
        gguf_name = _gguf_name('llama', name)
        if name == 'model.embed_tokens.weight':
            tensors[gguf_name] = stored.astype(ml_dtypes.bfloat16).view(np.uint8)
            types[gguf_name] = _Type.BF16
        elif weight.ndim == 2:
            tensors[gguf_name] = gguf.quants.quantize(stored, _Type.Q8_0)
            types[gguf_name] = _Type.Q8_0
    path = tmp_path_factory.mktemp('quantised') / 'm.gguf'
    _write_model(path, 'llama', model, tensors=tensors, types=types)
    return gguf_reader.GgufReader(path)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(data=st.data())
def test_rows_equal_the_full_read(quantised, data):
    name = data.draw(st.sampled_from(quantised.names()))
    rows = quantised.shape(name)[0]
    bound = st.none() | st.integers(-rows - 2, rows + 2)
    part = slice(data.draw(bound), data.draw(bound))
    got = quantised.read(name, part)
    want = quantised.read(name)[part]
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want, strict=True)


def test_only_the_rows_asked_for_are_dequantised(quantised, monkeypatch):
    seen = []
    original = gguf.quants.dequantize
    monkeypatch.setattr(
        gguf.quants,
        'dequantize',
        lambda data, kind: seen.append(data.shape) or original(data, kind),
    )
    quantised.read('model.layers.1.self_attn.q_proj.weight', slice(5, 12))
    quantised.read('model.layers.1.mlp.up_proj.weight', slice(5, 12))
    assert seen == [(7, 102), (7, 102)]


def test_reads_are_private_copies(quantised):
    for name in ('model.norm.weight', 'model.embed_tokens.weight'):
        first = quantised.read(name)
        assert type(first) is np.ndarray
        first[:] = 0
        assert np.any(quantised.read(name))


def test_strided_rows_and_unknown_names_are_refused(quantised):
    with pytest.raises(ValueError, match='step 1'):
        quantised.read('model.norm.weight', slice(None, None, 2))
    for method in (quantised.read, quantised.shape, quantised.dtype):
        with pytest.raises(errors.InputError, match=r"no tensor for 'lm_tail'"):
            method('lm_tail')


def _rope_factors(**parameters: Any) -> np.ndarray:
    """transformers' frequencies say by what it divides them."""
    plain = {'rope_type': 'default', 'rope_theta': 500000.0}
    frequencies = []
    for rope in (plain, {**plain, **parameters}):
        config = transformers.LlamaConfig(
            **{**_TINY, 'head_dim': 32, 'rope_parameters': rope}
        )
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        frequencies.append(rotary.inv_freq.numpy())
    return (frequencies[0] / frequencies[1]).astype(np.float32)


def _llama3(factor: float, original: int = 8192) -> dict[str, Any]:
    return {
        'rope_type': 'llama3',
        'factor': factor,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': original,
    }


def _write_rope(
    path: pathlib.Path, factors: np.ndarray, arch: str = 'llama'
) -> pathlib.Path:
    rope = {'rope_type': 'default', 'rope_theta': 500000.0}
    model = _model(_config(arch, head_dim=32, rope_parameters=rope))
    return _write_model(path, arch, model, tensors={'rope_freqs.weight': factors})


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_llama3_rope_scaling_is_recovered(tmp_path, factor):
    factors = _rope_factors(**_llama3(factor))
    # Unscaled, interpolated and fully scaled frequencies are all there.
    assert factors[0] == 1 and factors[-1] == pytest.approx(factor)
    assert np.any((factors > 1.01) & (factors < factor - 0.01))

    reader = gguf_reader.GgufReader(_write_rope(tmp_path / 'm.gguf', factors))

    assert reader.hf_config['rope_parameters'] == {
        'rope_theta': 500000.0,
        **_llama3(factor),
    }
    assert not any('rope' in name for name in reader.names())


def test_rope_factors_of_one_mean_no_scaling(tmp_path):
    path = _write_rope(tmp_path / 'm.gguf', np.ones(16, np.float32))
    reader = gguf_reader.GgufReader(path)
    assert reader.hf_config['rope_parameters']['rope_type'] == 'default'


@pytest.mark.parametrize(
    ('factors', 'part'),
    [
        (_rope_factors(**_llama3(16.0)), 'rope_freqs.weight, up to 16'),
        (_rope_factors(**_llama3(8.0, original=4096)), 'rope_freqs.weight, up to 8'),
        (np.ones(15, np.float32), 'wanted F32 [16]'),
        (np.ones(16, np.float16), 'wanted F32 [16]'),
    ],
)
def test_other_rope_factors_are_refused(tmp_path, factors, part):
    _assert_refused(_write_rope(tmp_path / 'm.gguf', factors), part)


def test_rope_factors_of_another_architecture_are_refused(tmp_path):
    path = _write_rope(tmp_path / 'm.gguf', np.ones(16, np.float32), 'qwen3')
    _assert_refused(path, 'rope_freqs.weight', 'qwen3')


@pytest.mark.parametrize(
    ('metadata', 'parts'),
    [
        ({'general.architecture': 'gemma2'}, ["'gemma2'", 'llama, qwen2, qwen3']),
        ({'llama.block_count': None}, ['llama.block_count']),
        ({'llama.context_length': None}, ['llama.context_length']),
        ({'llama.embedding_length': None}, ['llama.embedding_length']),
        ({'llama.feed_forward_length': None}, ['llama.feed_forward_length']),
        ({'llama.attention.head_count': None}, ['llama.attention.head_count']),
        (
            {'llama.attention.layer_norm_rms_epsilon': None},
            ['llama.attention.layer_norm_rms_epsilon'],
        ),
        ({'llama.rope.freq_base': None}, ['llama.rope.freq_base']),
        ({'llama.attention.head_count_kv': [2, 1]}, ['head_count_kv', 'per layer']),
        ({'llama.feed_forward_length': [37, 37]}, ['feed_forward', 'per layer']),
        ({'llama.block_count': 0}, ['llama.block_count', 'positive int']),
        ({'llama.block_count': '2'}, ['llama.block_count', 'positive int']),
        ({'llama.rope.scaling.type': 'yarn'}, ['llama.rope.scaling.type', 'yarn']),
        ({'llama.rope.scaling.factor': 4.0}, ['llama.rope.scaling.factor', '4.0']),
        (
            {'llama.rope.scaling.original_context_length': 32},
            ['llama.rope.scaling.original_context_length'],
        ),
        ({'llama.rope.scale_linear': 2.0}, ['llama.rope.scale_linear']),
        ({'llama.attention.sliding_window': 8}, ['llama.attention.sliding_window']),
        ({'llama.expert_count': 8}, ['llama.expert_count']),
        ({'llama.rope.dimension_count': 6}, ['llama.rope.dimension_count 6', '10']),
        ({'llama.attention.value_length': 6}, ['llama.attention.value_length 6']),
        ({'llama.vocab_size': 52}, ['token_embd.weight', '[51, 24]', '[52, 24]']),
        ({'llama.block_count': 3}, ["'blk.2.attn_norm.weight'", 'download it again']),
        ({'llama.block_count': 1}, ["'blk.1.", 'block_count 1']),
        ({'split.count': 3}, ['one of 3 parts', 'merge']),
    ],
)
def test_metadata_that_we_cannot_honour_are_refused(tmp_path, metadata, parts):
    model = _model(_config('llama'))
    path = _write_model(tmp_path / 'm.gguf', 'llama', model, metadata=metadata)
    _assert_refused(path, *parts)


@pytest.mark.parametrize(
    'metadata',
    [
        {'llama.rope.scaling.type': 'none'},
        {'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 1.0},
        {'llama.expert_count': 0, 'llama.expert_used_count': 0},
        {'split.count': 1},
    ],
)
def test_neutral_metadata_are_accepted(tmp_path, metadata):
    model = _model(_config('llama'))
    path = _write_model(tmp_path / 'm.gguf', 'llama', model, metadata=metadata)
    reader = gguf_reader.GgufReader(path)
    assert reader.hf_config['rope_parameters'] == _TINY['rope_parameters']


@pytest.mark.parametrize(
    ('arch', 'tensors', 'parts'),
    [
        ('llama', {'blk.1.ffn_up.weight': None}, ["lacks the tensor 'blk.1.ffn_up"]),
        ('llama', {'token_embd.weight': None}, ["lacks the tensor 'token_embd"]),
        ('llama', {'output_norm.weight': None}, ["lacks the tensor 'output_norm"]),
        # One bias calls for the others of its kind.
        ('llama', {'blk.0.attn_q.bias': np.zeros(60)}, ["lacks the tensor 'blk.0.at"]),
        ('qwen2', {'blk.1.attn_k.bias': None}, ["lacks the tensor 'blk.1.attn_k.bias"]),
        ('qwen3', {'blk.0.attn_q_norm.weight': None}, ["'blk.0.attn_q_norm.weight'"]),
        ('qwen3', {'blk.0.attn_q.bias': np.zeros(60)}, ['no part of a qwen3 model']),
        ('llama', {'blk.0.attn_q_norm.weight': np.zeros(10)}, ['no part of a llama']),
        ('llama', {'blk.0.ffn_gate_inp.weight': np.zeros((2, 24))}, ['ffn_gate_inp']),
        (
            'llama',
            {'blk.0.ffn_up.weight': np.zeros((36, 24))},
            ['[36, 24]', '[37, 24]'],
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(tmp_path, arch, tensors, parts):
    head_dim = 4 if arch == 'qwen2' else 10
    model = _model(_config(arch, head_dim=head_dim))
    changed = {
        name: None if tensor is None else tensor.astype(np.float32)
        for name, tensor in tensors.items()
    }
    path = _write_model(tmp_path / 'm.gguf', arch, model, tensors=changed)
    _assert_refused(path, *parts)


@pytest.mark.parametrize('kind', [_Type.Q5_0, _Type.Q5_1])
def test_other_quantisations_are_refused_by_type_and_tensor(tmp_path, kind):
    model = _model(_config('llama', **_BLOCK_32))
    name = 'blk.1.ffn_up.weight'
    raw = gguf.quants.quantize(np.ones((160, 96), np.float32), kind)
    path = _write_model(
        tmp_path / 'm.gguf', 'llama', model, tensors={name: raw}, types={name: kind}
    )
    _assert_refused(path, repr(name), kind.name, 'Q4_K')


def test_files_that_are_not_gguf_are_refused(tmp_path):
    path = tmp_path / 'm.gguf'
    _assert_refused(path, 'No such file')
    path.write_bytes(b'PK\3\4 and so on')
    _assert_refused(path, 'GGUF', "b'PK")
    path.write_bytes(b'')
    _assert_refused(path, "b''")
    path.write_bytes(b'GGUF' + bytes(200))
    _assert_refused(path, 'download it again')


def test_big_endian_files_are_refused(tmp_path):
    path = _write(tmp_path / 'm.gguf', 'llama', {}, {}, endianess=gguf.GGUFEndian.BIG)
    _assert_refused(path, 'big-endian')


def test_every_truncation_is_refused(tmp_path):
    model = _model(_config('llama', num_hidden_layers=1))
    whole = _write_model(tmp_path / 'whole.gguf', 'llama', model).read_bytes()
    path = tmp_path / 'm.gguf'
    header = len(whole) - sum(w.nbytes for w in _hf_weights(model).values())
    # All of the header in steps of 7, the data sparsely, and the last bytes.
    cuts = [*range(0, header, 7), *range(header, len(whole), 997)]
    for cut in [*cuts, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(errors.InputError) as caught:
            gguf_reader.GgufReader(path)
        assert '\n' not in str(caught.value)
        assert 'download it again' in str(caught.value)
    path.write_bytes(whole)
    gguf_reader.GgufReader(path)


@pytest.fixture(scope='module')
def smollm2(smollm2_base) -> gguf_reader.GgufReader:
    return smollm2_base.reader


def test_smollm2_config_is_that_of_its_hub_repository(smollm2):
    config = smollm2.hf_config
    assert config == {
        'architectures': ['LlamaForCausalLM'],
        'attention_bias': False,
        'bos_token_id': 1,
        'dtype': 'float32',
        'eos_token_id': 2,
        'head_dim': 64,
        'hidden_act': 'silu',
        'hidden_size': 576,
        'intermediate_size': 1536,
        'max_position_embeddings': 8192,
        'mlp_bias': False,
        'model_type': 'llama',
        'num_attention_heads': 9,
        'num_hidden_layers': 30,
        'num_key_value_heads': 3,
        'pad_token_id': 2,
        'rms_norm_eps': 1e-05,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 100000.0},
        'tie_word_embeddings': True,
        'vocab_size': 49152,
    }


def test_smollm2_knows_the_capital_of_france(smollm2):
    with torch.device('meta'):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**smollm2.hf_config)
        )
    weights = {name: torch.from_numpy(smollm2.read(name)) for name in smollm2.names()}
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    assert missing == ['lm_head.weight'] and not unexpected
    model.tie_weights()
    rotary = type(model.model.rotary_emb)(model.config)
    model.model.rotary_emb = rotary
    tokenizer = gguf_tokenizer.tokenizer_from_gguf(smollm2)
    inputs = tokenizer('The capital of France is', return_tensors='pt')
    output = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
    assert 'Paris' in tokenizer.decode(output[0])
