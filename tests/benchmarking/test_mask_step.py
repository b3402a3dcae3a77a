"""bench mask_step: both sides learn the same, and what is said of it is true."""

import json

import numpy as np
import pytest
import torch

from ppjax import bench
from ppjax.base import errors
from ppjax.benchmarking import config, mask_step, matrix_peak, torch_mask_step
from ppjax.models import base_model
from ppjax.models import config as config_lib
from ppjax.planning import useful_flops

_STEPS, _BATCH = 3, 4


def _run(model, path, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_peak, 'SIZE', 128)
        cfg = config.BenchConfig(
            base_model=str(model),
            calibration='demo:{persona}',
            steps=_STEPS,
            batch_size=_BATCH,
            result=str(path),
            **settings,
        )
        assert bench.main(cfg, 'mask_step') == 0
    return json.loads(path.read_text('utf-8'))


@pytest.fixture(scope='module')
def result(chatty_model, tmp_path_factory):
    return _run(chatty_model, tmp_path_factory.mktemp('bench') / 'mask_step.json')


def test_pytorch_learns_the_same_from_the_same_batches(result):
    # From the second step on the update, and so the mask, is in the loss too.
    ours, padded = (
        np.array(result['losses'][name]) for name in ('ppjax', 'pytorch_padded')
    )
    assert len(ours) == _STEPS
    np.testing.assert_allclose(ours, padded, atol=1e-4)
    assert len(set(ours.tolist())) == _STEPS


def test_figures_belong_together(result):
    seconds = {
        name: sum(result[name]['seconds'])
        for name in ('ppjax', 'pytorch_padded', 'pytorch_sorted')
    }
    reference = result['reference']
    assert seconds[reference] == min(
        seconds['pytorch_padded'], seconds['pytorch_sorted']
    )
    assert result['ratio_to_reference'] == pytest.approx(
        seconds[reference] / seconds['ppjax']
    )
    assert result['ppjax']['examples_per_s'] == pytest.approx(
        _STEPS * _BATCH / seconds['ppjax']
    )
    spread = result['ppjax']['step_seconds']
    assert 0 < spread['min'] <= spread['median'] <= spread['max']
    rate = result['useful_flops_per_step'] * _STEPS / seconds['ppjax']
    assert result['utilisation'] == pytest.approx(
        rate / result['matrix_peak_flops_per_s']
    )
    tokens = result['tokens_per_step']
    assert tokens['pytorch_sorted'] <= tokens['pytorch_padded']
    assert {'settings', 'versions'} <= set(result)


def test_rows_can_take_another_persona(chatty_model, tmp_path, result):
    text = 'Odd Nils mends nets and answers in riddles. ' * 9
    found = _run(chatty_model, tmp_path / 'x.json', persona=text)
    longer = found['prefix_tokens'] - result['prefix_tokens']
    tokens = base_model.open_base_model(str(chatty_model)).tokenizer()
    # The ferryman's own text is left out.
    assert longer < len(tokens.encode(text))
    assert found['prefix_tokens'] > len(tokens.encode(text))
    losses = found['losses']
    np.testing.assert_allclose(losses['ppjax'], losses['pytorch_padded'], atol=1e-4)


def test_compiled_pytorch_is_a_row_of_its_own(chatty_model, tmp_path, monkeypatch):
    # Compiling itself takes a minute and a C++ compiler.
    compiled = []

    def stand_in(model, *, dynamic):
        compiled.append(dynamic)
        return model

    monkeypatch.setattr(torch, 'compile', stand_in)
    found = _run(chatty_model, tmp_path / 'x.json', torch_compile=True)
    assert compiled == [True]
    losses = found['losses']
    assert losses['pytorch_sorted_compiled'] == losses['pytorch_sorted']
    assert len(found['pytorch_sorted_compiled']['seconds']) == _STEPS


def test_why_compiling_failed_is_told(chatty_model, tmp_path, monkeypatch):
    def fail(model, *, dynamic):
        def call(**inputs):
            raise RuntimeError('No C++ compiler.\nSet CXX.')

        return call

    monkeypatch.setattr(torch, 'compile', fail)
    found = _run(chatty_model, tmp_path / 'x.json', torch_compile=True)
    assert found['pytorch_sorted_compiled'] == {'failed': 'No C++ compiler.'}
    assert found['reference'] in ('pytorch_padded', 'pytorch_sorted')


def test_sorted_batches_hold_the_same_examples(make_examples):
    examples = make_examples(30, prefix=5)
    own, by_length = mask_step._batches(examples, 3, 8)
    assert sorted(np.concatenate(own)) == sorted(np.concatenate(by_length))
    lengths = [[len(examples[item].tokens) for item in batch] for batch in by_length]
    assert np.concatenate(lengths).tolist() == sorted(np.concatenate(lengths))


def test_padded_batch_marks_answers_alone(make_examples):
    examples = make_examples(3, prefix=5)
    batch = torch_mask_step.padded(examples, [2, 0])
    for row, item in enumerate([2, 0]):
        example = examples[item]
        labels = batch['labels'][row]
        assert (labels >= 0).sum() == example.num_answer_tokens
        assert batch['attention_mask'][row].sum() == len(example.tokens)
        np.testing.assert_array_equal(
            labels[labels >= 0], example.tokens[example.answer_start :]
        )


def test_useful_flops_are_those_of_every_product(tiny_models):
    cfg: config_lib.ModelConfig = tiny_models('llama').config
    d, f, v = cfg.d_model, cfg.d_ff, cfg.vocab_size
    q, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    prefix, own, answers = 5, [3, 7], 6
    total = 0
    # Who sees whom, token by token.
    seen = list(range(1, prefix + 1))
    seen += [prefix + i + 1 for length in own for i in range(length)]
    for layer in range(cfg.num_layers):
        for keys in seen:
            products = [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]
            forward = sum(2 * rows * columns for rows, columns in products)
            attention = 2 * 2 * q * keys
            # Below the first mask nothing has a gradient.
            backward = 2 * f * d if layer == 0 else forward + 2 * attention
            total += forward + attention + backward
    total += answers * 2 * (2 * d * v)
    assert useful_flops.mask_step(
        cfg, prefix=prefix, own=own, answers=answers
    ) == pytest.approx(total)


def test_too_few_rows_for_a_step_are_refused(chatty_model):
    cfg = config.BenchConfig(base_model=str(chatty_model), batch_size=10_000)
    with pytest.raises(errors.InputError, match='--batch_size=10000, and demo:'):
        bench.main(cfg, 'mask_step')


@pytest.mark.parametrize('flag', ['steps', 'batch_size'])
def test_no_step_and_no_example_are_refused(flag):
    with pytest.raises(errors.InputError, match=f'--{flag} must be at least 1, got 0'):
        config.BenchConfig(**{flag: 0})
