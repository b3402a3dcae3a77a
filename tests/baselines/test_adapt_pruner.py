"""Many small steps, each of a model as it is by then."""

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.baselines import adapt_pruner, gradients
from ppjax.models import costs


def _measured(cfg, kept, cosines):
    rng = np.random.default_rng(3)
    scores = gradients.Scores(
        rng.random((cfg.num_layers, cfg.d_ff)) * kept.channels,
        rng.random((cfg.num_layers, cfg.num_kv_heads)) * kept.groups,
        np.zeros(cfg.num_layers),
    )
    return adapt_pruner.Measured(scores, np.asarray(cosines))


def _pruned(cfg, share, cosines=(0.5, 0.5, 0.5), **options):
    whole = costs.parameters(cfg, costs.uniform(cfg)).blocks
    seen = []

    def measure(kept, step):
        assert step == len(seen)
        seen.append(kept)
        return _measured(cfg, kept, cosines)

    values = {'iterations': 20, 'amplitude': 0.02} | options
    kept, steps = adapt_pruner.prune(cfg, measure, int(share * whole), **values)
    return kept, steps, seen, int(share * whole)


@pytest.mark.parametrize('share', [0.9, 0.75, 0.5])
def test_the_end_is_just_above_the_target(share, tiny_models):
    cfg = tiny_models('llama').config
    kept, steps, _, target = _pruned(cfg, share)
    left = costs.parameters(cfg, kept.sizes).blocks
    assert left == steps[-1].blocks
    # A group at a time, or a channel.
    group = 2 * cfg.d_model * cfg.head_dim * (1 + cfg.num_heads // cfg.num_kv_heads)
    assert target <= left < target + group * cfg.num_layers
    _, official, _, _ = _pruned(cfg, share, official_stop=True)
    assert official[-1].blocks < target
    assert [x.blocks for x in official[:-1]] == [x.blocks for x in steps[:-1]]


def test_alike_blocks_shrink_alike(tiny_models):
    cfg = tiny_models('llama').config
    kept, steps, _, _ = _pruned(cfg, 0.6)
    assert len(set(kept.sizes)) == 1
    np.testing.assert_allclose(steps[0].ratios, 1 / 20)


def test_blocks_that_turn_the_stream_shrink_less(tiny_models):
    cfg = tiny_models('llama').config
    kept, steps, _, _ = _pruned(cfg, 0.6, cosines=(0.2, 0.9, 0.7))
    np.testing.assert_allclose(
        adapt_pruner.influence(np.array([0.2, 0.9, 0.7])), [1, -0.75, -0.25]
    )
    np.testing.assert_allclose(
        steps[0].ratios, [0.05 - 0.02, 0.05 + 0.015, 0.05 + 0.005]
    )
    sizes = kept.sizes
    assert sizes[0].channels > sizes[2].channels > sizes[1].channels
    assert adapt_pruner.influence(np.ones(3)).tolist() == [0, 0, 0]


def test_what_is_gone_stays_so(tiny_models):
    cfg = tiny_models('llama').config
    kept, _, seen, _ = _pruned(cfg, 0.6, cosines=(0.2, 0.9, 0.7), amplitude=0.2)
    for before, after in zip(seen, [*seen[1:], kept], strict=True):
        assert not (after.channels & ~before.channels).any()
        assert not (after.groups & ~before.groups).any()
    assert all(size.channels >= 1 and size.groups >= 1 for size in kept.sizes)


def test_nothing_to_remove_takes_no_step(tiny_models):
    cfg = tiny_models('llama').config
    kept, steps, _, _ = _pruned(cfg, 1.0)
    assert not steps
    assert kept.sizes == costs.uniform(cfg)


def test_blocks_that_no_longer_shrink_are_said(tiny_models):
    cfg = tiny_models('llama').config
    with pytest.raises(errors.InputError, match='lower --amplitude'):
        _pruned(cfg, 0.05, cosines=(0.2, 0.9, 0.9), amplitude=0.1)
