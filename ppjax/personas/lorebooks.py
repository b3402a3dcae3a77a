"""Lorebooks of character cards: facts that a conversation brings up by their keys.

Books have the fields of the specifications, or SillyTavern's own (`key`, `order`,
`disable`, a position of 0 or 1), which it also keeps under an entry's `extensions`.
What they may say of an entry's chance, of time and of groups is not read: an entry comes
when its keys do.

Source: the card specifications V2 ("character_book") and V3 ("Lorebook").
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
import re
from typing import Any, Literal

from ppjax.personas import inputs

# SillyTavern's, where a book has none.
SCAN_DEPTH = 2
# Of what a book may ask for.
MOST_DEPTH = 100

_DECORATOR = re.compile(r'\s*@@(@?)(\w*)([^\n]*)')
_PATTERN = re.compile(r'/(.+)/([a-z]*)', re.DOTALL)
_LOGICS: tuple['Logic', ...] = ('any', 'not_all', 'not_any', 'all')

Logic = Literal['any', 'not_all', 'not_any', 'all']


@dataclasses.dataclass(frozen=True)
class Key:
    """A word, or a pattern.

    Attributes:
        text: of it.
        flags: JavaScript's letters; None where it is no pattern.
    """

    text: str
    flags: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One fact.

    Attributes:
        content: of it.
        keys: one of which brings it up.
        second: further keys, of which `logic` asks something as well; none for no more.
        logic: one of `second` has to be there, one missing, none there, or all.
        constant: whether it is part of the persona's text, and needs no keys.
        before: whether it stands before the persona prompt, and not after it.
        order: the larger, the later it stands.
        priority: the smaller, the sooner it is left out where room is scarce.
        case_sensitive: whether keys are to be written as they are.
        whole_words: whether a key inside a longer word is none.
        scan_depth: how many last messages are looked at; None is the book's.
        recurses: whether keys may stand in other entries.
    """

    content: str
    keys: tuple[Key, ...]
    second: tuple[Key, ...] = ()
    logic: Logic = 'any'
    constant: bool = False
    before: bool = False
    order: float = 0.0
    priority: float = 0.0
    case_sensitive: bool = False
    whole_words: bool = False
    scan_depth: int | None = None
    recurses: bool = True


@dataclasses.dataclass(frozen=True)
class Book:
    """A card's book.

    Attributes:
        entries: as the card has them, but for those that are off.
        scan_depth: how many last messages are looked at for keys.
        token_budget: tokens that what is brought up may have; None for no limit.
        recursive: whether what was brought up brings up more.
    """

    entries: tuple[Entry, ...] = dataclasses.field(repr=False)
    scan_depth: int = SCAN_DEPTH
    token_budget: int | None = None
    recursive: bool = False


@dataclasses.dataclass(frozen=True)
class RawEntry:
    """An enabled entry with content, as a card has it.

    Attributes:
        number: of it in the book.
        fields: all of them.
        content: the text, without its decorators.
        decorators: `@@` lines: name -> the rest of the line.
    """

    number: int
    fields: Mapping[str, Any]
    content: Any
    decorators: Mapping[str, str]

    @property
    def label(self) -> str:
        """For messages."""
        return f'book entry {self.number}'

    @property
    def constant(self) -> bool:
        """Whether it needs no keys."""
        if 'dont_activate' in self.decorators:
            return 'activate' in self.decorators
        return is_on(self.fields.get('constant')) or 'activate' in self.decorators

    @property
    def before(self) -> bool:
        """Whether it stands before the character; SillyTavern's 0 means that."""
        position = self.fields.get('position')
        if isinstance(position, bool):
            return False
        return position in ('before_char', '0', 0)

    @property
    def order(self) -> float:
        """`insertion_order`, or SillyTavern's `order`."""
        order = self.fields.get('insertion_order')
        return number_of(self.fields.get('order') if order is None else order)

    def keys(self, *names: str) -> list[Any]:
        """The list under the first of these fields that there is."""
        keys = next((self.fields[name] for name in names if name in self.fields), None)
        if isinstance(keys, list):
            return keys
        return keys.split(',') if isinstance(keys, str) else [keys]

    def option(self, name: str) -> Any:
        """A field of the entry or, as SillyTavern keeps most, of its extensions."""
        extensions = self.fields.get('extensions')
        own = self.fields.get(name)
        if own is None and isinstance(extensions, dict):
            own = extensions.get(name)
        return own


def raw_entries(book: Any, clean: Callable[[Any, str], str]) -> Iterator[RawEntry]:
    """The enabled entries of a book's JSON value; none of what is no book.

    Args:
        book: the value.
        clean: makes text of a content, or raises; given its label for that.
    """
    entries = book.get('entries') if isinstance(book, dict) else None
    if isinstance(entries, dict):
        entries = list(entries.values())
    if not isinstance(entries, list):
        return
    for number, fields in enumerate(entries):
        if not isinstance(fields, dict) or not _is_enabled(fields):
            continue
        if fields.get('content') is None:
            continue
        raw = RawEntry(number, fields, '', {})
        decorators, content = _split_decorators(clean(fields['content'], raw.label))
        yield dataclasses.replace(raw, content=content, decorators=decorators)


def book_of(
    value: Any, entries: Iterator[RawEntry], resolve: Callable[[str], str]
) -> Book | None:
    """A book of its entries.

    Args:
        value: the book's JSON value.
        entries: from `raw_entries`.
        resolve: takes macros out of a content or a key.

    Returns:
        None where nothing waits for a key.
    """
    found = [entry for raw in entries if (entry := _entry(raw, resolve))]
    if not any(entry.keys and not entry.constant for entry in found):
        return None
    budget = value.get('token_budget')
    return Book(
        entries=tuple(found),
        scan_depth=_depth(value.get('scan_depth'), SCAN_DEPTH),
        # SillyTavern writes 0 where nothing was set.
        token_budget=int(number_of(budget)) if number_of(budget) >= 1 else None,
        recursive=is_on(value.get('recursive_scanning')),
    )


def _entry(raw: RawEntry, resolve: Callable[[str], str]) -> Entry | None:
    content = resolve(raw.content)
    if not content:
        return None
    as_pattern = is_on(raw.fields.get('use_regex'))
    keys = tuple(_keys(raw.keys('keys', 'key'), as_pattern, resolve))
    second = tuple(_keys(raw.keys('secondary_keys', 'keysecondary'), False, resolve))
    if 'dont_activate' in raw.decorators and not raw.constant:
        keys = ()
    if not keys and not raw.constant:
        return None
    logic = raw.option('selectiveLogic')
    known = type(logic) is int and 0 <= logic < len(_LOGICS)
    priority = raw.fields.get('priority')
    asked = raw.decorators.get('scan_depth', raw.option('scan_depth'))
    if asked is None:
        asked = raw.option('scanDepth')
    sensitive = raw.option('case_sensitive')
    whole = raw.option('match_whole_words')
    return Entry(
        content=content,
        keys=keys,
        second=second if is_on(raw.fields.get('selective')) else (),
        logic=_LOGICS[logic] if known else 'any',
        constant=raw.constant,
        before=raw.before,
        order=raw.order,
        priority=raw.order if priority is None else number_of(priority),
        case_sensitive=is_on(
            raw.option('caseSensitive') if sensitive is None else sensitive
        ),
        whole_words=is_on(raw.option('matchWholeWords') if whole is None else whole),
        scan_depth=None if asked is None else _depth(asked, SCAN_DEPTH),
        recurses=not is_on(raw.option('exclude_recursion')),
    )


def _keys(
    values: list[Any], as_pattern: bool, resolve: Callable[[str], str]
) -> Iterator[Key]:
    for value in values:
        if not inputs.is_text(value):
            continue
        text = value.strip()
        if pattern := _PATTERN.fullmatch(text):
            yield Key(pattern[1], pattern[2])
        elif text and as_pattern:
            yield Key(text, '')
        elif text := resolve(text):
            yield Key(text)


def _depth(value: Any, default: int) -> int:
    if value is None:
        return default
    return max(0, min(MOST_DEPTH, int(number_of(value, default))))


def is_on(value: Any, default: bool = False) -> bool:
    """What a switch says, be it a boolean, a number or a word."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ('true', 'yes', 'on'):
            return True
        if word in ('false', 'no', 'off'):
            return False
        try:
            value = float(word)
        except ValueError:
            return default
    return bool(value) if isinstance(value, int | float) else default


def number_of(value: Any, default: float = 0.0) -> float:
    """A number, or the text of one; the default for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    # Integers of JSON can be longer than a float holds.
    if isinstance(value, int):
        return float(max(-(2**53), min(2**53, value)))
    return default if math.isnan(value) else max(-(2.0**53), min(2.0**53, value))


def _is_enabled(entry: Mapping[str, Any]) -> bool:
    """Whether a book entry is in use: SillyTavern's own form has `disable` instead."""
    off = any(is_on(entry.get(key)) for key in ('disable', 'disabled'))
    return is_on(entry.get('enabled'), default=True) and not off


def _split_decorators(content: str) -> tuple[dict[str, str], str]:
    """The `@@` lines that a book entry starts with, and the rest."""
    found: dict[str, str] = {}
    end = 0
    while line := _DECORATOR.match(content, end):
        # '@@@' gives an alternative for a decorator that is not understood.
        if not line[1]:
            found[line[2].lower()] = line[3].strip()
        end = line.end()
    return found, content[end:]
