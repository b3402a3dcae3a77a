"""Every continuation scored as if it stood alone behind its context."""

import jax
import numpy as np
import pytest

from ppjax.evaluation.multiple_choice import choice_scoring, choice_tokens
from ppjax.masking import topk
from ppjax.models import masks as masks_lib

_VOCAB = 97


def _choices(seed=0, shared=5):
    """Trees of one to four continuations behind contexts that begin alike."""
    rng = np.random.default_rng(seed)

    def some(most):
        return tuple(rng.integers(3, _VOCAB, rng.integers(1, most)).tolist())

    head = some(shared + 1) if shared else ()
    choices = []
    for number in range(12):
        context = (*head, 3 + number % 5, *some(15))
        for _ in range(1 + number % 4):
            choices.append(choice_tokens.Choice(context, some(2 + 3 * (number % 4))))
    return choices


def _brute(tiny, choices, mask=None):
    """By transformers, one choice at a time."""
    model = tiny.hf if mask is None else tiny.pruned_hf(mask)
    found = []
    for context, continuation in choices:
        tokens = np.array([[*context, *continuation]])
        logits = (
            tiny.hf_logits(tokens)
            if mask is None
            else type(tiny)(tiny.path, model, tiny.base, tiny.decoder).hf_logits(tokens)
        )
        logits = logits[0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = range(len(context) - 1, tokens.shape[1] - 1)
        found.append(sum(log_p[i, tokens[0, i + 1]] for i in at))
    return np.array(found)


def _ours(tiny, choices, mask=None, batch_tokens=256):
    found = np.full(len(choices), np.nan)
    for numbers, values in choice_scoring.log_likelihoods(
        tiny.decoder, masks_lib.Masks(mask), choices, batch_tokens=batch_tokens
    ):
        assert np.isnan(found[numbers]).all()
        found[numbers] = values
    assert not np.isnan(found).any()
    return found


def test_equals_one_choice_at_a_time(any_tiny):
    choices = _choices()
    got = _ours(any_tiny, choices)
    np.testing.assert_allclose(got, _brute(any_tiny, choices), atol=1e-4)


@pytest.mark.parametrize('shared', [0, 1, 30])
@pytest.mark.parametrize('batch_tokens', [1, 4096])
def test_whatever_is_shared_and_however_it_is_batched(
    tiny_models, shared, batch_tokens
):
    tiny = tiny_models('llama')
    choices = _choices(seed=shared + 1, shared=shared)
    got = _ours(tiny, choices, batch_tokens=batch_tokens)
    np.testing.assert_allclose(got, _brute(tiny, choices), atol=1e-4)


def test_under_a_mask_it_is_the_pruned_model(tiny_models):
    tiny = tiny_models('qwen2')
    cfg = tiny.config
    scores = jax.random.normal(jax.random.key(3), (cfg.num_layers, cfg.d_ff))
    mask = np.asarray(topk.topk_mask(scores, cfg.d_ff // 2))
    choices = _choices(seed=8)
    got = _ours(tiny, choices, mask)
    np.testing.assert_allclose(got, _brute(tiny, choices, mask > 0), atol=1e-4)
    assert np.abs(got - _brute(tiny, choices)).max() > 0.1


def test_equal_contexts_far_apart_are_one_tree(tiny_models, monkeypatch):
    tiny = tiny_models('llama')
    rows = []
    inner = choice_scoring._batch

    def seen(*args):
        batch = inner(*args)
        rows.append(int((batch.segments > 0).sum()))
        return batch

    monkeypatch.setattr(choice_scoring, '_batch', seen)
    one, two = (tuple(range(3, 43)), tuple(range(50, 70)))
    choices = [
        choice_tokens.Choice(context, (number, 7))
        for number in range(4)
        for context in (one, two)
    ]
    got = _ours(tiny, choices)
    # Two contexts, and the first token of each of the eight continuations.
    assert sum(rows) == 40 + 20 + 8
    np.testing.assert_allclose(got, _brute(tiny, choices), atol=1e-4)


def test_a_single_choice_of_one_token(tiny_models):
    tiny = tiny_models('llama')
    choices = [choice_tokens.Choice((5,), (6,))]
    np.testing.assert_allclose(_ours(tiny, choices), _brute(tiny, choices), atol=1e-4)


def test_few_shapes(tiny_models, monkeypatch):
    tiny = tiny_models('llama')
    shapes = []
    inner = choice_scoring._batch
    monkeypatch.setattr(
        choice_scoring,
        '_batch',
        lambda *args: (
            shapes.append((b := inner(*args)).targets.shape + b.tokens.shape) or b
        ),
    )
    rng = np.random.default_rng(4)
    choices = [
        choice_tokens.Choice(
            tuple(rng.integers(3, _VOCAB, 30).tolist()),
            tuple(rng.integers(3, _VOCAB, rng.integers(1, 60)).tolist()),
        )
        for _ in range(300)
    ]
    _ours(tiny, choices, batch_tokens=1024)
    assert len(shapes) > 8
    assert len(set(shapes)) == 1
