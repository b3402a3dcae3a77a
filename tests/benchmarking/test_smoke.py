"""The other benches on a tiny model: they run, and their JSON holds together."""

import json

import pytest

from ppjax import bench, demo
from ppjax.benchmarking import config


def _run(what, model, path, **settings):
    cfg = config.BenchConfig(base_model=str(model), result=str(path), **settings)
    assert bench.main(cfg, what) == 0
    found = json.loads(path.read_text('utf-8'))
    assert found['settings']['base_model'] == str(model)
    assert found['versions']['jax']
    return found


def test_scoring(chatty_model, tmp_path):
    found = _run('scoring', chatty_model, tmp_path / 'x.json', instructions='demo:6')
    assert (found['queries'], found['personas']) == (6, 10)
    assert found['ratio_to_reference'] == pytest.approx(
        found['pytorch_seconds'] / found['ppjax_seconds']
    )
    assert found['eq2']['max_difference'] < 1e-5
    assert found['eq2']['same_top_40_percent']


def test_rewriting(chatty_model, tmp_path):
    found = _run(
        'rewriting',
        chatty_model,
        tmp_path / 'x.json',
        instructions='demo:3',
        max_tokens=5,
    )
    assert found['prompts'] == 3
    for batch in found['batches'].values():
        assert batch['differing'] == []
        assert batch['ratio_to_reference'] == pytest.approx(
            found['pytorch_seconds'] / batch['ppjax_seconds']
        )


def test_benchmarks(chatty_model, piqa_file, tmp_path):
    pytest.importorskip('lm_eval', reason='the reference is lm-evaluation-harness')
    found = _run('benchmarks', chatty_model, tmp_path / 'x.json', piqa=str(piqa_file))
    [task] = (found[name] for name in found if name not in ('settings', 'versions'))
    assert task['same_prompts']
    assert task['other_predictions'] == 0
    assert task['acc'] == task['harness_acc']
    assert task['ratio_to_reference'] == pytest.approx(
        task['harness_seconds'] / task['ppjax_seconds']
    )


def test_personas(chatty_model, tmp_path):
    names = list(demo.personas())[:1]
    found = _run(
        'personas',
        chatty_model,
        tmp_path / 'x.json',
        names=','.join(names),
        steps=2,
        batch_size=2,
        align=4,
        output_dir=str(tmp_path / 'runs'),
    )
    assert found['different_mask_bits'] == dict.fromkeys(names, 0)
    alone = sum(found['alone'][name]['seconds'] for name in names)
    assert found['ratio_to_reference']['seconds'] == pytest.approx(
        found['together']['seconds'] / alone
    )
