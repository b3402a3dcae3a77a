"""What is minimised: cross-entropy, divergence from the dense model, their sum."""

import jax
import numpy as np
import pytest

from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.masking import topk
from ppjax.models import masks as masks_lib

_KEEP = 37


@pytest.fixture(scope='module')
def setting(tiny_models, make_examples):
    tiny = tiny_models('qwen2-tied')
    examples = make_examples(5, prefix=4, seed=3)
    prefix = packing.common_prefix(examples)
    shape = packing.plan_shape(examples, [np.arange(5)], prefix=prefix)
    rows = packing.pack(examples, range(5), shape).first()
    mask = topk.topk_mask(jax.random.normal(jax.random.key(2), (3, 52)), _KEEP)
    return tiny, examples, shape, rows, mask


def _losses(setting, objective, mask):
    tiny, _, shape, rows, _ = setting
    found = jax.jit(
        lambda model, mask: loss_lib.answer_losses(
            model,
            masks_lib.Masks(mask),
            rows,
            shape,
            remat='none',
            objective=objective,
        )
    )(tiny.decoder, mask)
    return np.asarray(found)[np.asarray(rows.weights) > 0]


def test_divergence_is_that_of_transformers_logits(setting):
    tiny, examples, _, rows, mask = setting
    pruned = tiny.pruned_hf(np.asarray(mask) > 0)
    real = np.asarray(rows.weights)[0] > 0
    owners, targets = (np.asarray(x)[0][real] for x in (rows.owners, rows.targets))
    want = np.empty(len(owners))
    for number, example in enumerate(examples):
        tokens = example.tokens[None]
        dense, after = (
            jax.nn.log_softmax(logits[0, example.answer_start - 1 : -1])
            for logits in (tiny.hf_logits(tokens), _logits(pruned, tokens))
        )
        own = owners == number
        np.testing.assert_array_equal(
            targets[own], example.tokens[example.answer_start :]
        )
        want[own] = np.sum(np.exp(dense) * (dense - after), axis=-1)
    got = _losses(setting, 'kl', mask)
    assert want.max() > 0.01
    np.testing.assert_allclose(got, want, atol=1e-5)


def _logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def test_the_dense_model_does_not_diverge_from_itself(setting):
    np.testing.assert_allclose(_losses(setting, 'kl', None), 0, atol=1e-5)


def test_the_sum_is_the_sum(setting):
    mask = setting[-1]
    np.testing.assert_allclose(
        _losses(setting, 'ce+kl', mask),
        _losses(setting, 'ce', mask) + _losses(setting, 'kl', mask),
        rtol=1e-5,
    )
