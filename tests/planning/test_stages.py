"""What a whole persona takes, at rates that are stated."""

import dataclasses
import json

import pytest

from ppjax import plan
from ppjax.masking import topk
from ppjax.planning import chips, config, stages, step_shape, useful_flops

_CHIP = chips.Chip('chip', None, 1e12)


@pytest.fixture(scope='module')
def model(tiny_models):
    return tiny_models('qwen2').base.config


def _config(**changes):
    values = {
        'base_model': 'config.json',
        'price_per_hour': 3.0,
        'batch_size': 4,
        'prompt_length': 32,
        'answer_length': 16,
        'queries': 30,
        'references': 2,
        'examples': 10,
        'steps': 5,
        'recovery_steps': 3,
        'utilisation': 0.5,
        'rewrite_tokens_per_s': 80.0,
    }
    return config.PlanConfig(**(values | changes))


def test_minutes_and_price_follow_from_the_rates(model):
    cfg = _config()
    found = stages.figures(cfg, model, _CHIP, 2, 1e12)
    mask = found['stages']['mask']
    # 5 steps of 1e12 FLOPs at half of 1e12 a second on each of two chips.
    assert mask['minutes'] == pytest.approx(5 / 60)
    assert mask['price'] == pytest.approx(10 / 3600 * 3.0)
    rewriting = found['stages']['rewriting']
    assert rewriting['generated_tokens'] == 160
    generated = 160 / 80.0 / 2 / 60
    assert rewriting['minutes'] == pytest.approx(
        generated + rewriting['flops'] / 0.5e12 / 2 / 60
    )
    assert found['minutes'] == pytest.approx(
        sum(stage['minutes'] for stage in found['stages'].values())
    )
    assert found['price'] == pytest.approx(found['minutes'] / 60 * 2 * 3.0)
    assert found['unknown'] == []


def test_flops_of_the_stages(model):
    found = stages.figures(_config(), model, _CHIP, 1, 1e12)['stages']
    own = [step_shape.QUESTION]

    def forward(count):
        return useful_flops.forward(model, prefix=32, own=own * count, answers=0)

    # The persona and two references, each of which runs its prefix once.
    assert found['scores']['flops'] == 3 * forward(30)
    assert forward(30) < 30 * forward(1)
    keep = topk.keep_size(model.d_ff, 0.5, 1)
    pruned = dataclasses.replace(model, d_ff=keep)
    step = useful_flops.forward(pruned, prefix=32, own=[32] * 4, answers=64)
    assert found['recovery']['flops'] == 3 * 3 * step
    tokens = 32 + 10 * 32
    both = sum(
        useful_flops.forward(one, prefix=32, own=[32] * 10, answers=0)
        for one in (model, pruned)
    )
    fits = model.num_layers * (
        2 * tokens * keep * (keep + model.d_model)
        + keep**3 / 3
        + 2 * keep**2 * model.d_model
    )
    assert found['ridge']['flops'] == pytest.approx(both + fits)
    none = stages.figures(_config(recovery_steps=0), model, _CHIP, 1, 1e12)
    assert none['stages']['recovery']['minutes'] == 0


def test_what_is_not_known_is_left_out_and_said(model):
    cfg = _config(rewrite_tokens_per_s=None)
    found = stages.figures(cfg, model, _CHIP, 1, 1e12)
    assert found['unknown'] == ['rewriting']
    assert found['stages']['rewriting']['price'] is None
    shown = stages.text(found)
    assert '             rewriting: not known: a rate that it takes is not' in shown
    assert shown[-1].endswith(', without rewriting')
    # Of a CPU there is no peak.
    unknown = stages.figures(cfg, model, chips.Chip('cpu', None, None), 1, 1e12)
    assert len(unknown['unknown']) == 5
    assert unknown['minutes'] == 0


def test_plan_says_them(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chips, 'of_device', lambda device: _CHIP)
    file = tmp_path / 'plan.json'
    changes = {'base_model': str(tiny_models('qwen2').path), 'result': str(file)}
    assert plan.main(_config(mesh='data:2,fsdp:4', **changes)) == 0
    found = json.loads(file.read_text())
    shown = capsys.readouterr().out
    mask = found['persona']['stages']['mask']
    assert mask['minutes'] == pytest.approx(found['hours'] * 60)
    assert f'mask: {mask["minutes"]:.1f} min, {mask["price"]:.2f}' in shown
    assert f'all: {found["persona"]["minutes"]:.1f} min' in shown
