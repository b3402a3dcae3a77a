"""Matched budgets, against figures decoded from the paper and from released code."""

import dataclasses

import pytest

from ppjax.base import errors
from ppjax.baselines import budget, budget_table, config
from ppjax.models import config as config_lib
from ppjax.models import costs


def _cfg(family, vocab, width, layers, heads, kv, d_ff, tied):
    return config_lib.ModelConfig(
        family=family,
        vocab_size=vocab,
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=128,
        d_ff=d_ff,
        norm_eps=1e-5,
        rope_theta=1e4,
        rope_scaling=None,
        max_position=4096,
        qkv_bias=family == 'qwen2',
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_embeddings=tied,
        out_width=None,
    )


_MODELS = {
    'llama-3.2-3b': _cfg('llama', 128256, 3072, 28, 24, 8, 8192, True),
    'llama-3.1-8b': _cfg('llama', 128256, 4096, 32, 32, 8, 14336, False),
    'qwen2.5-3b': _cfg('qwen2', 151936, 2048, 36, 16, 2, 11008, True),
    'qwen2.5-7b': _cfg('qwen2', 152064, 3584, 28, 28, 4, 18944, False),
    'qwen2.5-32b': _cfg('qwen2', 152064, 5120, 64, 40, 8, 27648, False),
}


@pytest.mark.parametrize(
    'name, keep, billions, blocks, ratio, size, width',
    [
        ('llama-3.2-3b', 6144, 2.684, 5, 0.249, (6152, 7), 2200),
        ('llama-3.2-3b', 4096, 2.156, 10, 0.499, (4104, 5), 1728),
        ('llama-3.1-8b', 10752, 6.621, 6, 0.249, (10766, 7), 2936),
        ('llama-3.1-8b', 7168, 5.212, 12, 0.499, (7182, 5), 2240),
        ('qwen2.5-3b', 8256, 2.477, 7, 0.299, (7716, 2), 1480),
        ('qwen2.5-3b', 5504, 1.869, 15, 0.530, (5173, 1), 1080),
        ('qwen2.5-7b', 14208, 6.190, 6, 0.282, (13601, 3), 2584),
        ('qwen2.5-7b', 9472, 4.764, 12, 0.564, (8259, 2), 1896),
        ('qwen2.5-32b', 20736, 25.969, 13, 0.249, (20763, 7), 3712),
        ('qwen2.5-32b', 13824, 19.174, 27, 0.496, (13934, 5), 2728),
    ],
)
def test_settings_nearest_from_above(name, keep, billions, blocks, ratio, size, width):
    cfg = _MODELS[name]
    target = budget.persona_mask(cfg, keep).parameters
    assert round(target.unique / 1e9, 3) == billions
    among = budget.Range(4, cfg.num_layers - 2)

    def nearest(settings):
        found = budget.nearest(settings, target, 'x')
        assert found.parameters.blocks >= target.blocks
        return found.setting

    assert (
        nearest(budget.depth_settings(cfg, budget.Range(0, cfg.num_layers))) == blocks
    )
    assert nearest(budget.narrow_settings(cfg, among)) == ratio
    assert budget.narrow_block(cfg, ratio) == costs.BlockSize(*size)
    assert nearest(budget.slice_settings(cfg)) == width


def test_the_papers_table_11_on_the_command_line():
    """Parameters and prefill of Llama-3.2-3B, each counted as the paper did."""
    cfg = config.PruneConfig(
        base_model='config.json',
        print_budget=True,
        match='0.25',
        amounts='depth=4,slicegpt=2240,llm_pruner=0.22',
        spare_last=3,
    )
    model = _MODELS['llama-3.2-3b']
    rows = {
        (row['method'], row['setting']): row for row in budget_table.figures(cfg, model)
    }

    def shown(method, setting, way):
        row = rows[method, setting]
        return (
            round(row['parameters'][way] / 1e9, 3),
            round(row['prefill_flops'] / 1e12, 3),
        )

    assert shown('dense', 0, 'unique') == (3.213, 1.458)
    assert shown('persona mask', 6144, 'unique') == (2.684, 1.189)
    assert shown('depth', 4, 'unique') == (2.810, 1.250)
    assert shown('slicegpt', 2240, 'unique') == (3.026, 1.217)
    # The paper says 1.247.
    assert shown('llm_pruner', 0.22, 'untied') == (3.192, 1.245)
    text = budget_table.markdown(cfg, model)
    assert '| 3.026 B |' in text and '| 1.217 |' in text and '+2.39%' in text


def test_llm_pruners_own_count_of_llama_3_8b():
    """Of 8.030 B parameters 6.613 B are left at a quarter of blocks 4 to 29."""
    cfg = _MODELS['llama-3.1-8b']
    found = budget.narrow(cfg, 0.25, budget.Range(4, 30))
    whole = costs.parameters(cfg, costs.uniform(cfg))
    assert round(whole.unique / 1e9, 3) == 8.030
    assert round(found.parameters.unique / 1e9, 3) == 6.613


def test_what_cannot_be_is_refused():
    cfg = _MODELS['llama-3.2-3b']
    with pytest.raises(errors.InputError, match='lower --spare_first'):
        budget.Range.sparing(cfg, 20, 8, 'depth')
    target = budget.persona_mask(cfg, cfg.d_ff).parameters
    with pytest.raises(errors.InputError, match='no setting that leaves'):
        budget.nearest([budget.depth(cfg, 1)], target, 'depth')
    small = dataclasses.replace(cfg, num_layers=2)
    assert [x.setting for x in budget.depth_settings(small, budget.Range(0, 2))] == [
        0,
        1,
    ]
