"""The ranges of numbers among settings: one for each, checked in one place."""

import dataclasses
import re
import types
from typing import Any, get_args, get_type_hints

from ppjax.base import errors

# Of whole numbers without a range of their own; what a seed may be, and any count.
_WHOLE = '[0, 4294967295]'

_RANGE = re.compile(r'([\[(])(\S+), (\S+)([\])])')


def whole(digits: str) -> int:
    """The number that decimal digits are; 10^18, which is beyond every range, if longer.

    Python reads no more than 4300 of them.
    """
    return int(digits) if len(digits) <= 18 else 10**18


def kind_of(hint: Any) -> Any:
    """The type of a field's values; `int | None` -> int."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def check(settings: Any) -> None:
    """Checks every number among settings, finite or not, against its range.

    Args:
        settings: a dataclass whose fields are `flags.setting`s.

    Raises:
        InputError: naming the first flag that is out of it.
        TypeError: if a float has no range; a mistake in the settings' class.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        kind, value = kind_of(hints[field.name]), getattr(settings, field.name)
        if kind not in (int, float):
            continue
        least = field.metadata['least']
        if least is not None and value is not None and value < least:
            wanted = f'be at least {least}' if least else 'not be negative'
            raise errors.InputError(f'--{field.name} must {wanted}, got {value}.')
        within = field.metadata['within'] or (_WHOLE if kind is int else '')
        found = _RANGE.fullmatch(within)
        if found is None:
            raise TypeError(f'--{field.name} has no range, or {within!r} is none.')
        if value is not None and not _holds(value, *found.groups()):
            raise errors.InputError(f'--{field.name} must be in {within}, got {value}.')


def _holds(value: float, opens: str, least: str, most: str, closes: str) -> bool:
    # Infinity is beyond every bound, and NaN fails every comparison.
    low, high = float(least), float(most)
    above = value > low if opens == '(' else value >= low
    below = value < high if closes == ')' else value <= high
    return above and below
