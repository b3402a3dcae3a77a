"""Uneven structures: masked, cut out, and as transformers loads them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers

from ppjax.exporting import hf_export
from ppjax.models import base_model, costs, loading, structure
from ppjax.models import decoder as decoder_lib


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(3, 97, (2, 17)).astype(np.int32)


def _uneven(cfg, *, without=1):
    """Every layer of another width, one without a head, one gone."""
    rng = np.random.default_rng(4)
    found = structure.Structure.dense(cfg)
    for layer, keep in zip(range(cfg.num_layers), (31, 40, 22), strict=True):
        found.channels[layer, rng.permutation(cfg.d_ff)[keep:]] = False
    if cfg.num_kv_heads > 1:
        found.groups[0, 0] = False
        found.groups[2, 1] = False
    found.blocks[without] = False
    return found


def _exported(tiny, model, folder, monkeypatch):
    monkeypatch.setattr(hf_export, '_save_tokenizer', lambda *args: None)
    monkeypatch.setattr(
        hf_export.stop_tokens, 'with_stop_ids', lambda config, _: dict(config)
    )
    hf_export.export_model(
        model,
        folder,
        dtype='float32',
        tokenizer=None,
        model_card='',
        system_prompt='',
    )
    return folder


def _logits_of(folder, tokens):
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    hf.set_attn_implementation('eager')
    with torch.no_grad():
        return hf(torch.tensor(tokens), attention_mask=torch.ones(tokens.shape)).logits


def test_masked_is_cut_is_stock(any_tiny, tokens, tmp_path, monkeypatch):
    own = _uneven(any_tiny.config)
    masked = any_tiny.logits(tokens, masks=own.masks(any_tiny.config))
    assert np.abs(masked - any_tiny.logits(tokens)).max() > 0.1
    folder = _exported(
        any_tiny, own.pruned(any_tiny.base), tmp_path / 'hf', monkeypatch
    )
    np.testing.assert_allclose(_logits_of(folder, tokens), masked, atol=1e-4)
    base = base_model.open_base_model(str(folder))
    assert base.config.num_layers == 2
    assert base.config.d_ff == 31
    decoder = loading.load_decoder(base.reader, base.config, dtype=np.float32)
    small = dataclasses.replace(any_tiny, base=base, decoder=decoder)
    np.testing.assert_allclose(small.logits(tokens), masked, atol=1e-5)


def test_what_fills_up_is_zero_in_every_weight(tiny_models):
    tiny = tiny_models('llama-biased')
    model = _uneven(tiny.config).pruned(tiny.base)
    decoder = loading.load_decoder(model.reader, model.config, dtype=np.float32)
    blocks = decoder.blocks
    # Of two layers left the second keeps 22 channels of 31.
    for weight in (blocks.w_gate, blocks.w_up):
        assert not np.asarray(weight.dense())[1, :, 22:].any()
    assert not np.asarray(blocks.w_down.dense())[1, 22:].any()
    assert not np.asarray(blocks.b_up[...])[1, 22:].any()
    assert np.asarray(blocks.w_down.dense())[1, :22].any(axis=-1).all()


def test_heads_of_one_width_are_narrower(tiny_models, tokens, tmp_path, monkeypatch):
    tiny = tiny_models('qwen2')
    own = structure.Structure.dense(tiny.config)
    own.groups[:, 0] = False
    assert own.is_uniform
    model = own.pruned(tiny.base)
    assert (model.config.num_kv_heads, model.config.num_heads) == (1, 2)
    folder = _exported(tiny, model, tmp_path / 'hf', monkeypatch)
    masked = tiny.logits(tokens, masks=own.masks(tiny.config))
    np.testing.assert_allclose(_logits_of(folder, tokens), masked, atol=1e-4)


def test_sizes_count_what_is_not_zero(any_tiny):
    own = _uneven(any_tiny.config)
    assert not own.is_uniform
    model = own.pruned(any_tiny.base)
    stored = hf_export.parameter_count(model)
    decoder = loading.load_decoder(model.reader, model.config, dtype=np.float32)
    zeros = sum(int((x == 0).sum()) for x in _leaves(decoder))
    found = costs.parameters(any_tiny.config, own.sizes)
    assert found.unique == stored - zeros
    whole = costs.parameters(any_tiny.config, costs.uniform(any_tiny.config))
    shapes = (
        any_tiny.base.reader.shape(name) for name in hf_export._names(any_tiny.base)
    )
    assert whole.unique == sum(map(math.prod, shapes))


def _leaves(decoder: decoder_lib.Decoder):
    import jax

    return map(np.asarray, jax.tree.leaves(decoder))


def test_of_another_model_or_empty_is_refused(tiny_models):
    tiny = tiny_models('llama')
    own = structure.Structure.dense(tiny.config)
    with pytest.raises(ValueError, match=r'channels must be bool \(3, 52\)'):
        dataclasses.replace(own, channels=own.channels[:, 1:]).pruned(tiny.base)
    with pytest.raises(ValueError, match='must keep a block'):
        structure.uniform(tiny.config, layers=[]).pruned(tiny.base)
