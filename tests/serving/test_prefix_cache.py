"""Known blocks: found by content, forgotten in the order of use."""

import numpy as np

from ppjax.serving import prefix_cache

_TEXT = np.arange(100, 116)


def _filled(limit=1000, text=_TEXT, digest='mask'):
    cache = prefix_cache.PrefixCache(limit, 4)
    _add(cache, text, digest)
    return cache


def _add(cache, text, digest='mask', size=10):
    blocks = [
        (number, (digest, *text[: 4 * number + 4]), size)
        for number in cache.unknown(digest, text)
    ]
    cache.add(digest, text, blocks)
    return len(blocks)


def _found(cache, text, digest='mask'):
    return [list(block[1:]) for block in cache.find(digest, np.asarray(text))]


def test_finds_what_a_text_starts_with():
    cache = _filled()
    assert _found(cache, _TEXT) == [list(_TEXT[: 4 * n]) for n in (1, 2, 3, 4)]
    assert len(_found(cache, _TEXT[:11])) == 2
    assert len(_found(cache, [*_TEXT[:9], 5, 5, 5, 5])) == 2
    assert _found(cache, _TEXT[:3]) == []


def test_blocks_in_another_place_are_others():
    cache = _filled()
    assert _found(cache, [*_TEXT[4:8], *_TEXT[4:8]]) == []
    assert len(_found(cache, [*_TEXT[:4], *_TEXT[:4]])) == 1


def test_what_another_mask_made_is_not_found():
    cache = _filled()
    assert _found(cache, _TEXT, 'other') == []
    assert _found(cache, _TEXT, '') == []
    assert (cache.hits, cache.misses) == (0, 8)


def test_only_unknown_blocks_are_asked_for():
    cache = _filled(text=_TEXT[:8])
    assert cache.unknown('mask', _TEXT) == [2, 3]
    assert _add(cache, _TEXT) == 2
    assert cache.size == 40


def test_the_least_recently_used_goes_first_and_a_text_from_its_end():
    cache = _filled(limit=60)
    other = _TEXT + 50
    _add(cache, other[:8])
    assert (len(cache), cache.size) == (6, 60)
    _found(cache, _TEXT)  # Now the other is older.
    _add(cache, _TEXT + 100)
    # Four new ones: the other's two went, and the last two of the first.
    assert _found(cache, other) == []
    assert len(_found(cache, _TEXT)) == 2
    assert cache.size == 60


def test_without_room_nothing_is_kept():
    cache = _filled(limit=9)
    assert (len(cache), cache.size) == (0, 0)
