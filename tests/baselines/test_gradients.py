"""Scores by gradients, against autograd of PyTorch."""

import numpy as np
import pytest
import torch

from ppjax.baselines import batches, gradients
from ppjax.data import chat
from ppjax.models import masks as masks_lib
from ppjax.models import structure

_LAYER = 'model.layers.{}.'


@pytest.fixture(scope='module')
def texts():
    rng = np.random.default_rng(2)
    return [
        chat.Example(rng.integers(3, 97, length).astype(np.int32), start, str(length))
        for length, start in ((13, 1), (17, 5), (17, 1), (9, 4))
    ]


def _losses(tiny, texts, masks=None):
    """transformers' sums of -log p over answers, one a text."""
    found = []
    for text in texts:
        tokens = torch.tensor(text.tokens)[None]
        logits = tiny.hf(tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        own = logits[text.answer_start - 1 : -1].log_softmax(-1)
        chosen = own.gather(1, tokens[0, text.answer_start :, None])
        found.append(-chosen.sum())
    return found


def _autograd(tiny, texts):
    """(W, G of the mean over tokens, mean of squared G of each text's mean) by name."""
    parameters = {name: x for name, x in tiny.hf.named_parameters() if 'layers' in name}
    count = sum(text.num_answer_tokens for text in texts)
    first = {name: torch.zeros_like(x) for name, x in parameters.items()}
    squares = {name: torch.zeros_like(x) for name, x in parameters.items()}
    for text, loss in zip(texts, _losses(tiny, texts), strict=True):
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        for name, slope in zip(parameters, slopes, strict=True):
            first[name] += slope / count
            squares[name] += (slope / text.num_answer_tokens) ** 2 / len(texts)
    return parameters, first, squares


def _wanted(tiny, texts, kind):
    """(channels, groups, blocks) as NumPy makes them of autograd's."""
    cfg = tiny.config
    weights, first, squares = _autograd(tiny, texts)
    r = cfg.num_heads // cfg.num_kv_heads
    channels = np.zeros((cfg.num_layers, cfg.d_ff))
    groups = np.zeros((cfg.num_layers, cfg.num_kv_heads))
    blocks = np.zeros(cfg.num_layers)

    def change(name):
        w, g = weights[name].detach().numpy(), first[name].numpy()
        second = w**2 * squares[name].numpy()
        return {
            'first': w * g,
            'second': second,
            'mix': w * g - second / 2,
            'vectorize': w * g,
        }[kind]

    def rows(name, axis):
        own = change(name)
        if kind == 'vectorize':
            return np.abs(own.sum(axis=axis))
        return np.abs(own).sum(axis=axis)

    for layer in range(cfg.num_layers):
        at = _LAYER.format(layer)
        channels[layer] = (
            rows(f'{at}mlp.gate_proj.weight', 1)
            + rows(f'{at}mlp.up_proj.weight', 1)
            + rows(f'{at}mlp.down_proj.weight', 0)
        )
        for name, axis in (('q', 1), ('k', 1), ('v', 1), ('o', 0)):
            own = rows(f'{at}self_attn.{name}_proj.weight', axis)
            heads = own.reshape(-1, cfg.head_dim).sum(axis=1)
            if name in 'qo':
                for head, value in enumerate(heads):
                    groups[layer, head // r] += value
            else:
                groups[layer] += heads
        for name in weights:
            if name.startswith(at) and name.endswith('.weight'):
                blocks[layer] += np.abs(change(name)).sum()
    return channels, groups, blocks


@pytest.mark.parametrize('kind', gradients.KINDS)
@pytest.mark.parametrize('name', ['llama', 'qwen2'])
def test_scores_are_those_of_autograd(kind, name, tiny_models, texts):
    tiny = tiny_models(name)
    size = 1 if kind in ('second', 'mix') else 3
    packed = batches.padded(texts, size)
    found = gradients.measure(tiny.decoder, masks_lib.DENSE, packed, kind=kind)
    channels, groups, blocks = _wanted(tiny, texts, kind)
    # Sums that cancel keep the error of what they are sums of.
    limits = {'rtol': 1e-5, 'atol': 3e-7 if kind == 'vectorize' else 0}
    np.testing.assert_allclose(found.channels, channels, **limits)
    np.testing.assert_allclose(found.groups, groups, **limits)
    if kind == 'first':
        np.testing.assert_allclose(found.blocks, blocks, rtol=1e-5)


def test_the_released_fold_adds_up_heads_of_other_groups(tiny_models, texts):
    """Two groups of two heads: the released code adds heads 0 and 2, 1 and 3."""
    heads = np.array([[1.0, 2.0, 4.0, 8.0]])
    np.testing.assert_array_equal(
        gradients._folded(heads, 2, official=False), [[3.0, 12.0]]
    )
    np.testing.assert_array_equal(
        gradients._folded(heads, 2, official=True), [[5.0, 10.0]]
    )
    tiny, packed = tiny_models('llama'), batches.padded(texts, 3)
    own, official = (
        gradients.measure(
            tiny.decoder, masks_lib.DENSE, packed, kind='first', official_fold=fold
        )
        for fold in (False, True)
    )
    np.testing.assert_array_equal(own.channels, official.channels)
    assert np.abs(own.groups - official.groups).max() > 0


def test_what_is_gone_has_no_score(tiny_models, texts):
    tiny = tiny_models('llama')
    kept = structure.Structure.dense(tiny.config)
    kept.channels[1, 7:20] = False
    kept.groups[2, 1] = False
    packed = batches.padded(texts, 4)
    found = gradients.measure(
        tiny.decoder, kept.masks(tiny.config), packed, kind='first'
    )
    np.testing.assert_array_equal(found.channels > 0, kept.channels)
    np.testing.assert_array_equal(found.groups > 0, kept.groups)


def test_squares_want_single_sequences(tiny_models, texts):
    packed = batches.padded(texts, 2)
    decoder = tiny_models('llama').decoder
    with pytest.raises(ValueError, match='batches of one sequence'):
        gradients.measure(decoder, masks_lib.DENSE, packed, kind='mix')
