"""DRY on the host: which tokens would lengthen a repetition, and what they lose.

Source: text-generation-webui's pull request 5677, which brought DRY, and llama.cpp's
sampler `dry`, whose parameters these are.
"""

import math

import numpy as np

from ppjax.serving import sampling

# No logit is as large, and no sum of such penalties and logits overflows float32.
MOST = 1e6


def penalties(history: np.ndarray, dry: sampling.Dry) -> tuple[np.ndarray, np.ndarray]:
    """What is to be taken off the logits of the next token.

    With n the length of the longest sequence of tokens that the text ends with and that
    token i followed before, i loses

        min(multiplier * base ** (n - allowed_length), MOST)   where n >= allowed_length

    and n >= 1. The sequence has no breaker in it, a breaker itself loses nothing, and
    both times the sequence may overlap with itself.

    The time grows with the window, whatever is in it: the lengths are those of the
    Z-algorithm on the window read backwards, looked up only where its last token is.

    Args:
        history: int32 [T], prompt and answer; may be empty.
        dry: `base` at least 1.

    Returns:
        ids int32 [m], ascending, none twice, and penalties float32 [m], above 0.
    """
    none = np.zeros(0, np.int32), np.zeros(0, np.float32)
    if dry.multiplier <= 0.0 or dry.last_n == 0:
        return none
    window = history[::-1] if dry.last_n is None else history[: -dry.last_n - 1 : -1]
    # No sequence reaches over the last breaker.
    longest = _first_of(window, dry.breakers)
    least = max(dry.allowed_length, 1)
    if longest < least:
        return none
    tokens: list[int] = window.tolist()
    lengths: dict[int, int] = {}
    for place, length in _matches(window, tokens):
        following, length = tokens[place - 1], min(length, longest)
        if length >= least and length > lengths.get(following, 0):
            lengths[following] = length
    found = sorted(lengths.keys() - dry.breakers)
    return (
        np.asarray(found, np.int32),
        np.asarray([_penalty(lengths[i], dry) for i in found], np.float32),
    )


def _first_of(window: np.ndarray, wanted: frozenset[int]) -> int:
    """Place of the first token that is among those wanted; T if none is."""
    if not wanted:
        return len(window)
    places = np.flatnonzero(np.isin(window, list(wanted)))
    return int(places[0]) if places.size else len(window)


def _matches(window: np.ndarray, tokens: list[int]) -> list[tuple[int, int]]:
    """(place, length) wherever a prefix of the tokens comes again, with its length.

    Args:
        window: int32 [T].
        tokens: the same.
    """
    count = len(tokens)
    found = []
    lengths = [0] * count
    # What [left, right) holds is what the tokens begin with.
    left = right = 0
    for place in np.flatnonzero(window[1:] == window[0]).tolist():
        place += 1
        length = 1
        if place < right:
            length = lengths[place - left]
            if length >= right - place:
                length = right - place
            elif length:
                lengths[place] = length
                found.append((place, length))
                continue
        while place + length < count and tokens[length] == tokens[place + length]:
            length += 1
        left, right = place, place + length
        lengths[place] = length
        found.append((place, length))
    return found


def _penalty(length: int, dry: sampling.Dry) -> float:
    logarithm = math.log(dry.multiplier) + (length - dry.allowed_length) * math.log(
        dry.base
    )
    return math.exp(logarithm) if logarithm < math.log(MOST) else MOST
