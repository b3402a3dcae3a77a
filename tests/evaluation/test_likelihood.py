"""Persona likelihood against transformers in float64, one conversation at a time."""

from collections.abc import Sequence
import copy

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax.data import chat
from ppjax.evaluation import bootstrap, likelihood
from ppjax.learning import heldout
from ppjax.masking import apply
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib

_KEEP = 26


@pytest.fixture(scope='module')
def examples(make_examples) -> list[chat.Example]:
    return make_examples(40, prefix=9, longest=16)


@pytest.fixture(scope='module')
def mask(tiny_models) -> np.ndarray:
    cfg = tiny_models('llama').config
    rng = np.random.default_rng(3)
    found = np.zeros((cfg.num_layers, cfg.d_ff), bool)
    for row in found:
        row[rng.permutation(cfg.d_ff)[:_KEEP]] = True
    return found


def _loaded(
    base: base_model.BaseModel, mask: np.ndarray | None = None
) -> apply.LoadedModel:
    decoder = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    return apply.LoadedModel(base, decoder, masks_lib.Masks(mask), None, '')


@pytest.fixture(scope='module')
def models(tiny_models, mask, tmp_path_factory) -> dict[str, apply.LoadedModel]:
    """Dense, masked, exported, and one of another family and other embeddings."""
    tiny = tiny_models('llama')
    path = tmp_path_factory.mktemp('pruned')
    tiny.pruned_hf(mask).save_pretrained(path)
    return {
        'dense': _loaded(tiny.base),
        'masked': _loaded(tiny.base, mask),
        'pruned': _loaded(base_model.open_base_model(str(path))),
        'other': _loaded(tiny_models('qwen3').base),
    }


@pytest.fixture(scope='module')
def hf(tiny_models, mask) -> dict[str, transformers.PreTrainedModel]:
    tiny = tiny_models('llama')
    return {
        'dense': tiny.hf,
        'masked': tiny.pruned_hf(mask),
        'pruned': tiny.pruned_hf(mask),
        'other': tiny_models('qwen3').hf,
    }


def _measure(
    models, examples, batch_size: int = 8
) -> dict[str, likelihood.ModelLikelihood]:
    found = likelihood.measure(
        list(models.values()),
        examples,
        batch_size=batch_size,
        progress=lambda done, total: None,
    )
    return dict(zip(models, found, strict=True))


@pytest.fixture(scope='module')
def measured(models, examples) -> dict[str, likelihood.ModelLikelihood]:
    return _measure(models, examples)


def _log_probs(
    model: transformers.PreTrainedModel, examples: Sequence[chat.Example]
) -> list[torch.Tensor]:
    """float64 [answer tokens, V] of each conversation, run by itself."""
    model = copy.deepcopy(model).double()
    found = []
    for example in examples:
        with torch.no_grad():
            logits = model(torch.tensor(example.tokens[None].astype(np.int64))).logits
        before = slice(example.answer_start - 1, len(example.tokens) - 1)
        found.append(torch.log_softmax(logits[0, before], dim=-1))
    return found


@pytest.mark.parametrize('name', ['dense', 'masked', 'pruned', 'other'])
def test_figures_equal_those_of_full_logits(measured, hf, examples, name):
    dense, own = _log_probs(hf['dense'], examples), _log_probs(hf[name], examples)
    found = measured[name]
    for i, (p, q, example) in enumerate(zip(dense, own, examples, strict=True)):
        answer = torch.tensor(example.tokens[example.answer_start :].astype(np.int64))
        nll = -q[torch.arange(len(answer)), answer].sum()
        kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction='sum')
        same = (p.argmax(-1) == q.argmax(-1)).sum()
        assert found.nll[i] == pytest.approx(float(nll), abs=2e-4)
        assert found.kl[i] == pytest.approx(float(kl), abs=2e-4)
        assert found.agreement[i] == int(same)
        assert found.tokens[i] == len(answer)
    if name != 'dense':
        assert 0 < found.agreement.sum() < found.tokens.sum()
        assert found.kl.sum() > 1


def test_nll_is_that_of_pytorchs_cross_entropy(measured, hf, hf_answer_nll, examples):
    for name, found in measured.items():
        with torch.no_grad():
            want = hf_answer_nll(hf[name], examples)
        assert found.nll.sum() == pytest.approx(float(want.sum()), rel=1e-5)


def test_nll_is_that_of_training(measured, models, mask, examples):
    [ours] = heldout.HeldOut.of_personas([examples], batch_size=8)
    for name, kept in (('dense', None), ('masked', mask)):
        want = ours.measure(models[name].decoder, masks_lib.Masks(kept))
        np.testing.assert_allclose(measured[name].nll, want.nll, atol=1e-4)
        np.testing.assert_array_equal(measured[name].tokens, want.tokens)


def test_the_dense_model_differs_in_nothing_from_itself(measured):
    assert not measured['dense'].kl.any()
    np.testing.assert_array_equal(measured['dense'].agreement, measured['dense'].tokens)


def test_masked_and_exported_are_one_model(measured):
    for field in ('nll', 'kl', 'agreement', 'tokens'):
        np.testing.assert_allclose(
            getattr(measured['masked'], field),
            getattr(measured['pruned'], field),
            atol=2e-4,
            err_msg=field,
        )


# 40 in one batch have more answer tokens than are unembedded at a time.
@pytest.mark.parametrize('batch_size', [1, 5, 40])
def test_batches_do_not_matter(models, measured, examples, batch_size):
    few = {name: models[name] for name in ('dense', 'masked')}
    assert sum(example.num_answer_tokens for example in examples) > 256
    found = _measure(few, examples, batch_size)
    for name, own in found.items():
        for field in ('nll', 'kl', 'agreement'):
            np.testing.assert_allclose(
                getattr(own, field), getattr(measured[name], field), atol=2e-4
            )


def test_one_example_without_a_common_prefix(models, hf, examples):
    (one,) = _measure({'dense': models['dense']}, examples[:1]).values()
    (want,) = _log_probs(hf['dense'], examples[:1])
    answer = examples[0].tokens[examples[0].answer_start :].astype(np.int64)
    nll = -want[torch.arange(len(answer)), torch.tensor(answer)].sum()
    assert one.nll == pytest.approx([float(nll)], abs=1e-4)


def test_progress_ends_at_the_total(models, examples):
    seen = []
    likelihood.measure(
        [models['dense']],
        examples[:7],
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def _given(nll, kl=(0.0, 0.0, 0.0), agreement=(1, 1, 1)) -> likelihood.ModelLikelihood:
    return likelihood.ModelLikelihood(
        np.array(nll, float),
        np.array(kl, float),
        np.array(agreement, float),
        np.array([2, 4, 10]),
    )


def test_means_are_per_token_and_differences_paired():
    dense = _given([2.0, 2.0, 12.0], agreement=(2, 4, 10))
    pruned = _given([3.0, 4.0, 17.0], kl=(1.0, 1.0, 2.0), agreement=(1, 3, 4))
    found = likelihood.as_json(['dense', 'pruned'], [dense, pruned], ['a', 'b', 'c'])
    figures = found['models']['pruned']
    assert figures['nll']['mean'] == 24 / 16
    assert figures['nll_difference']['mean'] == 8 / 16
    assert figures['kl_to_dense']['mean'] == 4 / 16
    assert figures['agreement']['mean'] == 8 / 16
    # 1/2, 2/4 and 5/10 a token: whichever examples are drawn, it is one half.
    assert figures['nll_difference']['interval'] == (0.5, 0.5)
    low, high = figures['nll']['interval']
    assert 1.0 <= low < 1.5 < high <= 1.7
    assert 'nll_difference' not in found['models']['dense']
    assert found['examples'][1] == {
        'query_id': 'b',
        'answer_tokens': 4,
        'dense': {'nll': 2.0, 'kl': 0.0, 'agreement': 4},
        'pruned': {'nll': 4.0, 'kl': 1.0, 'agreement': 3},
    }


def test_models_are_compared_with_the_first_whatever_its_name():
    names = ['base', 'slicegpt', 'masked', 'pruned']
    given = [_given([2 + i, 2, 12]) for i in range(4)]
    found = likelihood.as_json(names, given, ['a', 'b', 'c'])['models']
    assert list(found) == names
    assert set(found['base']) == {'nll'}
    changes = [found[name]['nll_difference']['mean'] for name in names[1:]]
    assert changes == [1 / 16, 2 / 16, 3 / 16]


def test_a_model_alone_is_not_compared():
    found = likelihood.as_json(['pruned'], [_given([2, 2, 3])], ['a', 'b', 'c'])
    assert set(found['models']['pruned']) == {'nll'}


def test_intervals_are_fixed_and_cover_as_they_should():
    rng = np.random.default_rng(7)
    tokens = rng.integers(5, 60, 200)
    values = 1.5 * tokens + rng.normal(0, 0.4, 200) * tokens
    first = bootstrap.ratio_interval(values, tokens)
    assert first == bootstrap.ratio_interval(values, tokens)
    assert first != bootstrap.ratio_interval(values, tokens, seed=1)
    # The delta method's standard error of a ratio of sums.
    ratio = values.sum() / tokens.sum()
    error = np.sqrt(((values - ratio * tokens) ** 2).sum()) / tokens.sum()
    assert first == pytest.approx(
        (ratio - 1.96 * error, ratio + 1.96 * error), rel=5e-3
    )


@pytest.mark.parametrize('values, tokens', [([], []), ([1.0], [1, 2])])
def test_no_interval_of_nothing(values, tokens):
    with pytest.raises(ValueError, match='n at least 1'):
        bootstrap.ratio_interval(np.array(values), np.array(tokens))
