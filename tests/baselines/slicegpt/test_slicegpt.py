"""Rotated and cut models, against the same in PyTorch's float64."""

import numpy as np
import pytest
import torch
import transformers

from ppjax.baselines import batches
from ppjax.baselines.slicegpt import fit, model
from ppjax.data import chat
from ppjax.exporting import hf_export
from ppjax.models import attention, base_model, in_memory, loading
from ppjax.models import masks as masks_lib


@pytest.fixture(scope='module')
def texts():
    rng = np.random.default_rng(2)
    examples = [
        chat.Example(rng.integers(3, 97, length).astype(np.int32), 1, str(length))
        for length in (40, 33, 64, 50, 61)
    ]
    return batches.padded(examples, 2)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(3, 97, (2, 17)).astype(np.int32)


def _rotated_logits(tiny, layers, top, tokens):
    """Logits of rotated layers by transformers' own attention and FFN, in float64.

    Args:
        tiny: the dense model, of family llama or qwen2.
        layers: weights [in, out] from `rotated_layer`.
        top: embedding [V, W] and head [V, D] with the final norm's weights in it.
        tokens: [B, T].
    """
    hf = type(tiny.hf)(tiny.hf.config).double().eval()
    hf.set_attn_implementation('eager')
    whole, eps = tiny.config.d_model, tiny.config.norm_eps

    def norm(x):
        return x / torch.sqrt((x**2).sum(-1, keepdim=True) / whole + eps)

    x = torch.tensor(top['embedding'])[tokens.astype(np.int64)]
    positions = torch.arange(tokens.shape[1])[None]
    rope = hf.model.rotary_emb(x, positions)
    mask = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=torch.float64).triu(1)
    names = {
        'w_q': 'self_attn.q_proj',
        'w_k': 'self_attn.k_proj',
        'w_v': 'self_attn.v_proj',
        'w_o': 'self_attn.o_proj',
        'w_gate': 'mlp.gate_proj',
        'w_up': 'mlp.up_proj',
        'w_down': 'mlp.down_proj',
    }
    with torch.no_grad():
        for block, own in zip(hf.model.layers, layers, strict=True):
            for name, path in names.items():
                linear = block.get_submodule(path)
                linear.weight = torch.nn.Parameter(torch.tensor(own[name].T.copy()))
                bias = own.get(name.replace('w_', 'b_'))
                if bias is not None:
                    linear.bias = torch.nn.Parameter(torch.tensor(bias))
            found, _ = block.self_attn(
                hidden_states=norm(x),
                position_embeddings=rope,
                attention_mask=mask[None, None],
            )
            x = x @ torch.tensor(own['turn_attention']) + found
            x = x @ torch.tensor(own['turn_ffn']) + block.mlp(norm(x))
        return (norm(x) @ torch.tensor(top['head']).T).numpy()


@pytest.fixture
def exact(monkeypatch):
    """Softmax in float64: transformers' own is in float32, whatever the model is."""
    softmax = torch.softmax
    monkeypatch.setattr(
        torch.nn.functional, 'softmax', lambda x, dim, dtype=None: softmax(x, dim)
    )


@pytest.mark.parametrize(
    'name', ['llama', 'llama-tied', 'llama-scaled', 'llama-biased', 'qwen2']
)
def test_rotations_of_the_whole_width_change_nothing(name, tiny_models, tokens, exact):
    """In float64, with other directions at every site."""
    tiny = tiny_models(name)
    width, count = tiny.config.d_model, tiny.config.num_layers
    rng = np.random.default_rng(7)
    sites = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2 * count)]
    reader = fit.Reader(tiny.base)
    top = reader.top()

    def logits(sites):
        layers = [
            fit.rotated_layer(
                reader.layer(number),
                sites[2 * number],
                sites[2 * number + 1],
                np.eye(width) if number + 1 == count else sites[2 * number + 2],
            )
            for number in range(count)
        ]
        own = top | {'embedding': top['embedding'] @ sites[0]}
        return _rotated_logits(tiny, layers, own, tokens)

    plain = logits([np.eye(width)] * 2 * count)
    np.testing.assert_allclose(plain, tiny.hf_logits(tokens), atol=1e-4)
    np.testing.assert_allclose(logits(sites), plain, atol=1e-8, rtol=0)


def _our_logits(base, tokens, masks=masks_lib.DENSE):
    decoder = loading.load_decoder(base.reader, base.config, dtype=np.float32)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden, _, _ = decoder(tokens, positions, masks, attention.causal(*tokens.shape))
    return np.asarray(decoder.unembed(hidden))


@pytest.mark.parametrize('single', [False, True])
def test_a_fit_of_the_whole_width_is_the_dense_model(single, any_tiny, texts, tokens):
    make = fit.fit_single if single else fit.fit
    found = make(any_tiny.base, texts, any_tiny.config.d_model)
    assert found.carried == pytest.approx([1.0] * len(found.carried))
    base = model.sliced_base(any_tiny.base, found)
    want = any_tiny.logits(tokens)
    np.testing.assert_allclose(_our_logits(base, tokens), want, atol=2e-4)


@pytest.mark.parametrize('name', ['llama', 'llama-biased', 'qwen2'])
def test_a_cut_model_is_that_of_its_tensors(name, tiny_models, texts, tokens):
    tiny = tiny_models(name)
    found = fit.fit(tiny.base, texts, 16)
    layers = [{key: np.float64(x) for key, x in own.items()} for own in found.layers]
    top = {'embedding': np.float64(found.embedding), 'head': np.float64(found.head)}
    want = _rotated_logits(tiny, layers, top, tokens)
    base = model.sliced_base(tiny.base, found)
    loading.check_tensors(base.reader, base.config)
    np.testing.assert_allclose(_our_logits(base, tokens), want, atol=2e-4)
    assert np.abs(want - tiny.logits(tokens)).max() > 0.1


def _export(base, folder, monkeypatch):
    monkeypatch.setattr(hf_export, '_save_tokenizer', lambda *args: None)
    monkeypatch.setattr(
        hf_export.stop_tokens, 'with_stop_ids', lambda config, _: dict(config)
    )
    hf_export.export_model(
        base, folder, dtype='float32', tokenizer=None, model_card='', system_prompt=''
    )


@pytest.mark.parametrize('name', ['llama', 'llama-tied', 'qwen2', 'qwen3'])
def test_a_cut_model_is_read_back_and_no_stock_loader_takes_it(
    name, tiny_models, texts, tokens, tmp_path, monkeypatch
):
    tiny = tiny_models(name)
    base = model.sliced_base(tiny.base, fit.fit(tiny.base, texts, 16))
    want = _our_logits(base, tokens)
    _export(base, tmp_path / 'hf', monkeypatch)
    back = base_model.open_base_model(str(tmp_path / 'hf'))
    assert back.config == base.config
    np.testing.assert_array_equal(_our_logits(back, tokens), want)
    with pytest.raises(ValueError, match='slicegpt'):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')


@pytest.mark.parametrize('name', ['llama', 'llama-tied', 'qwen2', 'qwen3'])
def test_one_rotation_gives_a_stock_model(
    name, tiny_models, texts, tokens, tmp_path, monkeypatch
):
    tiny = tiny_models(name)
    base = model.sliced_base(tiny.base, fit.fit_single(tiny.base, texts, 16))
    _export(base, tmp_path / 'hf', monkeypatch)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf').eval()
    assert hf.config.hidden_size == 16
    with torch.no_grad():
        found = hf(torch.tensor(tokens), attention_mask=torch.ones(tokens.shape))
    np.testing.assert_allclose(found.logits, _our_logits(base, tokens), atol=1e-4)


def test_channels_of_the_last_block_are_masked_in_all_that_it_writes(
    tiny_models, texts, tokens
):
    tiny = tiny_models('llama')
    base = model.sliced_base(tiny.base, fit.fit(tiny.base, texts, 16))
    channels = np.ones((tiny.config.num_layers, tiny.config.d_ff), np.float32)
    channels[-1, ::2] = 0
    masked = _our_logits(base, tokens, masks_lib.Masks(channels=channels))
    tensors = {name: base.reader.read(name) for name in base.reader.names()}
    last = tiny.config.num_layers - 1
    for name in (f'model.layers.{last}.mlp.down_proj', 'model.last_down_proj'):
        tensors[f'{name}.weight'] = tensors[f'{name}.weight'] * channels[-1]
    reader = in_memory.InMemoryReader(base.reader.path, base.reader.hf_config, tensors)
    zeroed = base_model.BaseModel('x', reader, base.config)
    np.testing.assert_allclose(_our_logits(zeroed, tokens), masked, atol=1e-5)


def test_more_width_carries_more_and_padding_nothing(tiny_models, texts):
    tiny = tiny_models('llama')
    shares = [fit.fit(tiny.base, texts, width).carried for width in (8, 16, 24)]
    assert all(x < y for x, y in zip(shares[0], shares[1], strict=True))
    walk = fit.Walk(tiny.base, texts, centred=False, mesh=None)
    found = walk.covariance().sums
    table = tiny.base.reader.read('model.embed_tokens.weight').astype(np.float64)
    ids = np.concatenate([rows.tokens[rows.segments > 0] for rows in texts.rows])
    np.testing.assert_allclose(found, table[ids].T @ table[ids], rtol=1e-4, atol=1e-4)
    centred = fit.Walk(tiny.base, texts, centred=True, mesh=None)
    np.testing.assert_allclose(centred.top['embedding'].mean(axis=1), 0, atol=1e-12)


_ROTATIONS = (
    'model.layers.1.attn_shortcut.weight',
    'model.layers.2.mlp_shortcut.weight',
    'model.last_shortcut.weight',
    'model.last_down_proj.weight',
    'model.last_down_proj.bias',
)


@pytest.mark.parametrize('name', _ROTATIONS)
def test_a_rotation_lands_where_its_name_says_and_is_fingerprinted(
    name, tiny_models, texts
):
    tiny = tiny_models('llama-biased')
    base = model.sliced_base(tiny.base, fit.fit(tiny.base, texts, 16))
    tensors = {key: base.reader.read(key) for key in base.reader.names()}
    decoder = loading.load_decoder(base.reader, base.config, dtype=np.float32)
    held = {
        'model.layers.1.attn_shortcut.weight': decoder.blocks.turn_attention.dense()[1],
        'model.layers.2.mlp_shortcut.weight': decoder.blocks.turn_ffn.dense()[2],
        'model.last_shortcut.weight': decoder.last_turn[...],
        'model.last_down_proj.weight': decoder.last_down[...],
        'model.last_down_proj.bias': decoder.last_bias[...],
    }
    np.testing.assert_array_equal(np.asarray(held[name]).T, tensors[name])
    changed = tensors[name].copy()
    changed[0] = np.nextafter(changed[0], np.float32(9))
    reader = in_memory.InMemoryReader(
        base.reader.path, base.reader.hf_config, tensors | {name: changed}
    )
    assert loading.fingerprint(reader, base.config) != base.fingerprint()
