"""Scores by activations, against NumPy over what transformers computes."""

import dataclasses

import numpy as np
import pytest
import torch

from ppjax.baselines import batches, biases, budget, one_shot, selection
from ppjax.data import chat
from ppjax.exporting import hf_export
from ppjax.models import costs, loading
from ppjax.models import structure as structure_lib


@pytest.fixture(scope='module')
def texts():
    rng = np.random.default_rng(2)
    return [
        chat.Example(rng.integers(3, 97, length).astype(np.int32), 1, str(length))
        for length in (13, 31, 17, 9, 22)
    ]


def _read_by(hf, texts):
    """What each block's down_proj and o_proj read: [(layer, which)] -> one array a text."""
    found = {}
    hooks = []
    for layer, block in enumerate(hf.model.layers):
        for which, linear in (
            ('channels', block.mlp.down_proj),
            ('heads', block.self_attn.o_proj),
        ):
            own = found.setdefault((layer, which), [])
            hooks.append(
                linear.register_forward_pre_hook(
                    lambda _, args, own=own: own.append(args[0][0].double().numpy())
                )
            )
    with torch.no_grad():
        for text in texts:
            tokens = torch.tensor(text.tokens)[None]
            hf(tokens, attention_mask=torch.ones_like(tokens))
    for hook in hooks:
        hook.remove()
    return found


def _rows(hf, layer, which):
    """The projection's rows [in, out]."""
    block = hf.model.layers[layer]
    linear = block.mlp.down_proj if which == 'channels' else block.self_attn.o_proj
    return linear.weight.detach().double().numpy().T


@pytest.mark.parametrize('name', ['llama', 'qwen2'])
def test_moments_are_numpys(name, tiny_models, texts):
    tiny = tiny_models(name)
    found = one_shot.measure(
        tiny.decoder, batches.padded(texts, 2), one_shot.CRITERIA['minitron']
    )
    read = _read_by(tiny.hf, texts)
    for (layer, which), own in read.items():
        moments = getattr(found.statistics[layer], which)
        whole = np.concatenate(own)
        assert moments.total == len(whole)
        np.testing.assert_allclose(moments.mean, whole.mean(axis=0), atol=2e-6)
        np.testing.assert_allclose(moments.variance, whole.var(axis=0), rtol=1e-4)
        np.testing.assert_allclose(moments.squares, (whole**2).sum(axis=0), rtol=1e-4)
        sizes = [np.abs(x).mean(axis=0) ** 2 for x in own]
        np.testing.assert_allclose(moments.sequences, sum(sizes), rtol=1e-4)


@pytest.mark.parametrize('method', sorted(one_shot.CRITERIA))
def test_scores_are_the_published_ones(method, tiny_models, texts):
    tiny = tiny_models('llama')
    cfg = tiny.config
    found = one_shot.measure(
        tiny.decoder, batches.padded(texts, 3), one_shot.CRITERIA[method]
    )
    read = _read_by(tiny.hf, texts)
    for layer in range(cfg.num_layers):
        scores = {}
        for which in ('channels', 'heads'):
            whole, rows = (
                np.concatenate(read[layer, which]),
                _rows(tiny.hf, layer, which),
            )
            scores[which] = {
                'wanda_sp': np.abs(rows).sum(1) * np.linalg.norm(whole, axis=0),
                'flap': whole.var(axis=0) * np.linalg.norm(rows, axis=1) ** 2,
                'minitron': np.sqrt(
                    sum(np.abs(x).mean(axis=0) ** 2 for x in read[layer, which])
                ),
            }[method]
        np.testing.assert_allclose(found.channels[layer], scores['channels'], rtol=1e-4)
        heads = scores['heads'].reshape(cfg.num_heads, cfg.head_dim)
        heads = {
            'wanda_sp': heads.sum(1),
            'flap': (heads**2).mean(1),
            'minitron': np.sqrt((heads**2).sum(1)),
        }[method]
        groups = heads.reshape(cfg.num_kv_heads, -1).mean(1)
        np.testing.assert_allclose(found.groups[layer], groups, rtol=2e-4)


def test_a_sequential_criterion_sees_what_pruned_blocks_make(tiny_models, texts):
    tiny = tiny_models('llama')
    cfg = tiny.config
    packed = batches.padded(texts, 5)
    sizes = [costs.BlockSize(20, 1)] * cfg.num_layers
    criterion = one_shot.CRITERIA['wanda_sp']
    found = one_shot.measure(tiny.decoder, packed, criterion, sizes)
    kept = selection.of_sizes(found.channels, found.groups, sizes)
    # Of the last block: what it reads once all before it are cut.
    before = structure_lib.Structure.dense(cfg)
    before.channels[:-1], before.groups[:-1] = kept.channels[:-1], kept.groups[:-1]
    pruned = before.pruned(tiny.base)
    decoder = loading.load_decoder(pruned.reader, pruned.config, dtype=np.float32)
    again = one_shot.measure(
        decoder, packed, dataclasses.replace(criterion, sequential=False)
    )
    np.testing.assert_allclose(found.channels[-1], again.channels[-1], rtol=1e-4)
    dense = one_shot.measure(
        tiny.decoder, packed, dataclasses.replace(criterion, sequential=False)
    )
    np.testing.assert_allclose(found.channels[0], dense.channels[0], rtol=1e-6)
    assert np.abs(found.channels[-1] / dense.channels[-1] - 1).max() > 0.01


def test_constant_activations_are_restored_by_a_bias(tiny_models):
    """Of one token again and again, without RoPE's help, all activations are alike."""
    tiny = tiny_models('llama')
    text = chat.Example(np.full(24, 7, np.int32), 1, 'x')
    packed = batches.padded([text], 1)
    found = one_shot.measure(tiny.decoder, packed, one_shot.CRITERIA['flap'])
    rng = np.random.default_rng(1)
    kept = structure_lib.Structure.dense(tiny.config)
    kept.channels[:, rng.permutation(tiny.config.d_ff)[:30]] = False
    kept.groups[:, 1] = False
    kept.blocks[:] = True
    means = one_shot.mean_outputs(tiny.decoder, kept, found.statistics)
    pruned = biases.with_biases(kept.pruned(tiny.base), means, kept.layers)
    loading.check_tensors(pruned.reader, pruned.config)
    decoder = loading.load_decoder(pruned.reader, pruned.config, dtype=np.float32)
    small = dataclasses.replace(tiny, base=pruned, decoder=decoder)
    tokens = text.tokens[None]
    np.testing.assert_allclose(small.logits(tokens), tiny.logits(tokens), atol=1e-4)
    bare = tiny.logits(tokens, masks=kept.masks(tiny.config))
    assert np.abs(bare - tiny.logits(tokens)).max() > 0.1


def test_biases_are_added_to_those_there_are(tiny_models, texts):
    tiny = tiny_models('llama-biased')
    found = one_shot.measure(
        tiny.decoder, batches.padded(texts, 5), one_shot.CRITERIA['flap']
    )
    kept = structure_lib.Structure.dense(tiny.config)
    kept.channels[:, ::3] = False
    means = one_shot.mean_outputs(tiny.decoder, kept, found.statistics)
    pruned = biases.with_biases(kept.pruned(tiny.base), means, kept.layers)
    name = 'model.layers.1.mlp.down_proj.bias'
    own = tiny.base.reader.read(name)
    np.testing.assert_allclose(pruned.reader.read(name), own + means['b_down'][1])
    for kind in ('mlp.up_proj', 'self_attn.q_proj'):
        name = f'model.layers.1.{kind}.bias'
        want = tiny.base.reader.read(name)
        if kind == 'mlp.up_proj':
            want = want[kept.channels[1]]
        np.testing.assert_array_equal(pruned.reader.read(name), want)
    assert hf_export.parameter_count(pruned) == hf_export.parameter_count(
        kept.pruned(tiny.base)
    )


def test_the_lowest_scores_of_all_layers_go(tiny_models):
    cfg = tiny_models('llama').config
    rng = np.random.default_rng(5)
    channels = rng.normal(size=(cfg.num_layers, cfg.d_ff))
    groups = rng.normal(size=(cfg.num_layers, cfg.num_kv_heads))
    whole = costs.parameters(cfg, costs.uniform(cfg)).blocks
    among = budget.Range(0, cfg.num_layers)
    kept = selection.over_layers(cfg, channels, groups, int(0.7 * whole), among)
    left = costs.parameters(cfg, kept.sizes).blocks
    channel = 3 * cfg.d_model
    assert 0.7 * whole <= left < 0.7 * whole + channel
    assert channels[~kept.channels].max() < channels[kept.channels].min() + 1e-12
    # As many as there may be: one of each is left.
    least = selection.over_layers(cfg, channels, groups, 0, among)
    assert set(least.sizes) == {costs.BlockSize(1, 1)}
    spared = selection.over_layers(cfg, channels, groups, 0, budget.Range(1, 2))
    assert spared.sizes[0] == spared.sizes[2] == costs.uniform(cfg)[0]
    assert spared.sizes[1] == costs.BlockSize(1, 1)
