"""Macros of character cards: `{{char}}`, `{{user}}`, `{{random:a,b}}` and others.

The same card always gives the same text: of `random` and `pick` the first choice is
taken, of `roll` the middle of the die. Names of macros match in any case.

Source: the card specifications V1 (`<BOT>`, `<USER>`) and V3 ("Curly Braced
Syntaxes").
"""

from collections.abc import Mapping
import dataclasses
import re

from ppjax.base import errors

# {{user}} stands for whoever talks to the character, who is not known here.
DEFAULT_USER_NAME = 'the user'

# Of three braces the inner two count, so '{{{char}}}' is a name in single braces.
_BRACES = re.compile(r'\{\{(?!\{)|\}\}')
_LEGACY = re.compile(r'<(char|bot|user)>', re.IGNORECASE)
_ROLL = re.compile(r'[dD]?([0-9]{1,9})')
_COMMA = re.compile(r'(?<!\\),')
# Deeper ones stay as they are: without a limit, '{{' repeated costs quadratic time.
_DEEPEST = 8
# What macros may add to a text: names are no books.
MAX_GROWTH = 2**22


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Text without its macros.

    Attributes:
        text: what is left.
        unknown: macros that stayed in the text, each once, in order.
    """

    text: str
    unknown: tuple[str, ...]


def resolve(
    text: str,
    *,
    char: str,
    user: str,
    original: str | None = None,
    room: int = MAX_GROWTH,
) -> Resolved:
    """Replaces macros in one pass; what they are replaced by is not looked into.

    Args:
        text: with macros, also within one another.
        char: the character's name.
        user: the name of whoever talks to the character.
        original: for `{{original}}`; None leaves it in place.
        room: how many characters may come from macros.

    Raises:
        InputError: as soon as more come from them.
    """
    names = {'char': char, 'bot': char, 'user': user}
    words = names if original is None else names | {'original': original}
    unknown: dict[str, None] = {}
    levels: list[list[str]] = [[]]

    def spend(size: int) -> None:
        nonlocal room
        room -= size
        if room < 0:
            raise errors.InputError(
                f'its macros make more than {MAX_GROWTH:,} characters.'
            )

    def add_plain(piece: str) -> None:
        if '<' in piece:
            for match in _LEGACY.finditer(piece):
                spend(len(names[match[1].lower()]))
            piece = _LEGACY.sub(lambda match: names[match[1].lower()], piece)
        levels[-1].append(piece)

    end = 0
    for brace in _BRACES.finditer(text):
        add_plain(text[end : brace.start()])
        end = brace.end()
        if brace[0] == '{{' and len(levels) <= _DEEPEST:
            levels.append([])
        elif brace[0] == '}}' and len(levels) > 1:
            body = ''.join(levels.pop())
            value = _value(body, words)
            if value is None:
                value = f'{{{{{body}}}}}'
                unknown[value] = None
            spend(len(value))
            levels[-1].append(value)
        else:
            levels[-1].append(brace[0])
    add_plain(text[end:])
    # What was opened and never closed is no macro.
    whole = '{{'.join(''.join(level) for level in levels)
    return Resolved(whole, tuple(unknown))


def _value(body: str, words: Mapping[str, str]) -> str | None:
    """What a macro stands for; None if there is no such macro."""
    if body.lstrip().startswith('//'):
        return ''
    name, colon, rest = body.partition(':')
    name = name.strip().lower()
    if not colon:
        return words.get(name)
    if name in ('random', 'pick'):
        # Frontends also write {{random::a::b}}, where commas are plain.
        rest = rest.removeprefix(':')
        choices = rest.split('::') if '::' in rest else _COMMA.split(rest)
        return choices[0].replace('\\,', ',').strip()
    if name == 'roll':
        die = _ROLL.fullmatch(rest.strip())
        return None if die is None else str((int(die[1]) + 1) // 2)
    if name == 'reverse':
        return rest[::-1]
    if name in ('comment', 'hidden_key'):
        return ''
    return None
