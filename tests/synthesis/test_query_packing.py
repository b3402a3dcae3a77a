"""Every query stands whole in exactly one row of one call."""

import numpy as np
import pytest

from ppjax.synthesis import query_packing


def _suffixes(seed, count, longest):
    rng = np.random.default_rng(seed)
    # Mostly short, as real questions are.
    lengths = np.minimum(rng.geometric(0.03, count), longest)
    return [rng.integers(0, 99, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize('batch_tokens', [1, 256, 2048])
@pytest.mark.parametrize('row_multiple', [1, 8])
@pytest.mark.parametrize('longest', [5, 128, 700])
def test_every_query_once(batch_tokens, row_multiple, longest):
    suffixes = _suffixes(longest, 300, longest)
    calls = query_packing.pack(
        suffixes, batch_tokens=batch_tokens, row_multiple=row_multiple
    )
    seen = []
    for call in calls:
        assert len(call.tokens) % row_multiple == 0
        used = np.zeros_like(call.tokens, bool)
        for row, place in zip(*np.nonzero(call.owners >= 0), strict=True):
            query = int(call.owners[row, place])
            length, end = len(suffixes[query]), call.ends[row, place]
            own = slice(end + 1 - length, end + 1)
            np.testing.assert_array_equal(call.tokens[row, own], suffixes[query])
            np.testing.assert_array_equal(call.offsets[row, own], np.arange(length))
            assert set(call.segments[row, own].tolist()) == {place + 1}
            assert not used[row, own].any()
            used[row, own] = True
            seen.append(query)
        np.testing.assert_array_equal(call.segments > 0, used)
    assert sorted(seen) == list(range(300))


def test_few_shapes_and_little_padding():
    suffixes = _suffixes(1, 4000, 700)
    calls = query_packing.pack(suffixes, batch_tokens=2048, row_multiple=1)
    assert len({(call.tokens.shape, call.ends.shape) for call in calls}) <= 4
    ran = sum(call.tokens.size for call in calls)
    own = sum(len(suffix) for suffix in suffixes)
    assert own / ran > 0.9


def test_packing_is_the_same_every_time():
    suffixes = _suffixes(2, 500, 300)
    one, two = (
        query_packing.pack(suffixes, batch_tokens=512, row_multiple=1) for _ in range(2)
    )
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
