"""Draws against plain NumPy, one row at a time."""

import jax
import numpy as np
import pytest

from ppjax.models import generation
from ppjax.serving import choosing, programs

_VOCAB = 50


def _settings(width, **given):
    settings = programs.settings_of_nobody(width, _VOCAB)
    for name, value in given.items():
        field = getattr(settings, name)
        field[:] = value
    settings.keys[:] = [choosing.key_of(3, choice) for choice in range(width)]
    return settings


def _history(width, prompted=(), counts=None):
    said = np.zeros((width, _VOCAB), bool)
    said[:, list(prompted)] = True
    count = np.zeros((width, _VOCAB), np.int32)
    for token, times in (counts or {}).items():
        count[:, token] = times
    return choosing.History(said, count)


def _logits(width, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (width, _VOCAB)).astype(np.float32)


_choose = jax.jit(choosing.choose, static_argnames='candidates')


def _drawn(count, logits, history=None, candidates=_VOCAB, **given):
    """How often each token is drawn from one row of logits, in `count` draws."""
    settings = _settings(count, temperature=1.0, **given)
    many = np.repeat(logits[None], count, axis=0)
    chosen = _choose(many, settings, history or _history(count), candidates=candidates)
    assert np.asarray(chosen.enough).all()
    return np.bincount(np.asarray(chosen.tokens), minlength=_VOCAB)


def _kept(logits, *, top_k=None, top_p=1.0, min_p=0.0):
    """Tokens that may be drawn, in the order of the settings."""
    share = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind='stable')
    order = [i for i in order if share[i] >= min_p][: top_k or _VOCAB]
    share = share[order] / share[order].sum()
    before = np.cumsum(share) - share
    return {int(i) for i, mass in zip(order, before, strict=True) if mass < top_p}


@pytest.mark.parametrize(
    'given',
    [
        {'top_k': 5},
        {'top_p': 0.8},
        {'min_p': 0.1},
        {'top_k': 9, 'top_p': 0.7},
        {'top_k': 20, 'top_p': 0.95, 'min_p': 0.03},
        {'top_p': 0.1},
    ],
)
def test_only_what_is_kept_is_drawn_and_all_of_it(given):
    logits = _logits(1, seed=4)[0] / 2
    want = _kept(logits, **given)
    counts = _drawn(4000, logits, **given)
    assert set(np.flatnonzero(counts)) <= want
    share = np.exp(logits) * [i in want for i in range(_VOCAB)]
    share /= share.sum()
    np.testing.assert_allclose(counts / 4000, share, atol=4 * 0.5 / 4000**0.5)
    assert set(np.flatnonzero(share > 0.01)) <= set(np.flatnonzero(counts))


def test_draws_equal_those_of_generation():
    logits = _logits(200)
    settings = _settings(200, temperature=0.7)
    settings.slots[:] = np.arange(200)
    found = _choose(logits, settings, _history(200), candidates=8).tokens
    keys = [
        jax.random.fold_in(jax.random.fold_in(jax.random.key(3), n), n)
        for n in range(200)
    ]
    want = generation.draw(
        logits, jax.numpy.stack(keys), generation.Sampling(temperature=0.7)
    )
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize('given', [{'top_k': 5}, {'top_p': 0.8}, {'min_p': 0.1}])
def test_fewer_candidates_change_no_draw_that_they_decide(given):
    logits = _logits(300, seed=2)
    settings = _settings(300, temperature=1.3, xtc_probability=0.5, **given)
    settings.xtc_threshold[:] = 0.1
    few, every = (
        _choose(logits, settings, _history(300), candidates=count)
        for count in (10, _VOCAB)
    )
    enough = np.asarray(few.enough)
    assert np.asarray(every.enough).all()
    assert enough.mean() > 0.2
    if 'top_k' in given:
        assert enough.all()
    np.testing.assert_array_equal(
        np.asarray(few.tokens)[enough], np.asarray(every.tokens)[enough]
    )


def test_candidates_that_do_not_decide_say_so():
    logits = np.zeros((1, _VOCAB), np.float32)
    settings = _settings(1, temperature=1.0, top_p=0.9)
    few = _choose(logits, settings, _history(1), candidates=10)
    assert not np.asarray(few.enough).any()


def test_temperature_zero_takes_the_likeliest_whatever_else():
    logits = _logits(20)
    settings = _settings(20, temperature=0.0, top_k=3, top_p=0.5, xtc_probability=1.0)
    found = _choose(logits, settings, _history(20), candidates=10)
    np.testing.assert_array_equal(found.tokens, logits.argmax(axis=1))
    assert np.asarray(found.enough).all()


def test_tiny_temperatures_are_greedy_and_large_ones_flat():
    logits = _logits(1)[0]
    assert _drawn(50, logits)[logits.argmax()] < 50
    settings = _settings(50, temperature=1e-30)
    chosen = _choose(
        np.repeat(logits[None], 50, axis=0), settings, _history(50), candidates=10
    )
    assert (np.asarray(chosen.tokens) == logits.argmax()).all()


def test_penalties():
    logits = _logits(1, seed=8)
    history = _history(1, prompted=[4, 5], counts={5: 3, 6: 1})
    settings = _settings(
        1, temperature=0.0, repetition=1.5, frequency=0.25, presence=0.5
    )
    settings.extra_ids[0, :3] = [7, 8, _VOCAB]
    settings.extra_values[0, :3] = [2.0, -np.inf, 5.0]
    want = logits[0].copy()
    want[7] += 2
    want[8] = -np.inf
    for token in (4, 5, 6):
        want[token] = want[token] / 1.5 if want[token] > 0 else want[token] * 1.5
    want[5] -= 0.25 * 3 + 0.5
    want[6] -= 0.25 + 0.5
    found = jax.jit(choosing._penalised)(logits, settings, history)
    np.testing.assert_allclose(np.asarray(found)[0], want, rtol=1e-6)


def test_xtc_leaves_the_least_likely_of_the_likely():
    logits = np.full(_VOCAB, -20.0, np.float32)
    logits[[3, 4, 5, 6]] = np.log([0.5, 0.3, 0.15, 0.05])
    every = _drawn(500, logits, xtc_probability=1.0, xtc_threshold=0.1)
    # 3 and 4 are out; 5 and what is less likely stays.
    assert set(np.flatnonzero(every)) == {5, 6}
    half = _drawn(2000, logits, xtc_probability=0.5, xtc_threshold=0.1)
    assert 0.35 < (half[3] + half[4]) / 2000 < 0.45
    # One alone is not too many.
    assert _drawn(200, logits, xtc_probability=1.0, xtc_threshold=0.4)[3] > 60


def test_logprobs_ignore_settings():
    logits = _logits(6)
    settings = _settings(6, temperature=0.2, repetition=2.0, top_k=2)
    found = _choose(logits, settings, _history(6, prompted=[1, 2]), candidates=10)
    want = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(6)
    np.testing.assert_allclose(found.logprobs, want[rows, found.tokens], atol=1e-5)
    np.testing.assert_array_equal(
        found.top_ids, np.argsort(-logits, axis=1, kind='stable')[:, :20]
    )
    np.testing.assert_allclose(found.top_logprobs, -np.sort(-want)[:, :20], atol=1e-5)


def test_large_seeds_make_other_keys():
    seeds = (0, 1, 2**31, 2**32 + 5, 2**63 - 1)
    assert len({choosing.key_of(seed, 0).tobytes() for seed in seeds}) == len(seeds)
