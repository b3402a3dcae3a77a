"""bench generate and bench infer: both sides answer alike, figures belong together."""

import json

import numpy as np
import pytest

from ppjax import bench, export
from ppjax.base import errors
from ppjax.benchmarking import config
from ppjax.exporting import config as export_config
from ppjax.exporting.gguf import llama_cpp
from ppjax.masking import pmask
from ppjax.models import base_model

_LENGTH, _TOKENS, _ROUNDS = 9, 5, 2


def _run(what, model, path, **settings):
    cfg = config.BenchConfig(
        base_model=str(model),
        prompt_length=_LENGTH,
        answer_length=_TOKENS,
        rounds=_ROUNDS,
        result=str(path),
        **settings,
    )
    assert bench.main(cfg, what) == 0
    return json.loads(path.read_text('utf-8'))


@pytest.fixture(scope='module')
def generated(chatty_model, tmp_path_factory):
    path = tmp_path_factory.mktemp('bench') / 'generate.json'
    return _run('generate', chatty_model, path, batches='1,3')


def test_answers_are_pytorchs(generated):
    assert list(generated['batches']) == ['1', '3']
    for found in generated['batches'].values():
        assert found['same_answers'] == 1


def test_rates_are_of_all_rows(generated):
    for size, found in generated['batches'].items():
        for side in ('ppjax', 'pytorch'):
            own = found[side]
            spreads = own['prefill_seconds'], own['decode_seconds']
            for spread in spreads:
                assert 0 < spread['min'] <= spread['median'] <= spread['max']
            prefill, decode = (spread['median'] for spread in spreads)
            assert own['prefill_tokens_per_s'] == pytest.approx(
                int(size) * _LENGTH / prefill
            )
            assert own['decode_tokens_per_s'] == pytest.approx(
                int(size) * (_TOKENS - 1) / decode
            )
            assert own['seconds'] == pytest.approx(prefill + decode)
        assert generated['ratio_to_reference'][size] == pytest.approx(
            found['pytorch']['seconds'] / found['ppjax']['seconds']
        )
    assert {'settings', 'versions'} <= set(generated)


@pytest.fixture(scope='module')
def mask_file(chatty_model, tmp_path_factory):
    base = base_model.open_base_model(str(chatty_model))
    layers, d_ff = base.config.num_layers, base.config.d_ff
    rng = np.random.default_rng(0)
    mask = np.zeros((layers, d_ff), bool)
    for row in mask:
        row[rng.permutation(d_ff)[:30]] = True
    path = tmp_path_factory.mktemp('mask') / 'x.pmask'
    pmask.save(
        path,
        pmask.PersonaMask(
            mask=mask,
            base_model=str(chatty_model),
            base_fingerprint=base.fingerprint(),
            persona_sha256='',
            system_prompt='',
        ),
    )
    return path


@pytest.mark.parametrize('given', [True, False])
def test_pruned_models_answer_alike_in_both(chatty_model, mask_file, tmp_path, given):
    found = _run(
        'infer',
        chatty_model,
        tmp_path / 'infer.json',
        batch_size=2,
        **({'mask': str(mask_file)} if given else {'sparsity': 0.5}),
    )
    assert found['same_answers'] == {'dense': 1, 'pruned': 1}
    for runtime in ('ppjax', 'pytorch'):
        dense, pruned = (
            found[f'{runtime}_{name}']['decode_tokens_per_s']
            for name in ('dense', 'pruned')
        )
        assert found['speedup'][runtime]['decode'] == pytest.approx(pruned / dense)
    for name in ('dense', 'pruned'):
        assert found['ratio_to_reference'][name] == pytest.approx(
            found[f'pytorch_{name}']['seconds'] / found[f'ppjax_{name}']['seconds']
        )


@pytest.mark.skipif(not llama_cpp.is_installed(), reason='llama.cpp is not there')
def test_beside_llama_cpp(chatty_model, tmp_path):
    export.main(
        export_config.ExportConfig(
            model=str(chatty_model), gguf='f32', output_dir=str(tmp_path)
        )
    )
    [file] = tmp_path.glob('gguf/*.gguf')
    beside = {'files': str(file), 'reference': 'llama.cpp', 'batches': '1,3'}
    found = _run('generate', chatty_model, tmp_path / 'found.json', **beside)
    for size, own in found['batches'].items():
        assert set(own) == {'ppjax', 'llama.cpp', 'ratios', 'same_answers'}
        # Which prompts llama.cpp takes together is chance, and so is their rounding.
        assert own['same_answers'] == 1 if size == '1' else own['same_answers'] > 0.6
        theirs = own['llama.cpp']
        assert theirs['prefill_tokens_per_s'] == pytest.approx(
            int(size) * _LENGTH / theirs['prefill_seconds']['median']
        )
        assert found['ratio_to_reference'][size] == pytest.approx(
            theirs['seconds'] / own['ppjax']['seconds']
        )


def test_llama_cpp_needs_a_file(chatty_model):
    cfg = config.BenchConfig(base_model=str(chatty_model), reference='llama.cpp')
    with pytest.raises(errors.InputError, match='with --files=FILE'):
        bench.main(cfg, 'generate')
    with pytest.raises(errors.InputError, match='is for generate'):
        bench.main(cfg, 'costs')


def test_what_does_not_fit_is_refused(chatty_model):
    cfg = config.BenchConfig(base_model=str(chatty_model), prompt_length=100_000)
    for what in ('generate', 'infer'):
        with pytest.raises(errors.InputError, match='--prompt_length=100000 and'):
            bench.main(cfg, what)


@pytest.mark.parametrize('batches', ['', '0', '1,x'])
def test_sizes_of_batches_must_be_numbers(chatty_model, batches):
    cfg = config.BenchConfig(base_model=str(chatty_model), batches=batches)
    with pytest.raises(errors.InputError, match='--batches must be numbers'):
        bench.main(cfg, 'generate')


def test_an_answer_of_one_token_has_nothing_to_decode():
    with pytest.raises(errors.InputError, match='--answer_length must be at least 2'):
        config.BenchConfig(answer_length=1)
