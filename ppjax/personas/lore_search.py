"""Which entries of a lorebook a conversation brings up.

As SillyTavern does it: an entry comes if one of its keys stands in the last messages,
and its second keys are as its logic asks. Keys match in any case and inside longer words
unless the book says otherwise; a key of several words is never asked to be whole. Keys
that are patterns are searched for a limited time: cards come from anyone.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import re
import time

import regex

from ppjax.personas import lorebooks

# Of the messages that are looked at, from the end: conversations may be long.
_MOST_CHARACTERS = 2**16
_LONGEST_PATTERN = 2000
_PATTERN_SECONDS, _ALL_SECONDS = 0.05, 0.25
# How often what was brought up may bring up more.
_MOST_ROUNDS = 8
_FLAGS = {'i': regex.IGNORECASE, 'm': regex.MULTILINE, 's': regex.DOTALL}


def found(
    book: lorebooks.Book, messages: Sequence[str], count: Callable[[str], int]
) -> list[lorebooks.Entry]:
    """The entries that messages bring up, by their order; none of the constant ones.

    Where the book has a budget, those of the lowest priority that do not fit are left
    out.

    Args:
        book: of a card.
        messages: of both sides, the newest last.
        count: tokens of a text.
    """
    search = _Search(book, messages)
    kept: dict[int, lorebooks.Entry] = {}
    constant = [entry.content for entry in book.entries if entry.constant]
    told = '\n'.join(constant) if book.recursive else ''
    for _ in range(_MOST_ROUNDS):
        new = {
            number: entry
            for number, entry in enumerate(book.entries)
            if number not in kept and search.brings_up(entry, told)
        }
        kept |= new
        if not new or not book.recursive:
            break
        contents = [entry.content for entry in new.values()]
        told = '\n'.join([told, *contents])[-_MOST_CHARACTERS:]
    return _within(book, [kept[number] for number in sorted(kept)], count)


def _within(
    book: lorebooks.Book,
    entries: list[lorebooks.Entry],
    count: Callable[[str], int],
) -> list[lorebooks.Entry]:
    """Those that fit the budget, by their order; equal ones stay as they were."""
    if book.token_budget is not None:
        left = book.token_budget
        fitting = set()
        for number in sorted(range(len(entries)), key=lambda i: -entries[i].priority):
            size = count(entries[number].content)
            if size <= left:
                left -= size
                fitting.add(number)
        entries = [entry for number, entry in enumerate(entries) if number in fitting]
    return sorted(entries, key=lambda entry: entry.order)


@dataclasses.dataclass
class _Search:
    """Looks into the messages of one conversation.

    Attributes:
        book: whose entries are looked for.
        messages: of both sides, the newest last.
    """

    book: lorebooks.Book
    messages: Sequence[str]

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + _ALL_SECONDS
        self._said_at: dict[int, tuple[str, str]] = {}

    def _said(self, depth: int) -> tuple[str, str]:
        """The last messages, and the same in one case."""
        if depth not in self._said_at:
            last = self.messages[-depth:] if depth else []
            text = '\n'.join(last)[-_MOST_CHARACTERS:]
            self._said_at[depth] = text, text.casefold()
        return self._said_at[depth]

    def brings_up(self, entry: lorebooks.Entry, told: str) -> bool:
        """Whether an entry comes.

        Args:
            entry: of the book.
            told: by entries that came, or always do.
        """
        if entry.constant or not entry.keys:
            return False
        depth = entry.scan_depth
        text, folded = self._said(self.book.scan_depth if depth is None else depth)
        if told and entry.recurses:
            text, folded = f'{text}\n{told}', f'{folded}\n{told.casefold()}'

        def stands(keys: Sequence[lorebooks.Key]) -> Iterator[bool]:
            return (self._stands(key, entry, text, folded) for key in keys)

        if not any(stands(entry.keys)):
            return False
        if not entry.second:
            return True
        second = list(stands(entry.second))
        return {
            'any': any(second),
            'not_all': not all(second),
            'not_any': not any(second),
            'all': all(second),
        }[entry.logic]

    def _stands(
        self, key: lorebooks.Key, entry: lorebooks.Entry, text: str, folded: str
    ) -> bool:
        if key.flags is not None:
            return self._matches(key, text)
        word = key.text
        if not entry.case_sensitive:
            word, text = word.casefold(), folded
        if word not in text:
            return False
        if not entry.whole_words or any(c.isspace() for c in word):
            return True
        return bool(re.search(rf'(?<!\w){re.escape(word)}(?!\w)', text))

    def _matches(self, key: lorebooks.Key, text: str) -> bool:
        left = min(_PATTERN_SECONDS, self._ends - time.monotonic())
        pattern = _compiled(key)
        if pattern is None or left <= 0:
            return False
        try:
            return pattern.search(text, timeout=left) is not None
        except TimeoutError:
            return False


@functools.lru_cache(maxsize=4096)
def _compiled(key: lorebooks.Key) -> 'regex.Pattern[str] | None':
    """None of what is no pattern."""
    if len(key.text) > _LONGEST_PATTERN:
        return None
    flags = 0
    for letter in key.flags or '':
        flags |= _FLAGS.get(letter, 0)
    # JavaScript names groups without a P, which regex reads as well.
    try:
        return regex.compile(key.text, flags)
    except (regex.error, OverflowError, RecursionError, ValueError):
        return None
