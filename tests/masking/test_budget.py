"""Layers of different widths under one budget: which, and as one padded mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from ppjax.base import errors
from ppjax.masking import budget, pmask, topk


def _greedy(scores, keep, multiple, floor):
    """Widths by taking the best unit of all, one after the other."""
    layers, channels = scores.shape
    least = max(1, -(-floor // multiple))
    units = [
        np.sort(row)[::-1][: channels // multiple * multiple].reshape(-1, multiple)
        for row in scores
    ]
    counts = [least] * layers
    for _ in range(layers * keep // multiple - sum(counts)):
        best = [
            own[count].mean() if count < len(own) else -np.inf
            for own, count in zip(units, counts, strict=True)
        ]
        counts[int(np.argmax(best))] += 1
    return np.array(counts) * multiple


@pytest.mark.parametrize('multiple, floor', [(1, 1), (4, 1), (4, 6), (8, 16), (5, 11)])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_widths_are_those_of_the_best_units(multiple, floor, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(rng.normal(0, 0.5, (5, 1)), 1, (5, 43)).astype(np.float32)
    own = budget.Budget(multiple, floor)
    for keep in (-(-20 // multiple) * multiple, 40):
        own.check(keep)
        found = np.asarray(jax.jit(own.widths, static_argnums=1)(scores, keep))
        np.testing.assert_array_equal(
            found[:, 0], _greedy(scores, keep, multiple, floor)
        )
        assert found.sum() == 5 * keep
        assert not (found % multiple).any() and found.min() >= floor
        assert found.max() > found.min() or keep == 40


def test_each_layer_keeps_its_best_and_gradients_pass_unchanged():
    scores = jax.random.normal(jax.random.key(0), (4, 32))
    scores = scores + jnp.arange(4.0)[:, None] / 2

    def mask(scores):
        return topk.hard_mask(scores, budget.Budget(2, 4).widths(scores, 12))

    found = np.asarray(mask(scores)).astype(bool)
    for row, kept in zip(np.asarray(scores), found, strict=True):
        assert row[kept].min() > row[~kept].max()
    assert (np.diff(found.sum(axis=1)) >= 0).all() and found.sum() == 48
    weights = jax.random.normal(jax.random.key(1), (4, 32))
    grad = jax.grad(lambda z: jnp.sum(mask(z) * weights))(scores)
    np.testing.assert_array_equal(grad, weights)
    # A row's own k, as `topk_mask` has it.
    for row, kept in zip(scores, found, strict=True):
        want = topk.topk_mask(row, int(kept.sum()))
        np.testing.assert_array_equal(kept, np.asarray(want).astype(bool))


def test_equal_scores_keep_their_sum():
    found = np.asarray(budget.Budget(4, 4).widths(jnp.zeros((3, 16)), 8))
    assert found.sum() == 24 and found.min() >= 4


def test_a_floor_above_the_mean_is_refused():
    with pytest.raises(errors.InputError, match='is 12 as a multiple of --align=4'):
        budget.Budget(4, 10).check(8)


def test_padding_makes_one_width_of_which_zeros_take_the_rest_out():
    rng = np.random.default_rng(3)
    mask = rng.random((4, 20)) < np.array([[0.2], [0.5], [0.9], [0.4]])
    for gains in (None, rng.normal(1, 0.1, mask.shape).astype(np.float16)):
        whole, values = budget.padded(mask, gains)
        most = mask.sum(axis=1).max()
        assert (whole.sum(axis=1) == most).all() and whole[mask].all()
        assert values.shape == (4, most) and values.dtype == np.float16
        scaled = np.zeros(mask.shape, np.float16)
        scaled[whole] = values.reshape(-1)
        want = mask.astype(np.float16) if gains is None else mask * gains
        np.testing.assert_array_equal(scaled, want)


def test_scores_are_moved_to_the_widths_that_are_wanted():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(5, 40)).astype(np.float32)
    widths = np.array([4, 12, 20, 8, 16])
    moved = budget.start_scores(scores, widths)
    np.testing.assert_array_equal((moved > 0).sum(axis=1), widths)
    found = budget.Budget(4, 4).widths(jnp.asarray(moved), 12)
    assert np.abs(np.asarray(found)[:, 0] - widths).max() <= 4


def _of_widths(gains):
    rng = np.random.default_rng(5)
    kept = rng.random((3, 20)) < np.array([[0.3], [0.6], [0.9]])
    values = rng.normal(1, 0.1, kept.shape).astype(np.float16) if gains else None
    return pmask.PersonaMask.of_widths(
        kept, values, base_model='b', base_fingerprint='f', persona_sha256='p'
    )


@pytest.mark.parametrize('gains', [False, True])
def test_mask_files_keep_widths(tmp_path, gains):
    mask, file = _of_widths(gains), tmp_path / 'a.pmask'
    pmask.save(file, mask)
    found = pmask.load(file)
    for name in ('mask', 'kept', 'gains'):
        np.testing.assert_array_equal(getattr(found, name), getattr(mask, name))
    assert found.total == mask.kept.sum() and found.has_gains == gains
    np.testing.assert_array_equal(found.scaled() != 0, mask.kept)
    with safetensors.safe_open(file, framework='np') as handle:
        assert handle.metadata()['format'] == 'ppjax.pmask.v2'
        assert set(handle.keys()) == ({'mask', 'gains'} if gains else {'mask'})
    data = file.read_bytes()
    widths = ','.join(map(str, mask.kept.sum(axis=1))).encode()
    assert widths in data
    file.write_bytes(data.replace(widths, widths[:-1] + b'0'))
    with pytest.raises(errors.InputError, match=r'a\.pmask is damaged'):
        pmask.load(file)
