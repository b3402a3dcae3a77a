"""How much a text repeats itself."""

from collections.abc import Sequence
import re

# Scripts that put no space between words: a character counts as a word.
_WIDE = (
    '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff'
    '\uf900-\ufaff\U00020000-\U0003ffff'
)
EMOJI = '\u2600-\u27bf\u2b50\U0001f000-\U0001faff'
_WORD = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+(?:['’][^\W{_WIDE}]+)*")
_BROAD = re.compile(f'[{_WIDE}{EMOJI}]')
LIST_MARK = re.compile(r'^[ \t]*(?:\d{1,4}[.)]|[-*•+])[ \t]+', re.MULTILINE)

# A loop of up to sixty words is looked for; a long word has ten characters.
_LONGEST_PERIOD = 600
# Up to thirty words, a refrain may come three times; longer passages hardly twice.
_SHORT_PERIOD, _SHORT_COPIES, _LONG_COPIES = 180, 4, 3
# Twenty words: laughter and "la la la" are shorter.
_LOOP_WIDTH = 120
# Marks alone, as in a ruled line, have to go on for longer.
_MARKS_WIDTH = 400
# A counter inside a loop is overlooked where this share of it is letters, which of a
# times table it is not.
_COUNTED_LETTERS = 0.25

# Three copies of a text repeat 2/3 of it; songs with their chorus stay below 0.55.
_REPEATED_SHARE, _REPEATED_WORDS = 0.55, 50
# A good start hides a bad end, so the end is looked at alone as well.
_TAIL_WORDS, _TAIL_LEAST = 120, 100
_TAIL_REPEATED, _TAIL_DISTINCT = 0.65, 0.2


def words(text: str) -> list[str]:
    """Lower-case words, without list marks; of unspaced scripts, the characters."""
    plain = LIST_MARK.sub('', text).casefold().replace('’', "'")
    return _WORD.findall(plain)


def distinct_n(text: str, n: int) -> float:
    """Share of different ones among the n-grams of words; 1 where there are none.

    Raises:
        ValueError: if `n` is not positive.
    """
    return _distinct(words(text), n)


def repeat_rate(text: str, n: int = 4) -> float:
    """Share of the words that lie in an n-gram which occurred before.

    Raises:
        ValueError: if `n` is not positive.
    """
    return _repeated(words(text), n)


def _grams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f'n must be at least 1, got {n}.')
    return list(zip(*(found[start:] for start in range(n)), strict=False))


def _distinct(found: Sequence[str], n: int) -> float:
    grams = _grams(found, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def _repeated(found: Sequence[str], n: int) -> float:
    seen = set[tuple[str, ...]]()
    again = set[int]()
    for start, gram in enumerate(_grams(found, n)):
        if gram in seen:
            again.update(range(start, start + n))
        seen.add(gram)
    return len(again) / max(len(found), 1)


def is_repetitive(text: str) -> bool:
    """Whether the text ends in a loop, or most of it repeats what was said.

    A loop is a passage of up to 60 words, or 600 characters, that fills the end at
    least four times (three, if it is longer than 30 words) and over 20 words. Lines'
    numbers and counters inside are overlooked, and the last copy may be cut. Otherwise
    over half of the words have to lie in repeated 4-grams, of the whole or of its last
    120 words, or the latter be nearly all the same words.
    """
    flat = ' '.join(text.casefold().rstrip('\ufffd \n').split())
    counted = re.sub(r'\d+', '0', flat)
    if _loops(flat, 0) or _loops(counted, _COUNTED_LETTERS):
        return True
    found = words(text)
    if len(found) >= _REPEATED_WORDS and _repeated(found, 4) >= _REPEATED_SHARE:
        return True
    tail = found[-_TAIL_WORDS:]
    return len(tail) >= _TAIL_LEAST and (
        _repeated(tail, 4) >= _TAIL_REPEATED or _distinct(tail, 1) < _TAIL_DISTINCT
    )


def _loops(flat: str, least_letters: float) -> bool:
    """Whether the end is one passage over and over, wherever its last copy is cut."""
    for period in range(1, min(_LONGEST_PERIOD, (len(flat) + 1) // _LONG_COPIES) + 1):
        unit = flat[-period:]
        if flat[-2 * period : -period] != unit:
            continue
        width = len(unit) + 2 * len(_BROAD.findall(unit))
        copies = _SHORT_COPIES if width <= _SHORT_PERIOD else _LONG_COPIES
        letters = sum(character.isalpha() for character in unit)
        wanted = _LOOP_WIDTH if any(map(str.isalnum, unit)) else _MARKS_WIDTH
        copies = max(copies, -(-wanted // width))
        # Between copies there is a space more than they have.
        if letters >= least_letters * period and flat.endswith((unit * copies)[1:]):
            return True
    return False
