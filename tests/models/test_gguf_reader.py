"""GGUF reading against transformers, gguf's own dequantisation and real weights."""

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
from tests.models import gguf_files


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
    config = gguf_files.config_of(arch, **changes)
    model = gguf_files.model_of(config)
    drop = {} if arch == 'llama' else {f'{arch}.rope.dimension_count': None}
    if arch == 'qwen2':
        drop |= {f'qwen2.attention.{part}_length': None for part in ('key', 'value')}
    path = gguf_files.write_model(tmp_path / 'm.gguf', arch, model, metadata=drop)

    reader = gguf_reader.GgufReader(path)

    weights = gguf_files.hf_weights(model)
    assert reader.names() == sorted(weights)
    for name, weight in weights.items():
        assert reader.shape(name) == weight.shape
        assert reader.dtype(name) == np.float32
        np.testing.assert_array_equal(reader.read(name), weight, err_msg=name)
    for key in (*gguf_files.TINY, 'model_type', *changes):
        assert reader.hf_config[key] == getattr(config, key), key
    rebuilt = gguf_files.ARCHS[arch][0](**reader.hf_config)
    again = transformers.AutoModelForCausalLM.from_config(rebuilt).eval()
    assert reader.hf_config['architectures'] == [type(again).__name__]
    again.load_state_dict(model.state_dict())
    tokens = torch.arange(40)[None] % 51
    np.testing.assert_array_equal(
        again(tokens).logits.detach().numpy(), model(tokens).logits.detach().numpy()
    )


def test_reads_head_count_as_kv_count_where_absent(tmp_path):
    # The GGUF specification's meaning of the missing key.
    model = gguf_files.model_of(gguf_files.config_of('llama', num_key_value_heads=6))
    path = gguf_files.write_model(
        tmp_path / 'm.gguf',
        'llama',
        model,
        metadata={'llama.attention.head_count_kv': None, 'llama.vocab_size': None},
    )
    reader = gguf_reader.GgufReader(path)
    assert reader.hf_config['num_key_value_heads'] == 6
    assert reader.hf_config['vocab_size'] == 51


def test_small_epsilon_is_the_shortest_decimal(tmp_path):
    path = gguf_files.write_model(
        tmp_path / 'm.gguf',
        'llama',
        gguf_files.model_of(gguf_files.config_of('llama', rms_norm_eps=1e-5)),
    )
    reader = gguf_reader.GgufReader(path)
    assert reader.metadata('llama.attention.layer_norm_rms_epsilon') != 1e-5
    assert reader.hf_config['rms_norm_eps'] == 1e-5


def test_metadata_gives_python_values_or_the_default(tmp_path):
    extra = {'general.tags': ['a', 'b'], 'tokenizer.ggml.add_bos_token': True}
    path = gguf_files.write_model(
        tmp_path / 'm.gguf',
        'llama',
        gguf_files.model_of(gguf_files.config_of('llama')),
        metadata=extra,
    )
    reader = gguf_reader.GgufReader(path)
    assert reader.metadata('general.tags') == ['a', 'b']
    assert reader.metadata('tokenizer.ggml.add_bos_token') is True
    assert reader.metadata('no.such.key') is None
    assert reader.metadata('no.such.key', 3) == 3


def _random_blocks(kind: gguf_files.Type, shape: tuple[int, int]) -> np.ndarray:
    """Valid bytes of a type that gguf cannot quantise to: any, with finite scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    scales = rng.normal(size=(len(raw), 2)).astype(np.float16)
    if kind == gguf_files.Type.IQ1_M:
        raw[:, -1] &= 0x3F  # Where its scale has the sign and most of the exponent.
    elif kind == gguf_files.Type.NVFP4:
        raw[:, :4] &= 0x3F  # Four scales of a byte each.
    elif kind == gguf_files.Type.MXFP4:
        raw[:, 0] &= 0x7F  # The exponent of its scale.
    elif kind in _SCALES_LAST:
        count = 1 + (kind == gguf_files.Type.Q2_K)
        raw[:, -2 * count :] = scales[:, :count].copy().view(np.uint8)
    else:
        count = 1 + (kind in (gguf_files.Type.Q4_K, gguf_files.Type.Q5_K))
        raw[:, : 2 * count] = scales[:, :count].copy().view(np.uint8)
    return raw.reshape(shape[0], -1)


# Where the scales of a block are, in llama.cpp's structs of these types.
_SCALES_LAST = tuple(
    gguf_files.Type[name] for name in ('Q2_K', 'Q3_K', 'Q6_K', 'TQ1_0', 'TQ2_0')
)
_UNWRITTEN = [
    gguf_files.Type[name]
    for name in [
        'Q2_K',
        'Q3_K',
        'Q4_K',
        'Q5_K',
        'Q6_K',
        'IQ1_S',
        'IQ1_M',
        'IQ2_XXS',
        'IQ2_XS',
        'IQ2_S',
        'IQ3_XXS',
        'IQ3_S',
        'IQ4_XS',
        'TQ1_0',
        'TQ2_0',
    ]
]


@pytest.mark.parametrize(
    ('kind', 'tiny', 'error'),
    # Half a step as a share of the largest weight, a whole one where Q4_0 clips,
    # and a tenth for the scale's own rounding to float16.
    [
        (gguf_files.Type.Q8_0, gguf_files.BLOCK_32, 0.55 / 127),
        (gguf_files.Type.Q4_0, gguf_files.BLOCK_32, 1.1 / 8),
        (gguf_files.Type.Q4_1, gguf_files.BLOCK_32, 1.1 / 15),
        (gguf_files.Type.Q5_0, gguf_files.BLOCK_32, 1.1 / 16),
        (gguf_files.Type.Q5_1, gguf_files.BLOCK_32, 1.1 / 31),
        *((kind, gguf_files.BLOCK_256, None) for kind in _UNWRITTEN),
        (gguf_files.Type.IQ4_NL, gguf_files.BLOCK_32, None),
        (gguf_files.Type.MXFP4, gguf_files.BLOCK_32, None),
        (gguf_files.Type.NVFP4, gguf_files.BLOCK_256, None),
    ],
)
def test_quantised_matrices_give_gguf_values(tmp_path, kind, tiny, error):
    model = gguf_files.model_of(gguf_files.config_of('llama', **tiny))
    raw = {}
    for name, weight in gguf_files.hf_weights(model).items():
        if weight.ndim == 2:
            stored = gguf_files.as_stored('llama', name, weight, model.config)
            raw[name] = (
                _random_blocks(kind, weight.shape)
                if error is None
                else gguf.quants.quantize(stored, kind)
            )
    renamed = {gguf_files.gguf_name('llama', name): name for name in raw}
    path = gguf_files.write_model(
        tmp_path / 'm.gguf',
        'llama',
        model,
        tensors={name: raw[hf_name] for name, hf_name in renamed.items()},
        types=dict.fromkeys(renamed, kind),
    )

    reader = gguf_reader.GgufReader(path)

    assert reader.hf_config['dtype'] == 'float32'
    for name, weight in gguf_files.hf_weights(model).items():
        got = reader.read(name)
        assert got.dtype == reader.dtype(name) == np.float32
        assert got.shape == reader.shape(name) == weight.shape
        if name not in raw:
            np.testing.assert_array_equal(got, weight)
            continue
        want = gguf.quants.dequantize(raw[name], kind)
        np.testing.assert_array_equal(
            gguf_files.as_stored('llama', name, got, model.config), want
        )
        if error is not None:
            np.testing.assert_allclose(
                got, weight, rtol=0, atol=error * np.abs(weight).max()
            )


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_keeps_its_dtype(tmp_path, dtype):
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    kind = gguf_files.Type.F16 if dtype == np.float16 else gguf_files.Type.BF16
    halves = {
        name: weight.astype(dtype)
        for name, weight in gguf_files.hf_weights(model).items()
        if weight.ndim == 2
    }
    tensors = {}
    for name, weight in halves.items():
        stored = gguf_files.as_stored('llama', name, weight, model.config)
        tensors[gguf_files.gguf_name('llama', name)] = (
            stored if kind == gguf_files.Type.F16 else stored.view(np.uint8)
        )
    path = gguf_files.write_model(
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
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    name = 'blk.0.ffn_up.weight'
    half = gguf_files.hf_weights(model)['model.layers.0.mlp.up_proj.weight'].astype(
        np.float16
    )
    path = gguf_files.write_model(
        tmp_path / 'm.gguf', 'llama', model, tensors={name: half}
    )
    assert gguf_reader.GgufReader(path).hf_config['dtype'] == 'float32'


@pytest.fixture(scope='module')
def quantised(tmp_path_factory) -> gguf_reader.GgufReader:
    """Q8_0 projections, a bfloat16 embedding and float32 norms in one file."""
    model = gguf_files.model_of(gguf_files.config_of('llama', **gguf_files.BLOCK_32))
    tensors, types = {}, {}
    for name, weight in gguf_files.hf_weights(model).items():
        stored = gguf_files.as_stored('llama', name, weight, model.config)
        gguf_name = gguf_files.gguf_name('llama', name)
        if name == 'model.embed_tokens.weight':
            tensors[gguf_name] = stored.astype(ml_dtypes.bfloat16).view(np.uint8)
            types[gguf_name] = gguf_files.Type.BF16
        elif weight.ndim == 2:
            tensors[gguf_name] = gguf.quants.quantize(stored, gguf_files.Type.Q8_0)
            types[gguf_name] = gguf_files.Type.Q8_0
    path = tmp_path_factory.mktemp('quantised') / 'm.gguf'
    gguf_files.write_model(path, 'llama', model, tensors=tensors, types=types)
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
    assert [np.prod(shape) for shape in seen] == [7 * 102, 7 * 102]


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
        ({'split.count': 3}, ['part 0 of 3', '0 of 1']),
    ],
)
def test_metadata_that_we_cannot_honour_are_refused(tmp_path, metadata, parts):
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    path = gguf_files.write_model(
        tmp_path / 'm.gguf', 'llama', model, metadata=metadata
    )
    gguf_files.assert_refused(path, *parts)


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
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    path = gguf_files.write_model(
        tmp_path / 'm.gguf', 'llama', model, metadata=metadata
    )
    reader = gguf_reader.GgufReader(path)
    assert reader.hf_config['rope_parameters'] == gguf_files.TINY['rope_parameters']


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
    model = gguf_files.model_of(gguf_files.config_of(arch, head_dim=head_dim))
    changed = {
        name: None if tensor is None else tensor.astype(np.float32)
        for name, tensor in tensors.items()
    }
    path = gguf_files.write_model(tmp_path / 'm.gguf', arch, model, tensors=changed)
    gguf_files.assert_refused(path, *parts)


def test_other_quantisations_are_refused_by_type_and_tensor(tmp_path):
    model = gguf_files.model_of(gguf_files.config_of('llama', **gguf_files.BLOCK_256))
    name, kind = 'blk.0.ffn_up.weight', gguf_files.Type.Q8_K
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = model.config.intermediate_size, model.config.hidden_size
    raw = np.zeros((rows, columns // block * size), np.uint8)
    path = gguf_files.write_model(
        tmp_path / 'm.gguf', 'llama', model, tensors={name: raw}, types={name: kind}
    )
    gguf_files.assert_refused(path, repr(name), kind.name, 'Q4_K')


def test_files_that_are_not_gguf_are_refused(tmp_path):
    path = tmp_path / 'm.gguf'
    gguf_files.assert_refused(path, 'does not exist')
    path.write_bytes(b'PK\3\4 and so on')
    gguf_files.assert_refused(path, 'GGUF', "b'PK")
    path.write_bytes(b'')
    gguf_files.assert_refused(path, "b''")
    path.write_bytes(b'GGUF' + bytes(200))
    gguf_files.assert_refused(path, 'download it again')


def test_big_endian_files_are_refused(tmp_path):
    path = gguf_files.write(
        tmp_path / 'm.gguf', 'llama', {}, {}, endianess=gguf.GGUFEndian.BIG
    )
    gguf_files.assert_refused(path, 'big-endian')


def test_every_truncation_is_refused(tmp_path):
    model = gguf_files.model_of(gguf_files.config_of('llama', num_hidden_layers=1))
    whole = gguf_files.write_model(tmp_path / 'whole.gguf', 'llama', model).read_bytes()
    path = tmp_path / 'm.gguf'
    header = len(whole) - sum(w.nbytes for w in gguf_files.hf_weights(model).values())
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
