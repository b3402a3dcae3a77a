"""Names for personas and their repetitions, from the files that masks came in."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import pathlib
import re

from ppjax.analysis import sources
from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.pages import formats

# What tells a persona's masks from each other: the seed of their runs, the names of
# their files or folders, or no more than their order.
SEED, VARIANT, NUMBER = 'seed', 'variant', 'repetition'
_LONGEST = 40
# At the end of what names of repetitions begin with, as in `jack-seed0`, `jack-seed1`.
_TAIL = re.compile(r'([-_.]+(seed|run|s))?[-_.]*$', re.IGNORECASE)
# Sweeps call their cells `persona-jack--seed-0`.
_AXES, _AXIS = '--', 'persona-'


@dataclasses.dataclass(frozen=True)
class ComparedMask:
    """A mask with its place among others.

    Attributes:
        source: the mask and its file.
        persona: the name of its persona.
        repetition: tells it from the persona's other masks; masks of different
            personas that go together have the same.
    """

    source: sources.SourceMask
    persona: str
    repetition: str

    @property
    def mask(self) -> pmask.PersonaMask:
        return self.source.mask

    @property
    def name(self) -> str:
        """Of both."""
        return f'{self.persona}, {self.repetition}'


def compared(
    masks: Sequence[sources.SourceMask], names: str | None
) -> tuple[list[ComparedMask], str]:
    """Masks with their persona's name and their repetition, in the order given.

    Repetitions are seeds if every mask's seed is known and no persona has one twice;
    or else variants, what files or folders are called beside the persona's name, if
    several personas have the same; or else the masks of a persona are numbered.

    Args:
        masks: see `sources.read`.
        names: what `--labels` holds; None names personas after their files.

    Returns:
        (masks, what tells a persona's from each other: SEED, VARIANT or NUMBER).

    Raises:
        InputError: if there are more or fewer names than personas, or one twice.
    """
    groups: dict[str, list[sources.SourceMask]] = {}
    for mask in masks:
        groups.setdefault(mask.persona, []).append(mask)
    called = dict(zip(groups, _names(list(groups.values()), names), strict=True))
    kind, repetitions = _repetitions(list(groups.values()))
    found = [
        ComparedMask(mask, called[mask.persona], repetitions[mask.path])
        for mask in masks
    ]
    return found, kind


def _repetitions(
    groups: Sequence[Sequence[sources.SourceMask]],
) -> tuple[str, dict[pathlib.Path, str]]:
    """(SEED, VARIANT or NUMBER, each mask's repetition)."""
    masks = [mask for own in groups for mask in own]
    seeds = {mask.path: f'{SEED} {mask.seed}' for mask in masks}
    if all(mask.seed is not None for mask in masks) and _tell_apart(groups, seeds):
        return SEED, seeds
    variants = {}
    everywhere = _shared(masks)
    for own in groups:
        known = everywhere | _alone(own, groups)
        for mask in own:
            words = [word for word in _words(mask) if word not in known]
            variants[mask.path] = _short(' '.join(words)) or 'plain'
    often = collections.Counter(variants.values())
    repeated = [mask for own in groups if len(own) > 1 for mask in own]
    in_pairs = all(often[variants[mask.path]] > 1 for mask in repeated)
    if repeated and in_pairs and _tell_apart(groups, variants):
        return VARIANT, variants
    numbers = {
        mask.path: f'{NUMBER} {place}'
        for own in groups
        for place, mask in enumerate(own, start=1)
    }
    return NUMBER, numbers


def _tell_apart(
    groups: Sequence[Sequence[sources.SourceMask]], names: Mapping[pathlib.Path, str]
) -> bool:
    """Whether no persona has a name twice."""
    return all(len({names[mask.path] for mask in own}) == len(own) for own in groups)


def _shared(masks: Sequence[sources.SourceMask]) -> set[str]:
    """The words in all of their paths."""
    return set.intersection(*(set(_words(mask)) for mask in masks))


def _alone(
    group: Sequence[sources.SourceMask],
    groups: Sequence[Sequence[sources.SourceMask]],
) -> set[str]:
    """The words in all paths of a persona, and in no other persona's."""
    others = {x for own in groups if own is not group for m in own for x in _words(m)}
    return _shared(group) - others


def _names(
    groups: Sequence[Sequence[sources.SourceMask]], given: str | None
) -> list[str]:
    own = _unlike([_name(group, groups) for group in groups])
    if given is None:
        return own
    names = [formats.printable(name).strip() for name in given.split(',')]
    if len(names) != len(own) or len(set(names)) < len(names) or not all(names):
        raise errors.InputError(
            f'--labels must be {len(own)} different names, for the personas of '
            f'{", ".join(own)}, got {given!r}.'
        )
    return names


def _name(
    group: Sequence[sources.SourceMask],
    groups: Sequence[Sequence[sources.SourceMask]],
) -> str:
    """What all files of a persona are called, and no other persona's are.

    The last such part of their paths; or else what a sweep calls the persona; or else
    what they begin with.
    """
    shared = _alone(group, groups)
    for word in reversed(_words(group[0])):
        if word in shared:
            return _short(word.removeprefix(_AXIS))
    words = dict.fromkeys(word for mask in group for word in _words(mask))
    for word in words:
        if word.startswith(_AXIS):
            return _short(word.removeprefix(_AXIS))
    ends = [_words(mask)[-1] for mask in group]
    alike = itertools.takewhile(lambda x: len(set(x)) == 1, zip(*ends, strict=False))
    start = ''.join(letters[0] for letters in alike)
    if len(ends) > 1:
        start = _TAIL.sub('', start)
    return _short(start.removeprefix(_AXIS) or ends[0])


def _words(mask: sources.SourceMask) -> list[str]:
    """The parts of a mask's path, without what all masks of runs are called."""
    path: pathlib.Path = mask.path.with_suffix('')
    if mask.path.name == 'mask.pmask':
        path = path.parent
    return [word for part in path.parts for word in part.split(_AXES)]


def _short(name: str) -> str:
    name = formats.printable(name)
    return name if len(name) <= _LONGEST else f'{name[: _LONGEST - 1]}…'


def _unlike(names: Sequence[str]) -> list[str]:
    """The same, with numbers behind those that come up again."""
    return [
        name
        if name not in names[:place]
        else f'{name} ({names[:place].count(name) + 1})'
        for place, name in enumerate(names)
    ]
