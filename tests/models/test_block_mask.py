"""A masked block, a deleted block, and what the loss says of one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from ppjax.base import errors
from ppjax.exporting import hf_export
from ppjax.masking import granularity
from ppjax.models import attention, base_model, loading, rope
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

_TOKENS = np.random.default_rng(3).integers(3, 97, (2, 11))


@pytest.fixture(scope='module')
def deep(tmp_path_factory):
    """Models of 5 layers."""
    sizes = {
        'vocab_size': 97,
        'hidden_size': 24,
        'intermediate_size': 52,
        'num_hidden_layers': 5,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'rms_norm_eps': 1e-3,
        'tie_word_embeddings': False,
    }

    def make(family, **changes):
        config_class = getattr(transformers, f'{family}Config')
        model = getattr(transformers, f'{family}ForCausalLM')(
            config_class(**(sizes | changes))
        )
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2, generator=generator)
        path = tmp_path_factory.mktemp(family)
        model.save_pretrained(path)
        return base_model.open_base_model(str(path))

    return {
        'llama': make('Llama', head_dim=10),
        'qwen2': make('Qwen2', max_window_layers=3),
    }


def _load(base):
    return loading.load_decoder(base.reader, base.config, dtype=jnp.float32)


@jax.jit
def _logits(decoder, tokens, blocks):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    attend = attention.causal(*tokens.shape)
    hidden, _, _ = decoder(tokens, positions, masks_lib.Masks(blocks=blocks), attend)
    return decoder.unembed(hidden)


def _masked(base, kept):
    mask = jnp.zeros(base.config.num_layers).at[jnp.array(kept)].set(1.0)
    return np.asarray(_logits(_load(base), jnp.asarray(_TOKENS), mask))


def _pruned(base, kept):
    mask = np.isin(np.arange(base.config.num_layers), kept)[None]
    return granularity.BLOCKS.pruned(base, mask)


def test_ones_change_nothing_at_all(deep):
    model = _load(deep['llama'])
    tokens = jnp.asarray(_TOKENS)
    whole = _logits(model, tokens, None)
    np.testing.assert_array_equal(_logits(model, tokens, jnp.ones(5)), whole)
    assert np.abs(_masked(deep['llama'], [0, 1, 2, 3]) - whole).max() > 0.1


@pytest.mark.parametrize('family', ['llama', 'qwen2'])
@pytest.mark.parametrize('kept', [(0, 3, 4), (1,)])
def test_masked_exported_and_reloaded_agree(deep, family, kept, tmp_path):
    base = deep[family]
    want = _masked(base, kept)
    small = _pruned(base, kept)
    sliced = _logits(_load(small), jnp.asarray(_TOKENS), None)
    np.testing.assert_allclose(sliced, want, atol=1e-4, rtol=0)
    vocab = tokenizers.models.WordLevel({f't{i}': i for i in range(97)}, unk_token='t0')
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(vocab)
    )
    target = tmp_path / 'hf'
    hf_export.export_model(
        small,
        target,
        dtype='float32',
        tokenizer=tokenizer,
        model_card='card',
        system_prompt='',
    )
    again = base_model.open_base_model(str(target))
    assert again.config.num_layers == len(kept)
    np.testing.assert_array_equal(
        _logits(_load(again), jnp.asarray(_TOKENS), None), sliced
    )
    hf, info = transformers.AutoModelForCausalLM.from_pretrained(
        target, output_loading_info=True
    )
    assert not info['missing_keys'] | info['unexpected_keys']
    with torch.no_grad():
        got = hf(torch.tensor(_TOKENS)).logits.numpy()
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
    out = hf.generate(torch.tensor(_TOKENS[:1]), max_new_tokens=3, do_sample=False)
    assert out.shape == (1, 14)
    assert hf_export.parameter_count(small) == sum(p.numel() for p in hf.parameters())


def test_the_config_speaks_of_the_kept_blocks(deep):
    config = _pruned(deep['qwen2'], (0, 2, 4)).reader.hf_config
    assert config['num_hidden_layers'] == 3
    assert config['max_window_layers'] == 2  # Blocks 0 and 2 of the first three.
    assert config['layer_types'] == ['full_attention'] * 3
    assert deep['qwen2'].reader.hf_config['num_hidden_layers'] == 5
    assert 'layer_types' not in _pruned(deep['llama'], (0,)).reader.hf_config
    json.dumps(config)


def test_tensors_are_the_kept_blocks_own(deep):
    base = deep['llama']
    reader = _pruned(base, (1, 4)).reader
    name = 'model.layers.{}.mlp.up_proj.weight'
    for new, old in enumerate((1, 4)):
        np.testing.assert_array_equal(
            reader.read(name.format(new), slice(2, 9)),
            base.reader.read(name.format(old), slice(2, 9)),
        )
        assert reader.shape(name.format(new)) == (52, 24)
    assert name.format(2) not in reader.names()
    # The base has a block 2; what is left has none.
    with pytest.raises(errors.InputError, match=r'no tensor .*layers\.2\.'):
        reader.read(name.format(2))
    assert 'lm_head.weight' in reader.names()


@pytest.mark.parametrize('remat', decoder_lib.REMAT)
def test_the_gradient_is_what_a_block_adds(deep, remat):
    """dL/dm_l = <dL/dy_l, block(x_l) - x_l>, with y_l the masked block's output."""
    model = _load(deep['llama'])
    cfg = model.cfg
    tokens = jnp.asarray(_TOKENS)
    positions = jnp.broadcast_to(jnp.arange(11), tokens.shape)
    attend = attention.causal(2, 11)
    mask = jnp.asarray([1.0, 0.0, 0.3, 1.0, 0.0])
    target = jax.random.normal(jax.random.key(1), (2, 11, 24))
    frequencies = rope.inverse_frequencies(10, cfg.rope_theta, cfg.rope_scaling)
    rotation = rope.rotation(positions, frequencies)

    def loss(mask):
        hidden, _, _ = model(
            tokens, positions, masks_lib.Masks(blocks=mask), attend, remat=remat
        )
        return jnp.sum(hidden * target)

    def block(layer, x):
        weights = jax.tree.map(lambda w: w[layer], model.blocks)
        return weights(x, masks_lib.DENSE, rotation, attend, None)[0]

    def by_hand(nudges):
        """The loss, one block after the other, each output moved by a nudge."""
        x, added = model.embedding[...][tokens], []
        for layer in range(5):
            added.append(block(layer, x) - x)
            x = x + mask[layer] * added[-1] + nudges[layer]
        x = decoder_lib.rms_norm(x, model.final_norm[...], cfg.norm_eps)
        return jnp.sum(x * target), jnp.stack(added)

    grads, added = jax.grad(by_hand, has_aux=True)(jnp.zeros((5, 2, 11, 24)))
    want = jnp.sum(grads * added, axis=(1, 2, 3))
    assert np.abs(want).min() > 1e-2
    np.testing.assert_allclose(jax.grad(loss)(mask), want, rtol=1e-3, atol=1e-4)
