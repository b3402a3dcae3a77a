"""Model constants: read from either spelling, and refused when unknown."""

import copy
import dataclasses
import json
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from ppjax.base import errors
from ppjax.models import config as config_lib
from ppjax.models import loading, safetensors_reader
from tests.models import gguf_files

_LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 32.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
# As published with Llama-3.2-3B-Instruct, Qwen2.5-3B-Instruct and Qwen3-4B.
_LLAMA_32_3B = {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 128000,
    'eos_token_id': [128001, 128008, 128009],
    'head_dim': 128,
    'hidden_act': 'silu',
    'hidden_size': 3072,
    'initializer_range': 0.02,
    'intermediate_size': 8192,
    'max_position_embeddings': 131072,
    'mlp_bias': False,
    'model_type': 'llama',
    'num_attention_heads': 24,
    'num_hidden_layers': 28,
    'num_key_value_heads': 8,
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'rope_scaling': _LLAMA3,
    'rope_theta': 500000.0,
    'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.45.0.dev0',
    'use_cache': True,
    'vocab_size': 128256,
}
_QWEN25_3B = {
    'architectures': ['Qwen2ForCausalLM'],
    'attention_dropout': 0.0,
    'bos_token_id': 151643,
    'eos_token_id': 151645,
    'hidden_act': 'silu',
    'hidden_size': 2048,
    'initializer_range': 0.02,
    'intermediate_size': 11008,
    'max_position_embeddings': 32768,
    'max_window_layers': 70,
    'model_type': 'qwen2',
    'num_attention_heads': 16,
    'num_hidden_layers': 36,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-06,
    'rope_theta': 1000000.0,
    'sliding_window': 32768,
    'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.43.1',
    'use_cache': True,
    'use_sliding_window': False,
    'vocab_size': 151936,
}
_QWEN3_4B = {
    'architectures': ['Qwen3ForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 151643,
    'eos_token_id': 151645,
    'head_dim': 128,
    'hidden_act': 'silu',
    'hidden_size': 2560,
    'initializer_range': 0.02,
    'intermediate_size': 9728,
    'max_position_embeddings': 40960,
    'max_window_layers': 36,
    'model_type': 'qwen3',
    'num_attention_heads': 32,
    'num_hidden_layers': 36,
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-06,
    'rope_scaling': None,
    'rope_theta': 1000000,
    'sliding_window': None,
    'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.51.0',
    'use_cache': True,
    'use_sliding_window': False,
    'vocab_size': 151936,
}
_PUBLISHED = {'llama': _LLAMA_32_3B, 'qwen2': _QWEN25_3B, 'qwen3': _QWEN3_4B}


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_llama():
    assert config_lib.from_hf_config(_LLAMA_32_3B) == config_lib.ModelConfig(
        family='llama',
        vocab_size=128256,
        d_model=3072,
        num_layers=28,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        d_ff=8192,
        norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=config_lib.Llama3Scaling(
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position=8192,
        ),
        max_position=131072,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_embeddings=True,
        out_width=None,
    )


def test_qwen2_has_qkv_bias_and_derives_head_dim():
    got = config_lib.from_hf_config(_QWEN25_3B)
    assert (got.family, got.head_dim, got.rope_theta) == ('qwen2', 128, 1e6)
    assert (got.qkv_bias, got.out_bias, got.mlp_bias) == (True, False, False)
    assert not got.qk_norm
    assert got.rope_scaling is None


def test_qwen3_has_qk_norm_and_its_own_head_dim():
    got = config_lib.from_hf_config(_QWEN3_4B)
    assert (got.family, got.head_dim) == ('qwen3', 128)
    assert got.head_dim != got.d_model // got.num_heads
    assert (got.qkv_bias, got.out_bias, got.mlp_bias) == (False, False, False)
    assert got.qk_norm


@pytest.mark.parametrize('family', sorted(_PUBLISHED))
def test_the_form_that_transformers_saves_reads_the_same(tmp_path, family):
    old = _PUBLISHED[family]
    # transformers writes into the rope_scaling that it is given.
    transformers.AutoConfig.for_model(**copy.deepcopy(old)).save_pretrained(tmp_path)
    new = json.loads((tmp_path / 'config.json').read_text())
    assert 'rope_parameters' in new
    assert config_lib.from_hf_config(new) == config_lib.from_hf_config(old)


@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_what_transformers_saves_of_a_gguf_file_is_read(tmp_path, family):
    model = gguf_files.model_of(gguf_files.config_of(family))
    name = {'general.name': 'Tiny'}
    file = gguf_files.write_model(tmp_path / 'm.gguf', family, model, metadata=name)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=file.name)
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / 'config.json').read_text())
    assert '_model_name_or_path' in saved
    assert config_lib.from_hf_config(saved).d_ff == model.config.intermediate_size


@pytest.mark.parametrize('family', sorted(_PUBLISHED))
def test_left_out_keys_take_transformers_defaults(family):
    given = _without(
        _PUBLISHED[family],
        'head_dim',
        'attention_bias',
        'mlp_bias',
        'tie_word_embeddings',
        'hidden_act',
    )
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(given))
    ours = config_lib.from_hf_config(given)
    by_default = getattr(theirs, 'head_dim', None)
    assert ours.head_dim == (by_default or ours.d_model // ours.num_heads)
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.out_bias == getattr(theirs, 'attention_bias', False)
    assert ours.mlp_bias == getattr(theirs, 'mlp_bias', False)


def test_key_value_heads_default_to_the_query_heads():
    given = _without(_LLAMA_32_3B, 'num_key_value_heads')
    assert config_lib.from_hf_config(given).num_kv_heads == 24
    assert transformers.LlamaConfig(**copy.deepcopy(given)).num_key_value_heads == 24


@pytest.mark.parametrize(
    'rope',
    [
        {'rope_theta': 777.0, 'rope_scaling': _LLAMA3},
        {'rope_theta': 777, 'rope_scaling': _LLAMA3 | {'type': 'llama3'}},
        {
            'rope_theta': 777.0,
            'rope_scaling': _without(_LLAMA3, 'rope_type') | {'type': 'llama3'},
        },
        {'rope_parameters': _LLAMA3 | {'rope_theta': 777.0}},
        {'rope_parameters': _LLAMA3, 'rope_theta': 777.0},
        {
            'rope_parameters': _LLAMA3 | {'rope_theta': 777.0},
            'rope_theta': 1.0,
            'rope_scaling': None,
        },
    ],
)
def test_spellings_of_scaled_rope(rope):
    given = _without(_LLAMA_32_3B, 'rope_theta', 'rope_scaling') | rope
    got = config_lib.from_hf_config(given)
    assert got.rope_theta == 777.0
    assert got.rope_scaling == config_lib.Llama3Scaling(32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    'rope',
    [
        {'rope_theta': 777.0},
        {'rope_theta': 777.0, 'rope_scaling': None},
        {'rope_theta': 777.0, 'rope_scaling': {'type': 'default'}},
        {'rope_theta': 777.0, 'rope_scaling': {'rope_type': 'default'}},
        {'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0}},
        {'rope_parameters': {'rope_theta': 777.0}},
        {
            'rope_parameters': {
                'rope_type': 'default',
                'rope_theta': 777.0,
                'partial_rotary_factor': 1.0,
            }
        },
    ],
)
def test_spellings_of_plain_rope(rope):
    given = _without(_LLAMA_32_3B, 'rope_theta', 'rope_scaling') | rope
    got = config_lib.from_hf_config(given)
    assert (got.rope_theta, got.rope_scaling) == (777.0, None)


_NO_ROPE = {'rope_theta': None, 'rope_scaling': None}


@pytest.mark.parametrize(
    ('family', 'changes', 'parts'),
    [
        ('llama', {'model_type': 'mistral'}, ['mistral', 'llama', 'qwen3']),
        ('llama', {'model_type': 'gpt2'}, ['gpt2']),
        ('llama', {'model_type': None}, ['None']),
        ('llama', {'hidden_act': 'gelu'}, ['hidden_act', 'gelu', 'silu']),
        ('llama', {'quantization_config': {'bits': 4}}, ['quantization_config']),
        ('llama', {'pretraining_tp': 2}, ['pretraining_tp', '2']),
        ('llama', {'partial_rotary_factor': 0.5}, ['partial_rotary_factor']),
        (
            'llama',
            {'rope_parameters': {'rope_theta': 1.0, 'partial_rotary_factor': 0.5}},
            ['partial_rotary_factor'],
        ),
        ('llama', {'rope_scaling': {'type': 'yarn', 'factor': 4.0}}, ['yarn']),
        ('llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 2}}, ['linear']),
        (
            'qwen2',
            {'rope_parameters': {'rope_type': 'dynamic', 'rope_theta': 1.0}},
            ['dynamic'],
        ),
        ('llama', {'rope_scaling': _without(_LLAMA3, 'factor')}, ['lacks factor']),
        ('llama', {'rope_scaling': _LLAMA3 | {'beta': 1}}, ['beta']),
        ('llama', _NO_ROPE, ['rope_theta']),
        (
            'qwen2',
            _NO_ROPE | {'rope_parameters': {'full_attention': {'rope_theta': 1.0}}},
            ['rope_theta'],
        ),
        ('qwen2', {'use_sliding_window': True}, ['use_sliding_window']),
        ('qwen3', {'use_sliding_window': True, 'sliding_window': 4096}, ['window']),
        ('llama', {'sliding_window': 4096}, ['sliding_window', '4096']),
        (
            'qwen3',
            {'layer_types': ['full_attention', 'sliding_attention']},
            ['layer_types', 'sliding_attention'],
        ),
        ('llama', {'logit_scale': 0.5, 'zebra': 1}, ['logit_scale', 'zebra']),
        ('llama', {'num_experts': 8}, ['num_experts']),
        ('llama', {'_remove_final_layer_norm': True}, ['_remove_final_layer_norm']),
        ('llama', {'_sliding_window_pattern': 6}, ['_sliding_window_pattern']),
        ('qwen2', {'mlp_bias': True}, ['mlp_bias']),
        ('qwen3', {'use_mrope': True}, ['use_mrope']),
        ('llama', {'num_key_value_heads': 7}, ['24', '7']),
        ('llama', {'head_dim': 5}, ['head_dim', '5']),
        ('llama', {'vocab_size': 0}, ['vocab_size', '0']),
        ('llama', {'hidden_size': '3072'}, ['hidden_size', "'3072'"]),
        ('llama', {'num_attention_heads': 0}, ['num_attention_heads', '0']),
        ('llama', {'num_hidden_layers': 2.5}, ['num_hidden_layers', '2.5']),
        ('llama', {'rms_norm_eps': 'small'}, ['rms_norm_eps', 'small']),
        ('llama', {'rms_norm_eps': 0}, ['rms_norm_eps', '0']),
        ('llama', {'rope_theta': 'big'}, ['rope_theta', 'big']),
        ('llama', {'rope_theta': -1.0}, ['rope_theta', '-1.0']),
        ('llama', {'rope_scaling': 'linear'}, ['rope_scaling', 'linear']),
        ('llama', {'rope_scaling': _LLAMA3 | {'factor': 'x'}}, ['factor', 'x']),
        ('llama', {'attention_bias': 'no'}, ['attention_bias', 'no']),
        ('llama', {'tie_word_embeddings': 'no'}, ['tie_word_embeddings', 'no']),
        ('llama', {'layer_types': 5}, ['layer_types', '5']),
    ],
)
def test_refusals_name_the_key(family, changes, parts):
    with pytest.raises(errors.InputError) as caught:
        config_lib.from_hf_config(_PUBLISHED[family] | changes)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert '\n' not in message


@pytest.mark.parametrize(
    'key',
    [
        'vocab_size',
        'hidden_size',
        'num_hidden_layers',
        'num_attention_heads',
        'intermediate_size',
        'rms_norm_eps',
    ],
)
def test_missing_keys_are_named(key):
    with pytest.raises(errors.InputError, match=f"'{key}' is missing"):
        config_lib.from_hf_config(_without(_QWEN3_4B, key))


@pytest.mark.parametrize(
    'changes',
    [
        {'sliding_window': 4096, 'use_sliding_window': False},
        {'sliding_window': None},
        {'layer_types': ['full_attention'] * 36},
        {'layer_types': None},
        {'quantization_config': None},
        {'hidden_act': 'swish'},
        {'attention_dropout': 0.1},  # Of training alone.
        {'_model_name_or_path': 'Qwen3 4B'},
        {'_name_or_path': 'Qwen/Qwen3-4B', '_commit_hash': None},
        {'_attn_implementation_autoset': True, '_experts_implementation': 'eager'},
        {'_pre_quantization_dtype': 'bfloat16'},
    ],
)
def test_what_changes_nothing_is_accepted(changes):
    want = config_lib.from_hf_config(_QWEN3_4B)
    assert config_lib.from_hf_config(_QWEN3_4B | changes) == want


_values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.none() | st.dictionaries(st.text(max_size=1), st.none()), max_size=2)
    | st.dictionaries(
        st.sampled_from(['rope_type', 'rope_theta', 'type', 'factor']),
        st.sampled_from(['llama3', 'default', 0, None, []]),
    )
)


@hypothesis.given(
    family=st.sampled_from(sorted(_PUBLISHED)),
    changes=st.dictionaries(
        st.sampled_from(
            [
                *{k for c in _PUBLISHED.values() for k in c},
                'rope_parameters',
                'layer_types',
            ]
        ),
        _values,
        max_size=3,
    ),
)
def test_any_values_are_read_or_refused(family, changes):
    try:
        got = config_lib.from_hf_config(_PUBLISHED[family] | changes)
    except errors.InputError:
        return
    assert got.norm_eps > 0
    assert got.rope_theta > 0


def test_no_field_has_a_default():
    for field in dataclasses.fields(config_lib.ModelConfig):
        assert field.default is dataclasses.MISSING
        assert field.default_factory is dataclasses.MISSING


# --- What each key does -------------------------------------------------------

_ROPE_777 = {'rope_type': 'default', 'rope_theta': 777.0}
_SCALED = _LLAMA3 | {
    'factor': 3.0,
    'original_max_position_embeddings': 128,
    'rope_theta': 777.0,
}
_MATTERS: dict[str, dict[str, Any]] = {
    # Field of ModelConfig -> a change of the tiny model's config.json.
    'vocab_size': {'vocab_size': 98},
    'd_model': {'hidden_size': 28},
    'num_layers': {'num_hidden_layers': 2},
    'num_heads': {'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 20},
    'num_kv_heads': {'num_key_value_heads': 4},
    'head_dim': {'head_dim': 12},
    'd_ff': {'intermediate_size': 51},
    'norm_eps': {'rms_norm_eps': 1e-2},
    'rope_theta': {'rope_parameters': _ROPE_777 | {'rope_theta': 10_000.0}},
    'rope_scaling': {'rope_parameters': _SCALED},
    'qkv_bias': {'attention_bias': True},
    'out_bias': {'attention_bias': True},
    'mlp_bias': {'mlp_bias': True},
    'qk_norm': {'model_type': 'qwen3', 'mlp_bias': None},
    'family': {'model_type': 'qwen2', 'mlp_bias': None},
    'tie_embeddings': {'tie_word_embeddings': True},
    'out_width': {
        'model_type': 'slicegpt',
        'sliced_model_type': 'llama',
        'sliced_hidden_size': 40,
        'mlp_bias': None,
    },
}
# Those that the shapes of the checkpoint's tensors contradict.
_CAUGHT_BY_TENSORS = {
    'vocab_size': "'model.embed_tokens.weight' has shape",
    'd_model': 'has shape',
    'num_layers': "'model.layers.2.* has no place",
    'num_kv_heads': r"k_proj\.weight' has shape",
    'head_dim': 'has shape',
    'd_ff': 'has shape',
    'qkv_bias': r"proj\.bias' is missing",
    'out_bias': r"proj\.bias' is missing",
    'mlp_bias': r"proj\.bias' is missing",
    'qk_norm': r"norm\.weight' is missing",
    'family': r"proj\.bias' is missing",
    # The rest of the last block, rotations and all.
    'out_width': r"last_down_proj\.weight' is missing",
}


def test_every_field_is_looked_at_here():
    fields = {field.name for field in dataclasses.fields(config_lib.ModelConfig)}
    # How far a model was meant to run is for warnings; no logit depends on it.
    assert fields == set(_MATTERS) | {'max_position'}


def _with_config(tiny, folder, changes: dict[str, Any]):
    """The tiny model's weights under a changed config.json."""
    config = json.loads((tiny.path / 'config.json').read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'model.safetensors').symlink_to(tiny.path / 'model.safetensors')
    reader = safetensors_reader.SafetensorsReader(folder)
    cfg = config_lib.from_hf_config(reader.hf_config)
    decoder = loading.load_decoder(reader, cfg, dtype=jnp.float32)
    return dataclasses.replace(tiny, decoder=decoder)


_TOKENS = np.random.default_rng(8).integers(0, 97, (2, 40))


@pytest.mark.parametrize('field', sorted(set(_MATTERS) - set(_CAUGHT_BY_TENSORS)))
def test_changed_value_changes_the_logits(tiny_models, tmp_path, field):
    tiny = tiny_models('llama')
    changed = _with_config(tiny, tmp_path, _MATTERS[field])
    difference = changed.logits(_TOKENS) - tiny.logits(_TOKENS)
    # 30 times the tolerance that logits are compared with elsewhere.
    assert np.abs(difference).max() > 3e-3


@pytest.mark.parametrize('field', sorted(_CAUGHT_BY_TENSORS))
def test_changed_value_contradicts_the_tensors(tiny_models, tmp_path, field):
    with pytest.raises(errors.InputError, match=_CAUGHT_BY_TENSORS[field]):
        _with_config(tiny_models('llama'), tmp_path, _MATTERS[field])


def test_max_position_changes_no_logit(tiny_models, tmp_path):
    tiny = tiny_models('llama')
    changed = _with_config(tiny, tmp_path, {'max_position_embeddings': 16})
    np.testing.assert_array_equal(changed.logits(_TOKENS), tiny.logits(_TOKENS))
