"""Closed-form sizes and FLOPs against transformers, the paper and XLA."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax.base import errors
from ppjax.evaluation import efficiency
from ppjax.models import attention, costs
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.pages import formats

# No value is a default of any config class; 6 heads share 2 key/value heads.
_TINY: dict[str, Any] = {
    'hidden_size': 24,
    'intermediate_size': 37,
    'num_hidden_layers': 3,
    'num_attention_heads': 6,
    'num_key_value_heads': 2,
    'head_dim': 10,
    'rms_norm_eps': 3e-3,
    'max_position_embeddings': 77,
    'vocab_size': 51,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0},
}
_LLAMA_3_2_3B: dict[str, Any] = {
    'model_type': 'llama',
    'hidden_size': 3072,
    'intermediate_size': 8192,
    'num_hidden_layers': 28,
    'num_attention_heads': 24,
    'num_key_value_heads': 8,
    'head_dim': 128,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 131072,
    'vocab_size': 128256,
    'tie_word_embeddings': True,
    'rope_theta': 500000.0,
}
_CONFIGS = {
    'llama': transformers.LlamaConfig,
    'qwen2': transformers.Qwen2Config,
    'qwen3': transformers.Qwen3Config,
}


def _hf_parameters(config: transformers.PretrainedConfig, **changes: Any) -> int:
    values = config.to_dict() | changes
    with torch.device('meta'):
        model = transformers.AutoModelForCausalLM.from_config(type(config)(**values))
    return model.num_parameters()


def _hf_blocks(config: transformers.PretrainedConfig, keep: int) -> int:
    values = config.to_dict() | {'intermediate_size': keep}
    with torch.device('meta'):
        model = transformers.AutoModelForCausalLM.from_config(type(config)(**values))
    return sum(p.numel() for p in model.model.layers.parameters())


def _measure(cfg: config_lib.ModelConfig, keep: int, **changes: Any):
    settings = {'dtype': 'bfloat16', 'prompt_length': 19, 'answer_length': 7}
    return efficiency.measure(cfg, keep, **(settings | changes))


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize(
    'family, biases',
    [
        ('llama', {}),
        ('llama', {'attention_bias': True}),
        ('llama', {'mlp_bias': True}),
        ('qwen2', {}),
        ('qwen3', {}),
        ('qwen3', {'attention_bias': True}),
    ],
)
def test_parameters_equal_transformers(family, biases, tied):
    values = _TINY | biases | {'tie_word_embeddings': tied}
    if family == 'qwen2':  # Its head dim is always hidden_size / heads.
        values = {**values, 'hidden_size': 60}
    hf = _CONFIGS[family](**values)
    found = _measure(config_lib.from_hf_config(hf.to_dict()), 13)
    for figures, keep in ((found.dense, 37), (found.pruned, 13)):
        assert figures.keep == keep
        assert figures.parameters == _hf_parameters(hf, intermediate_size=keep)
        assert figures.parameters_untied == _hf_parameters(
            hf, intermediate_size=keep, tie_word_embeddings=False
        )
        assert figures.parameters_blocks == _hf_blocks(hf, keep)
        assert figures.bytes == 2 * figures.parameters


def test_llama_3_2_3b_equals_the_papers_table_11():
    cfg = config_lib.from_hf_config(_LLAMA_3_2_3B)
    found = _measure(cfg, 6144, prompt_length=254.7, answer_length=320)
    assert round(found.dense.parameters / 1e9, 3) == 3.213
    assert round(found.pruned.parameters / 1e9, 3) == 2.684
    assert round(found.dense.prefill_flops / 1e12, 3) == 1.458
    assert round(found.pruned.prefill_flops / 1e12, 3) == 1.189
    hf = transformers.LlamaConfig(**{**_LLAMA_3_2_3B, 'pad_token_id': None})
    assert found.dense.parameters == _hf_parameters(hf)
    # 28 layers x 8 heads x 128 x keys and values x 2 bytes.
    assert found.dense.kv_bytes_per_token == 114688
    assert found.pruned.kv_bytes_per_token == found.dense.kv_bytes_per_token


def test_a_tied_table_is_read_for_each_token_and_an_untied_one_is_not():
    tied = config_lib.from_hf_config(_LLAMA_3_2_3B)
    untied = dataclasses.replace(tied, tie_embeddings=False)
    table = tied.vocab_size * tied.d_model
    for cfg, unread in ((tied, 0), (untied, table)):
        dense = _measure(cfg, 6144).dense
        assert dense.decode_weight_bytes == 2 * (dense.parameters - unread)


def test_an_answer_is_the_sum_of_its_steps():
    cfg = config_lib.from_hf_config(_LLAMA_3_2_3B)
    found = _measure(cfg, 6144, prompt_length=19, answer_length=7)
    for figures in (found.dense, found.pruned):
        steps = [
            costs.decode_flops(cfg, costs.uniform(cfg, channels=figures.keep), 19 + i)
            for i in range(1, 7)
        ]
        assert figures.decode_flops == steps[0]
        want = figures.prefill_flops_with_head + sum(steps)
        assert figures.total_flops == pytest.approx(want, rel=1e-12)
    one = _measure(cfg, 6144, answer_length=1).dense
    assert one.total_flops == one.prefill_flops_with_head


@pytest.fixture(scope='module')
def wide():
    # One layer, since XLA counts the body of a scan once; wide, so that products
    # outweigh norms, softmax and the rest.
    cfg = config_lib.from_hf_config(
        _LLAMA_3_2_3B
        | {
            'hidden_size': 192,
            'intermediate_size': 640,
            'num_hidden_layers': 1,
            'num_attention_heads': 6,
            'num_key_value_heads': 2,
            'head_dim': 64,
            'vocab_size': 1000,
        }
    )
    model = jax.eval_shape(
        lambda: decoder_lib.Decoder(cfg, dtype=jnp.float32, key=jax.random.key(0))
    )
    return cfg, model


def _xla_flops(function: Any, *args: Any) -> float:
    return jax.jit(function).lower(*args).compile().cost_analysis()['flops']


def test_prefill_is_what_xla_counts(wide):
    cfg, model = wide
    length = 96
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def prefill(model, tokens):
        positions = jnp.arange(length)[None]
        hidden, _, _ = model(
            tokens, positions, masks_lib.DENSE, attention.causal(1, length)
        )
        return model.unembed(hidden[:, -1])

    found = _measure(cfg, 640, prompt_length=length).dense
    np.testing.assert_allclose(
        _xla_flops(prefill, model, tokens), found.prefill_flops_with_head, rtol=0.04
    )


def test_decode_is_what_xla_counts(wide):
    cfg, model = wide
    slots = 128
    shape = (cfg.num_layers, 1, cfg.num_kv_heads, slots, cfg.head_dim)
    keys = jax.ShapeDtypeStruct(shape, jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def step(model, cache, tokens):
        hidden, cache, _ = model(
            tokens, tokens, masks_lib.DENSE, attention.Cached(tokens), cache=cache
        )
        return model.unembed(hidden), cache

    counted = _xla_flops(step, model, attention.KVCache(keys, keys), tokens)
    want = costs.decode_flops(cfg, costs.uniform(cfg), slots)
    np.testing.assert_allclose(counted, want, rtol=0.04)


@pytest.mark.parametrize(
    'keep, changes, message',
    [
        (0, {}, r'keep must be in \[1, 8192\], got 0'),
        (8193, {}, r'keep must be in \[1, 8192\], got 8193'),
        (6144, {'prompt_length': 0}, 'prompt_length must be positive, got 0'),
        (6144, {'answer_length': 0}, 'answer_length must be at least 1, got 0'),
    ],
)
def test_impossible_settings_are_refused(keep, changes, message):
    cfg = config_lib.from_hf_config(_LLAMA_3_2_3B)
    with pytest.raises(errors.InputError, match=message):
        _measure(cfg, keep, **changes)


@pytest.mark.parametrize(
    'value, unit, text',
    [
        (0, '', '0'),
        (7, '', '7'),
        (1152, '', '1.152 k'),
        (134_515_008, '', '134.5 M'),
        (3_212_749_824, '', '3.213 B'),
        (3_212_749_824, 'B', '3.213 GB'),
        (999_960, '', '1.000 M'),
        (46_080, 'B', '46.08 kB'),
        (1.4581e12, 'FLOP', '1.458 TFLOP'),
        (2.5, '', '2.500'),
        (0.031, '', '0.031'),
        (float('inf'), 'B', 'inf'),
    ],
)
def test_quantity(value, unit, text):
    assert formats.quantity(value, unit) == text


def test_table_shows_what_is_stored():
    cfg = config_lib.from_hf_config(_LLAMA_3_2_3B)
    found = dataclasses.asdict(_measure(cfg, 6144, prompt_length=254.7))
    rows = {row.label: row for row in efficiency.table(found)}
    assert len(rows) == 11
    assert (rows['Parameters'].dense, rows['Parameters'].pruned) == (
        '3.213 B',
        '2.684 B',
    )
    prefill = rows['Prefill of 254.7 tokens']
    assert (prefill.dense, prefill.pruned) == ('1.458 TFLOP', '1.189 TFLOP')
    assert round(prefill.ratio, 3) == 0.815
    assert rows['KV cache for each token'].ratio == 1
    del found['pruned']['parameters']
    found['dense']['bytes'] = 'many'
    assert len(efficiency.table(found)) == 9
    assert efficiency.table({}) == efficiency.table({'dense': 3}) == []
