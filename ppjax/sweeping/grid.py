"""The grid of a sweep: its axes, as text, and the cells between them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
import dataclasses
import difflib
import hashlib
import itertools
import re
from typing import Any

from ppjax.base import errors

PERSONA, SEED = 'persona', 'seed'
# The persona whose mask is learned from the data of all others in the grid.
GLOBAL = 'global'

_PLAIN = re.compile(r'[A-Za-z0-9_.+][A-Za-z0-9_.+-]{0,39}')


@dataclasses.dataclass(frozen=True)
class Axis:
    """What one axis of the grid varies.

    Attributes:
        name: `persona`, or a setting of mask learning.
        values: two or more to compare, or one; all different.
    """

    name: str
    values: tuple[Any, ...]


def _check_name(flag: str, name: str, known: Collection[str]) -> None:
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = (
        f'Did you mean: {nearest[0]} ?' if nearest else f'There are {", ".join(known)}.'
    )
    raise errors.InputError(f'--{flag}: unknown axis {name!r}. {hint}')


def listed(
    flag: str, parts: Iterable[str], known: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    """Reads each `axis=value,value`.

    Args:
        flag: that holds them, with semicolons between them.
        parts: of its text.
        known: the axes that there are.

    Yields:
        (axis, values as text).

    Raises:
        InputError: for an unknown axis, one without values, and one that is there
            twice.
    """
    found: set[str] = set()
    for part in parts:
        name, _, values = part.strip().partition('=')
        texts = [value.strip() for value in values.split(',')]
        if not name or not all(texts):
            raise errors.InputError(
                f'--{flag}: {part.strip()!r} is no axis with values; wanted '
                'axis=value,value and semicolons between axes.'
            )
        name = name.strip()
        _check_name(flag, name, known)
        if name in found:
            raise errors.InputError(f'--{flag}: the axis {name} is there twice.')
        found.add(name)
        yield name, texts


def parse(
    text: str, names: Collection[str], read: Callable[[str, str], Any]
) -> tuple[Axis, ...]:
    """Reads `axis=value,value;axis=value,...`.

    Args:
        text: what `--grid` holds.
        names: of the settings that may be axes beside `persona`.
        read: (name, value as text) -> value of a setting.

    Raises:
        InputError: for an unknown axis, a bad value, an axis without values, and
            what is there twice.
    """
    axes: list[Axis] = []
    for name, texts in listed('grid', text.split(';'), [PERSONA, *sorted(names)]):
        values = texts if name == PERSONA else [read(name, value) for value in texts]
        for index, value in enumerate(values):
            if value in values[:index]:
                raise errors.InputError(
                    f'--grid: the axis {name} has {texts[index]} twice.'
                )
        axes.append(Axis(name, tuple(values)))
    return tuple(axes)


def combinations(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Every cell's values by axis; the last axis varies fastest."""
    names = [axis.name for axis in axes]
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip(names, values, strict=True))


def text_of(value: Any) -> str:
    """A value as `--grid` spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _file_part(text: str) -> str:
    """Text that may be part of a file's name; a digest keeps cut ones apart."""
    if _PLAIN.fullmatch(text) and '--' not in text:
        return text
    kept = re.sub(r'[^A-Za-z0-9_.+]+', '-', text)[-30:].strip('-.')
    return f'{kept}-{_digest(text)}'


def name_of(values: dict[str, Any], sources: Sequence[str]) -> str:
    """A cell's folder: its values by axis, whatever the order of the axes.

    Args:
        values: of the cell.
        sources: the personas that a global mask is learned from. They are part of
            its cell's name: with another persona in the grid it is another mask.
    """
    parts = []
    for axis in sorted(values, key=lambda name: (name != PERSONA, name)):
        part = _file_part(text_of(values[axis]))
        if axis == PERSONA and values[axis] == GLOBAL:
            part = f'{GLOBAL}-{_digest(",".join(sources))}'
        parts.append(f'{axis}-{part}')
    return '--'.join(parts)


def label_of(values: dict[str, Any]) -> str:
    """Values for people, or 'all settings' where nothing varies."""
    shown = [f'{name} {text_of(value)}' for name, value in values.items()]
    return ', '.join(shown) or 'all settings'
