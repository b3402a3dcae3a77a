"""Ranks in mask files: one order of the channels, every sparsity of a range."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

from ppjax.base import errors
from ppjax.masking import gains as gains_lib
from ppjax.masking import pmask, ranking, topk

_KEEPS = ranking.Keeps(8, 20, 4)


def _ranking(layers=3, d_ff=21, keeps=_KEEPS, *, gains=True, seed=0):
    rng = np.random.default_rng(seed)
    ranks = np.argsort(rng.random((layers, d_ff)), axis=-1).astype(np.uint16)
    drawn = rng.normal(1, 0.3, ranks.shape).astype(gains_lib.DTYPE)
    return ranking.Ranking(ranks, keeps, drawn if gains else None)


def _persona_mask(ranks, keep=12):
    mask = ranks.ranks < keep
    return pmask.PersonaMask(
        mask, 'm', 'ab' * 32, '0' * 64, gains=ranks.gains_of(mask), ranking=ranks
    )


@hypothesis.given(layers=st.integers(1, 4), d_ff=st.integers(1, 300), data=st.data())
def test_round_trip_at_ceil_log2_bits_a_channel(tmp_path_factory, layers, d_ff, data):
    keep = data.draw(st.integers(1, d_ff))
    gains = data.draw(st.booleans())
    before = _ranking(layers, d_ff, ranking.Keeps(1, d_ff, 1), gains=gains, seed=d_ff)
    path = tmp_path_factory.getbasetemp() / 'ranked.pmask'
    pmask.save(path, _persona_mask(before, keep))
    after = pmask.load(path)
    assert after.keep == keep
    assert after.ranking.keeps == before.keeps
    np.testing.assert_array_equal(after.ranking.ranks, before.ranks)
    assert after.ranking.ranks.dtype == np.uint16
    np.testing.assert_array_equal(after.mask, before.ranks < keep)
    assert (after.gains is not None) == gains
    if gains:
        np.testing.assert_array_equal(after.ranking.gains, before.gains)
        np.testing.assert_array_equal(after.gains.ravel(), before.gains[after.mask])
    with safetensors.safe_open(path, framework='np') as handle:
        assert handle.metadata()['format'] == 'ppjax.pmask.v2'
        packed = handle.get_tensor('ranks')
        assert 'mask' not in handle.keys()
    width = max(1, math.ceil(math.log2(d_ff)))
    assert packed.shape == (layers, math.ceil(width * d_ff / 8))
    # By hand: the lowest bit first, of the first channel first.
    bits = np.unpackbits(packed[0], bitorder='little')[: width * d_ff]
    first = sum(int(bit) << place for place, bit in enumerate(bits[-width:]))
    assert first == before.ranks[0, -1]


def test_ranks_are_topk_of_scores():
    scores = np.random.default_rng(0).integers(-2, 3, (4, 33)).astype(np.float32)
    scores[0, ::2] = -0.0
    ranks = ranking.of_scores(scores)
    for keep in range(1, 34):
        want = topk.topk_mask(jnp.asarray(scores), keep).astype(bool)
        np.testing.assert_array_equal(ranks < keep, want)


def test_any_sparsity_of_the_range():
    ranks = _ranking()
    mask = _persona_mask(ranks)
    for keep in (8, 12, 20):
        other = mask.at_keep(keep)
        assert other.keep == keep
        np.testing.assert_array_equal(other.mask, ranks.ranks < keep)
        np.testing.assert_array_equal(other.gains.ravel(), ranks.gains[other.mask])
    # 21 * 0.6 = 12.6, to the nearest multiple of 4.
    assert mask.at_sparsity(0.4).keep == 12
    for keep in (4, 21):
        with pytest.raises(errors.InputError, match=r'8 to 20 of 21, sparsity 0\.04'):
            mask.at_keep(keep)
    plain = dataclasses.replace(mask, ranking=None)
    with pytest.raises(errors.InputError, match=r'12 of 21 channels.*--nested'):
        plain.at_sparsity(0.4)


@pytest.mark.parametrize(
    ('tensor', 'metadata', 'message'),
    [
        (np.zeros((3, 14), np.uint8), {}, 'no order of its channels'),
        (np.zeros((3, 13), np.uint8), {}, r'uint8 \(3, 14\)'),
        (np.zeros((3, 14), np.int8), {}, r'uint8 \(3, 14\)'),
        (None, {'keeps': '8:20'}, 'damaged'),
        (None, {'keeps': '8:30:4'}, 'no keep sizes'),
        (None, {'keep': '7'}, 'not 7'),
        (None, {'d_ff': '-21'}, 'damaged'),
        (None, {'d_ff': '700000'}, '65,536'),
    ],
)
def test_damage_is_one_line(tmp_path, tensor, metadata, message):
    path = tmp_path / 'a.pmask'
    pmask.save(path, _persona_mask(_ranking()))
    with safetensors.safe_open(path, framework='np') as handle:
        known = handle.metadata() | metadata
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    if tensor is not None:
        tensors['ranks'] = tensor
    safetensors_numpy.save_file(tensors, path, metadata=known)
    with pytest.raises(errors.InputError, match=message) as caught:
        pmask.load(path)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_does_not_belong_together_cannot_be_made():
    ranks = _ranking()
    mask = _persona_mask(ranks)
    for changes in ({'gains': None}, {'mask': mask.mask[:, ::-1]}):
        with pytest.raises(ValueError, match='those of the ranks'):
            dataclasses.replace(mask, **changes)


def test_a_tensor_of_a_later_version_is_not_passed_over(tmp_path):
    path = tmp_path / 'a.pmask'
    pmask.save(path, _persona_mask(_ranking()))
    with safetensors.safe_open(path, framework='np') as handle:
        metadata = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    tensors['more'] = np.zeros(3, np.uint8)
    safetensors_numpy.save_file(tensors, path, metadata=metadata)
    with pytest.raises(errors.InputError, match=r'more.*version'):
        pmask.load(path)


@hypothesis.given(data=st.data())
def test_damage_is_never_a_traceback(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'damaged-ranks.pmask'
    pmask.save(path, _persona_mask(_ranking()))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = pmask.load(path)
    except errors.InputError:
        return
    assert loaded.mask.sum() == 3 * loaded.keep
