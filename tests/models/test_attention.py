"""Patterns that are made for speed equal the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.models import attention

_N, _K, _H = 4, 2, 8


def _random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _cache(seed, batch, slots):
    # The second of three layers.
    whole = attention.KVCache(
        *(_random(seed + i, 3, batch, _K, slots, _H) for i in range(2))
    )
    return attention.LayerCache(whole, jnp.int32(1))


@pytest.mark.parametrize(
    ('held', 'filled', 'length'),
    [
        (*slots, length)
        for slots in ((0, 0), (64, 64), (64, 37), (8, 1))
        for length in (1, 127, 128, 300)
    ]
    # The longest compile for seconds each.
    + [(0, 0, 1200), (64, 37, 1200)],
)
def test_a_prompt_equals_the_plain_cache(held, filled, length):
    batch, slots = 2, held + length + 5
    q, k, v = (
        _random(seed, batch, length, heads, _H)
        for seed, heads in ((0, _N), (1, _K), (2, _K))
    )
    cache = _cache(3, batch, slots)
    positions = jnp.broadcast_to(filled + jnp.arange(length), (batch, length))
    want, left = attention.Cached(positions)(q, k, v, cache)
    got, kept = attention.Prompt(positions, held, jnp.int32(filled))(q, k, v, cache)
    np.testing.assert_allclose(got, want, atol=2e-6)
    for one, other, before in zip(kept.whole, left.whole, cache.whole, strict=True):
        np.testing.assert_array_equal(one, other)
        # Other layers' are left as they were.
        np.testing.assert_array_equal(one[::2], before[::2])
        assert not np.array_equal(one[1], before[1])


def test_a_long_prompt_is_cut_into_few_blocks():
    def dots(length):
        positions = jnp.arange(length)[None]
        run = attention.Prompt(positions, 0, jnp.int32(0))
        q, k, v = (_random(0, 1, length, heads, _H) for heads in (_N, _K, _K))
        jaxpr = jax.make_jaxpr(run)(q, k, v, _cache(1, 1, length))
        return str(jaxpr).count('dot_general')

    assert dots(100) == 2
    assert dots(256) == 4
    assert dots(1024) == dots(5000) == 16


def test_branches_of_segments_equal_the_prefixed_pattern():
    batch, length, filled = 3, 20, 6
    q, k, v = (
        _random(seed, batch, length, heads, _H)
        for seed, heads in ((5, _N), (6, _K), (7, _K))
    )
    cache = _cache(8, 1, 9)
    segments = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 4, (3, 20))))
    tree = (segments[:, :, None] == segments[:, None, :]) & jnp.tril(
        jnp.ones((1, length, length), bool)
    )
    want, _ = attention.Prefixed(jnp.int32(filled), segments)(q, k, v, cache)
    got, _ = attention.Branched(jnp.int32(filled), tree)(q, k, v, cache)
    np.testing.assert_allclose(got, want, atol=2e-6)
