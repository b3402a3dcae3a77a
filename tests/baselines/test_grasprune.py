"""GRASPrune: its projection, its gradient, what it learns, gains in the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.baselines import batches, budget, grasprune, selection
from ppjax.models import costs, folded, loading
from ppjax.models import structure as structure_lib
from ppjax.parallel import sharding


@pytest.fixture(scope='module')
def tiny(tiny_models):
    return tiny_models('llama')


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh('data:1', jax.devices()[:1])


def _left(cfg, kept) -> int:
    return costs.parameters(cfg, kept.sizes).blocks


def _one_by_one(cfg, channels, groups, blocks_left, among):
    """Every unit from the lowest on goes if enough is left without it."""
    kept = structure_lib.Structure.dense(cfg)
    units = [
        (score, kind, layer, unit)
        for kind, scores in enumerate((channels, groups))
        for (layer, unit), score in np.ndenumerate(scores)
    ]
    for score, kind, layer, unit in sorted(units):
        own = (kept.channels, kept.groups)[kind]
        if score == np.inf or not among.start <= layer < among.stop:
            continue
        if own[layer].sum() > 1:
            own[layer, unit] = False
            own[layer, unit] = _left(cfg, kept) < blocks_left
    return kept


@pytest.mark.parametrize('seed', range(12))
def test_the_projection_is_that_of_one_unit_after_the_other(seed, tiny):
    cfg = dataclasses.replace(
        tiny.config, num_layers=3, d_ff=7, d_model=5, head_dim=2, qkv_bias=seed % 2 == 0
    )
    rng = np.random.default_rng(seed)
    channels = rng.normal(size=(3, 7))
    groups = rng.normal(size=(3, cfg.num_kv_heads))
    if seed % 3 == 0:  # With equals.
        channels, groups = np.round(channels), np.round(groups)
    if seed % 4 == 0:
        groups[:] = np.inf
    among = budget.Range(seed % 2, 3)
    whole = costs.parameters(cfg, costs.uniform(cfg)).blocks
    for share in (0, 0.3, 0.5, 0.62, 0.81, 1):
        target = int(share * whole)
        found = selection.over_layers(cfg, channels, groups, target, among)
        wanted = _one_by_one(cfg, channels, groups, target, among)
        np.testing.assert_array_equal(found.channels, wanted.channels)
        np.testing.assert_array_equal(found.groups, wanted.groups)
        assert _left(cfg, found) >= target
    assert _left(cfg, found) == whole


def test_at_the_start_every_layer_keeps_as_much(tiny):
    cfg = tiny.config
    whole = costs.parameters(cfg, costs.uniform(cfg)).blocks
    scores = grasprune.start_scores(cfg)
    among = budget.Range(0, cfg.num_layers)
    kept = selection.over_layers(cfg, *scores, int(0.7 * whole), among)
    widths = [size.channels for size in kept.sizes]
    assert max(widths) - min(widths) <= 1
    assert len({size.groups for size in kept.sizes}) == 1
    assert 0.7 * whole <= _left(cfg, kept) < 0.7 * whole + 3 * cfg.d_model


def test_the_gradient_passes_as_that_of_a_sigmoid():
    rng = np.random.default_rng(0)
    mask = grasprune.Units(np.ones((2, 3), np.float32), np.zeros((2, 1), np.float32))
    scores = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), mask)
    slopes = jax.tree.map(lambda x: rng.normal(size=x.shape), mask)

    gates = grasprune._straight_through(scores, mask)
    for gate, own in zip(gates, mask, strict=True):
        np.testing.assert_array_equal(gate, own)

    def loss(scores):
        gates = grasprune._straight_through(scores, mask)
        return sum(jnp.sum(x * y) for x, y in zip(gates, slopes, strict=True))

    found = jax.grad(loss)(scores)
    for own, score, slope in zip(found, scores, slopes, strict=True):
        share = 1 / (1 + np.exp(-np.asarray(score) / 1.5))
        np.testing.assert_allclose(own, slope * share * (1 - share) / 1.5, rtol=1e-4)


@pytest.fixture(scope='module')
def learn(tiny, mesh, make_examples):
    drawn = batches.padded(make_examples(8, prefix=4), 4)
    whole = costs.parameters(tiny.config, costs.uniform(tiny.config)).blocks

    def run(**changes):
        settings = {'heads': True, 'steps': 24, 'gain_steps': 12, 'rate': 3e-2}
        return grasprune.learn(
            tiny.decoder,
            drawn,
            int(0.6 * whole),
            seed=1,
            mesh=mesh,
            **(settings | changes),
        )

    return run


@pytest.fixture(scope='module')
def learned(learn):
    return learn()


def test_it_learns_and_ends_within_the_budget(tiny, learned):
    cfg = tiny.config
    whole = costs.parameters(cfg, costs.uniform(cfg)).blocks
    left = _left(cfg, learned.structure)
    assert int(0.6 * whole) <= left < 0.6 * whole + 3 * cfg.d_model
    assert len(set(learned.structure.sizes)) > 1
    chosen, scaled = learned.facts['loss'], learned.facts['gain_loss']
    assert (chosen['steps'], scaled['steps']) == (24, 12)
    assert chosen['last'] < chosen['first'] - 0.1
    assert scaled['last'] < chosen['last']
    for gains, kept in zip(
        learned.gains,
        (learned.structure.channels, learned.structure.groups),
        strict=True,
    ):
        assert (gains[~kept] == 1).all()
        assert (gains[kept] != 1).any()
        assert (np.abs(gains - 1) < 0.5).all()


def test_the_same_seed_gives_the_same_bits(learn, learned):
    again = learn()
    for one, other in (
        (learned.structure.channels, again.structure.channels),
        (learned.structure.groups, again.structure.groups),
        *zip(learned.gains, again.gains, strict=True),
    ):
        np.testing.assert_array_equal(one, other)


def test_heads_stay_where_they_may_not_go(learn):
    found = learn(heads=False, steps=3, gain_steps=0)
    assert found.structure.groups.all()
    assert not found.structure.channels.all()
    assert found.facts['gain_loss'] == {'steps': 0}
    assert all((x == 1).all() for x in found.gains)


def test_gains_in_the_weights_are_gains_applied(tiny, learned):
    cfg = tiny.config
    tokens = np.random.default_rng(0).integers(3, 97, (2, 17)).astype(np.int32)
    kept, gains = learned.structure, learned.gains
    gates = grasprune.Units(gains.channels * kept.channels, gains.groups * kept.groups)
    applied = tiny.logits(tokens, masks=gates.masks(cfg))
    model = kept.pruned(folded.folded_model(tiny.base, gains.masks(cfg)))
    decoder = loading.load_decoder(model.reader, model.config, dtype=np.float32)
    small = dataclasses.replace(tiny, base=model, decoder=decoder)
    np.testing.assert_allclose(small.logits(tokens), applied, atol=1e-5)
    masked = tiny.logits(tokens, masks=kept.masks(cfg))
    assert np.abs(masked - applied).max() > 1e-2
