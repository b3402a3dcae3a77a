"""The cast: the personas of some folders, and the base model itself.

Folders are looked at again and again, and files are read where they changed. What is
wrong with one is said once and stops nothing: a file that is still being written is
tried again when it has changed.

A persona is called as its file, without its ending. Where several would have one name,
or that of the base model, each keeps its ending; what is then still the same gets a
number, in the order of paths. So names depend on nothing but which personas there are.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import threading
import types

from ppjax.base import errors, progress
from ppjax.models import base_model as base_lib
from ppjax.personas import inputs, macros
from ppjax.serving import cast_files
from ppjax.serving import members as members_lib


@dataclasses.dataclass(frozen=True)
class _Known:
    """A file as it was found.

    Attributes:
        state: when it was read.
        member: that it is; None where it is none.
        reason: why not; '' where there is nothing to say.
    """

    state: cast_files.State
    member: members_lib.Member | None
    reason: str = ''


def base_id(base: base_lib.BaseModel) -> str:
    """The base model's own model id: the last part of what it was given as."""
    name = base.name.rstrip('/\\')
    if os.path.exists(os.path.expanduser(name)):
        name = str(pathlib.Path(name).expanduser().resolve())
    name = pathlib.PurePath(name).name
    if name.lower().endswith('.gguf'):
        name = name[: -len('.gguf')]
    kept = ''.join(c if c.isprintable() else '_' for c in name).strip()
    return kept or 'base'


class Cast:
    """Who can be talked to. May be asked from any thread."""

    def __init__(
        self,
        base: base_lib.BaseModel,
        folders: Sequence[pathlib.Path],
        *,
        user_name: str = macros.DEFAULT_USER_NAME,
        say: Callable[[str], None] = progress.say,
    ):
        """Reads the folders.

        Args:
            base: that all masks must be of.
            folders: of mask files, cards and runs.
            user_name: for `{{user}}` in character cards.
            say: takes a line for whoever joins, leaves or is refused.

        Raises:
            InputError: if a folder cannot be listed.
        """
        self._folders = [pathlib.Path(folder) for folder in folders]
        self._base = cast_files.Base.of(base)
        self._say, self._user_name = say, user_name
        self._refreshing = threading.Lock()
        self._known: dict[pathlib.Path, _Known] = {}
        self._pinned: dict[str, str] = {}
        self._dense = members_lib.Member(
            name=base_id(base),
            digest='',
            scale=None,
            sparsity=0.0,
            system_prompt='',
            persona=None,
            picture=None,
            source=None,
            created=int(os.stat(base.reader.path).st_mtime),
        )
        self._members = self._snapshot([])
        self.refresh()

    def _snapshot(
        self, found: Sequence[members_lib.Member]
    ) -> Mapping[str, members_lib.Member]:
        ordered = sorted(found, key=lambda member: member.name)
        every = {member.name: member for member in (self._dense, *ordered)}
        return types.MappingProxyType(every)

    @property
    def dense(self) -> members_lib.Member:
        """The base model."""
        return self._dense

    def members(self) -> Mapping[str, members_lib.Member]:
        """All there are now, by name: the base model first, the others by name."""
        return self._members

    def get(self, name: str) -> members_lib.Member | None:
        """The one of a name; None if there is none."""
        return self._members.get(name)

    def pin(self, members: Sequence[members_lib.Member]) -> None:
        """Remembers who has smaller weights, of the masks that they have now."""
        self._pinned = {member.name: member.digest for member in members}

    def refresh(self) -> bool:
        """Looks at the folders again, and says what is new.

        Returns:
            Whether anyone joined, left or changed.

        Raises:
            InputError: if a folder cannot be listed; the cast then stays as it is.
        """
        with self._refreshing:
            states = {
                path: state
                for folder in self._folders
                for path, state in cast_files.scan(folder).items()
            }
            if states == {path: known.state for path, known in self._known.items()}:
                return False
            before = self._known
            self._known = {
                path: self._look(path, state) for path, state in states.items()
            }
            for path, known in self._known.items():
                if known.reason and known is not before.get(path):
                    self._say(f'Not in the cast: {known.reason}')
            old, self._members = self._members, self._snapshot(self._named())
            return self._tell(old)

    def _look(self, path: pathlib.Path, state: cast_files.State) -> _Known:
        known = self._known.get(path)
        if known is not None and known.state == state:
            return known
        try:
            return _Known(
                state, cast_files.read(path, self._base, user_name=self._user_name)
            )
        except errors.InputError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  It must not stop the others.
            reason = f'cannot be read ({type(error).__name__}: {error}).'
        if not os.path.exists(path):  # It went away meanwhile.
            return _Known(state, None)
        where = inputs.shown(path)
        whole = reason if where in reason else f'{where}: {reason}'
        return _Known(state, None, errors.one_line(whole))

    def _named(self) -> list[members_lib.Member]:
        """All members, each under a name of its own."""
        found = {
            path: known.member
            for path, known in sorted(self._known.items())
            if known.member is not None
        }
        taken = {self._dense.name}
        short = [cast_files.names_of(path)[0] for path in found]
        count = collections.Counter(short)
        named = {}
        for path, name in zip(found, short, strict=True):
            if count[name] == 1 and name not in taken:
                named[path] = name
        taken |= set(named.values())
        for path in found:
            if path not in named:
                whole = name = cast_files.names_of(path)[1]
                number = 1
                while name in taken:
                    number += 1
                    name = f'{whole}-{number}'
                named[path] = name
                taken.add(name)
        return [
            # The same object where nothing changed.
            member
            if member.name == named[path]
            else dataclasses.replace(member, name=named[path])
            for path, member in found.items()
        ]

    def _tell(self, old: Mapping[str, members_lib.Member]) -> bool:
        new = self._members
        gone = [name for name in old if name not in new]
        fresh = [name for name in new if name not in old]
        both = [name for name in new if name in old]
        changed = [name for name in both if not _alike(old[name], new[name])]
        for name in gone:
            self._say(f'Left the cast: {name}.')
        for name in (*fresh, *changed):
            member = new[name]
            where = inputs.shown(member.source) if member.source else ''
            kind = 'In' if name in fresh else 'Changed in'
            self._say(
                f'{kind} the cast: {name} ({where}, {member.sparsity:.0%} of the '
                'channels pruned).'
            )
            if self._pinned.get(name, member.digest) != member.digest:
                self._say(
                    f'{name} has another mask than its own smaller weights (--pin), '
                    'and runs on those of everybody; start again to make new ones.'
                )
        return bool(gone or fresh or changed)


def _alike(old: members_lib.Member, new: members_lib.Member) -> bool:
    """Whether a file that was read again is of the same persona."""

    def content(member: members_lib.Member) -> tuple[object, ...]:
        return (
            member.digest,
            member.system_prompt,
            member.persona,
            member.picture,
            member.source,
        )

    return old is new or content(old) == content(new)
