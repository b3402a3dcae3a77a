"""Layers fitted one after the other, against NumPy's least squares over transformers."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import torch

from ppjax.base import errors
from ppjax.compensation import config, fit, layer_fit, layers, refitted
from ppjax.compensation import texts as texts_lib
from ppjax.data import packing
from ppjax.learning import data as data_lib
from ppjax.models import sliced
from ppjax.parallel import sharding

_PREFIX = 6


@pytest.fixture(scope='module')
def data(make_examples):
    examples = make_examples(20, prefix=_PREFIX)
    return data_lib.Data(examples, [], packing.common_prefix(examples), '', {})


def _settings(**changes):
    values = {
        'base_model': 'x',
        'mask': 'x',
        'calibration': 'x',
        'output_dir': 'x',
        'batch_size': 5,
        'damping': '0.1',
    }
    return config.CompensateConfig(**(values | changes))


def _masks(tiny, keep):
    rng = np.random.default_rng(1)
    mask = np.zeros((tiny.config.num_layers, tiny.config.d_ff), bool)
    for row in mask:
        row[rng.permutation(len(row))[:keep]] = True
    return mask


def _refit(tiny, data, folder, *, keep, mesh='fsdp:1', model=None, **changes):
    """(refitted model, how each layer was fitted)."""
    cfg = _settings(**changes)
    pruned = model or sliced.sliced_model(tiny.base, _masks(tiny, keep))
    if cfg.bias:
        pruned = refitted.with_biases(pruned)
    devices = jax.devices()[: 1 if mesh == 'fsdp:1' else 8]
    if mesh == 'data:2':
        devices = devices[:2]
    where = sharding.make_mesh(mesh, devices)
    texts = texts_lib.pack(
        data, batch_size=cfg.batch_size, share=0.2, seed=0, mesh=where
    )
    files = refitted.LayerFiles(folder)
    done = layers.Layers(
        cfg, tiny.base, pruned, texts, files, where, between=lambda: None
    )
    done.start()
    facts = [done.run(layer) for layer in range(done.total)]
    return refitted.refitted_model(pruned, files, biased=cfg.bias), facts


def _rows(model):
    names = [f'model.layers.{n}.mlp.down_proj.weight' for n in range(3)]
    return np.stack([model.reader.read(name) for name in names])


class _Seen:
    """What transformers' model of some layers saw, one example after the other."""

    def __init__(self, hf):
        self._hf = hf

    def __call__(self, examples, layer):
        """Activations, FFN output and stream before it, of all tokens of a layer."""
        found = {'a': [], 'ffn': [], 'before': []}
        block = self._hf.model.layers[layer]
        hooks = [
            block.mlp.down_proj.register_forward_pre_hook(
                lambda _, given: found['a'].append(given[0][0])
            ),
            block.mlp.register_forward_hook(
                lambda _, given, made: found['ffn'].append(made[0])
            ),
            block.post_attention_layernorm.register_forward_pre_hook(
                lambda _, given: found['before'].append(given[0][0])
            ),
        ]
        with torch.no_grad():
            for example in examples:
                self._hf(torch.tensor(example.tokens, dtype=torch.long)[None])
        for hook in hooks:
            hook.remove()
        return {name: torch.cat(x).double().numpy() for name, x in found.items()}


def _token_weights(texts, examples, held):
    """Of each example's tokens, in order: a prefix counts once a batch."""
    groups = [np.flatnonzero(~held), np.flatnonzero(held)]
    found = {}
    for group in groups:
        lengths = [len(examples[i].tokens) for i in group]
        order = np.argsort(lengths, kind='stable')
        count = -(-len(order) // 5)
        for start in range(count):
            batch = group[order[start::count]]
            for i in batch:
                own = np.ones(len(examples[i].tokens))
                own[:_PREFIX] = 1 / len(batch)
                found[i] = own
    return np.concatenate([found[i] for i in range(len(examples))])


@pytest.mark.parametrize('target', config.TARGETS)
def test_rows_are_those_of_least_squares(target, tiny_models, data, tmp_path):
    tiny = tiny_models('llama')
    got, _ = _refit(tiny, data, tmp_path, keep=20, target=target)
    dense, hf = _Seen(tiny.hf), tiny.pruned_hf(_masks(tiny, 20))
    pruned = _Seen(hf)
    held = texts_lib.hold_back(20, 0.2, 0)
    weights = _token_weights(None, data.train, held)
    root = np.sqrt(weights)[:, None]
    for layer, rows in enumerate(_rows(got)):
        ours, theirs = pruned(data.train, layer), dense(data.train, layer)
        if target == 'residual':
            wanted = theirs['before'] + theirs['ffn'] - ours['before']
        elif target == 'ffn':
            wanted = theirs['ffn']
        else:
            with torch.no_grad():
                block = tiny.hf.model.layers[layer]
                x = torch.tensor(ours['before'], dtype=torch.float32)
                made = block.mlp(block.post_attention_layernorm(x))
            wanted = made.double().numpy()
        a = ours['a'] * root
        damped = np.sqrt(0.1 * np.mean(np.square(a).sum(axis=0)))
        down = hf.model.layers[layer].mlp.down_proj.weight
        left = (wanted - ours['ffn']) * root
        change = np.linalg.lstsq(
            np.concatenate([a, damped * np.eye(20)]),
            np.concatenate([left, np.zeros((20, left.shape[1]))]),
        )[0]
        with torch.no_grad():
            down += torch.tensor(change.T)
        assert np.abs(change).max() > 0.01
        np.testing.assert_allclose(rows, down.detach().numpy(), atol=1e-5)


def test_all_channels_kept_change_nothing(tiny_models, data, tmp_path):
    tiny = tiny_models('qwen3')
    got, facts = _refit(tiny, data, tmp_path, keep=52, damping='0.001,1')
    np.testing.assert_allclose(_rows(got), _rows(tiny.base), atol=1e-5)
    assert all(one['heldback_error_before'] < 1e-9 for one in facts)


def test_devices_change_nothing(tiny_models, data, tmp_path, monkeypatch):
    # Several blocks of rows, the last of which overlaps the one before.
    monkeypatch.setattr(layer_fit, '_BLOCK_BYTES', 4 * 20 * 20 // 2 - 1)
    tiny = tiny_models('qwen2')
    rows = {}
    for mesh in ('fsdp:1', 'data:2', 'data:4,fsdp:2'):
        folder = tmp_path / mesh
        got, facts = _refit(tiny, data, folder, keep=20, mesh=mesh, damping='0.01,0.1')
        rows[mesh] = _rows(got), [one['damping'] for one in facts]
    first = rows.pop('fsdp:1')
    for other in rows.values():
        np.testing.assert_allclose(other[0], first[0], atol=1e-5)
        assert other[1] == first[1]


def test_blocks_of_rows_cover_a_matrix_once(monkeypatch):
    assert layer_fit.row_blocks(20) == ([0], 20)
    starts, rows = layer_fit.row_blocks(27_648)
    assert 4 * rows * 27_648 <= 2**30 and starts[-1] + rows == 27_648
    assert all(b - a <= rows for a, b in itertools.pairwise(starts))


def test_a_chosen_damping_is_the_best_on_texts_held_back(tiny_models, data, tmp_path):
    tiny = tiny_models('llama')
    grid = ('0.001', '0.1', '10')
    alone = [
        _refit(tiny, data, tmp_path / x, keep=20, damping=x)[1][0]['heldback_error']
        for x in grid
    ]
    _, facts = _refit(tiny, data, tmp_path / 'all', keep=20, damping=','.join(grid))
    assert facts[0]['damping'] == float(grid[int(np.argmin(alone))])
    assert facts[0]['heldback_error'] == min(alone)
    assert all(one['fit_error'] < one['fit_error_before'] for one in facts)


def test_a_layer_that_no_damping_helps_stays_as_it_is(
    tiny_models, data, tmp_path, monkeypatch
):
    """As where the texts held back are unlike the others."""
    tiny = tiny_models('llama')
    finish = layer_fit.LayerFit.finish

    def worse(self):
        self._held += 1e9
        return finish(self)

    monkeypatch.setattr(layer_fit.LayerFit, 'finish', worse)
    got, facts = _refit(tiny, data, tmp_path, keep=20)
    pruned = sliced.sliced_model(tiny.base, _masks(tiny, 20))
    np.testing.assert_array_equal(_rows(got), _rows(pruned))
    for one in facts:
        assert not one['refitted']
        assert one['heldback_error'] == one['heldback_error_before']
        assert one['fit_error'] == one['fit_error_before']


def test_a_bias_alone_is_the_mean_of_what_is_removed(tiny_models, data, tmp_path):
    """FLAP's, of the pruned path: with rows held fast nothing else is left to fit."""
    tiny = tiny_models('llama')
    got, _ = _refit(
        tiny, data, tmp_path, keep=20, damping='1e12', bias=True, target='own_ffn'
    )
    assert got.config.mlp_bias and got.reader.hf_config['mlp_bias']
    mask = _masks(tiny, 20)
    pruned = sliced.sliced_model(tiny.base, mask)
    np.testing.assert_allclose(_rows(got), _rows(pruned), atol=1e-6)
    held = texts_lib.hold_back(20, 0.2, 0)
    weights = _token_weights(None, data.train, held)
    seen = _Seen(tiny.hf)(data.train, 0)
    removed = ~mask[0]
    down = _rows(tiny.base)[0][:, removed].astype(np.float64)
    mean = np.average(seen['a'][:, removed], axis=0, weights=weights)
    bias = got.reader.read('model.layers.0.mlp.down_proj.bias')
    np.testing.assert_allclose(bias, down @ mean, atol=1e-5)
    assert not got.reader.read('model.layers.1.mlp.up_proj.bias').any()


def test_a_bias_is_refused_where_no_stock_model_holds_it(tiny_models):
    with pytest.raises(errors.InputError, match='no stock qwen2 model has a bias'):
        refitted.with_biases(tiny_models('qwen2').base)


def test_bfloat16_paths_come_close(tiny_models, data, tmp_path):
    tiny = tiny_models('llama')
    exact, _ = _refit(tiny, data, tmp_path / 'exact', keep=20)
    narrow, facts = _refit(tiny, data, tmp_path / 'narrow', keep=20, dtype='bfloat16')
    assert all(one['heldback_error'] < one['heldback_error_before'] for one in facts)
    change = _rows(exact) - _rows(sliced.sliced_model(tiny.base, _masks(tiny, 20)))
    difference = np.abs(_rows(narrow) - _rows(exact)).max()
    assert difference < 0.1 * np.abs(change).max()


def test_dead_channels_and_damaged_numbers():
    sums = fit.Sums(3, 2)
    sums.cross += 1
    assert not fit.solve(sums, 0.1, biased=False).any()
    sums.gram[1, 1] = np.nan
    with pytest.raises(errors.InputError, match='Layer 4: activations'):
        sums.check_finite(4)


def test_rounded_sums_of_large_activations_alike_are_solved():
    """Two channels 1e4 times the others, always together, summed in float32."""
    rng = np.random.default_rng(3)
    a = rng.normal(size=(400, 12))
    a[:, :3] = 1e4 * rng.normal(size=(400, 1)) * (1 + 1e-5 * rng.normal(size=(400, 3)))
    sums = fit.Sums(12, 5)
    wanted = rng.normal(size=(400, 5))
    sums.gram[:] = (np.float32(a).T @ np.float32(a)).astype(np.float64)
    # As rounding may have it: each of the largest entries by one part in 10 million.
    sums.gram[:3, :3] *= 1 - 3e-7 * (1 - np.eye(3))
    sums.gram[0, 1] = sums.gram[1, 0] = sums.gram[0, 0] * (1 + 3e-7)
    sums.cross[:] = a.T @ wanted
    sums.energy, sums.weight = float(np.square(wanted).sum()), 400.0
    damping = 1e-12
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(sums.gram + damping * np.eye(12))
    change = fit.solve(sums, damping, biased=False)
    exact = np.linalg.lstsq(a[:, 3:], wanted, rcond=None)[0]
    np.testing.assert_allclose(change[3:], exact, atol=0.02)
    sums.gram[0, 1] = sums.gram[1, 0] = 2 * sums.gram[0, 0]
    with pytest.raises(errors.InputError, match='larger ones'):
        fit.solve(sums, damping, biased=False)


def test_examples_are_held_back_by_seed():
    held = texts_lib.hold_back(100, 0.15, seed=0)
    assert held.sum() == 15
    assert (held != texts_lib.hold_back(100, 0.15, seed=1)).any()
    assert texts_lib.hold_back(2, 0.9, seed=0).sum() == 1
    with pytest.raises(errors.InputError, match='One example is too few'):
        texts_lib.hold_back(1, 0.5, seed=0)


def test_several_prompts_do_not_share_batches(make_examples):
    first, second = (
        [
            dataclasses.replace(example, persona=name)
            for example in make_examples(8, prefix=prefix, seed=seed)
        ]
        for name, prefix, seed in (('a', 9, 1), ('b', 5, 2))
    )
    train = [*first, *second]
    data = data_lib.Data(train, [], packing.common_prefix(train), '', {})
    mesh = sharding.make_mesh('fsdp:1', jax.devices()[:1])
    found = texts_lib.pack(data, batch_size=4, share=0.2, seed=0, mesh=mesh)
    assert {batch.shared[0] for batch in found.batches} == {5, 9}
    assert found.shape.prefix == 5 and found.examples == (16, 3)
    order = [batch.is_held for batch in found.batches]
    assert order == sorted(order)
