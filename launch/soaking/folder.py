"""The folder of personas that a soak changes under the server."""

from collections.abc import Sequence
import os
import pathlib
import random
import shutil
import time

# By when a server must have seen a change.
SETTLED_SECONDS = 10.0
DAMAGED = 'damaged'


class Folder:
    """Files that come and go.

    Attributes:
        path: what the server watches.
    """

    def __init__(self, files: Sequence[pathlib.Path], path: pathlib.Path):
        self.path = path
        self._files = {file.stem: file for file in files}
        self._changed = dict.fromkeys(self._files, 0.0)
        path.mkdir(parents=True)
        for name in self._files:
            self._add(name)

    def _add(self, name: str) -> None:
        file = self._files[name]
        temporary = self.path / f'.{file.name}.tmp'
        shutil.copyfile(file, temporary)
        os.rename(temporary, self.path / file.name)

    def is_there(self, name: str) -> bool:
        """Whether it is, at this moment; what is no file of ours always is."""
        file = self._files.get(name)
        return file is None or (self.path / file.name).exists()

    def is_settled(self, name: str, since: float) -> bool:
        """Whether nothing of it has changed since a while before a time.

        Args:
            name: of a persona.
            since: of `time.monotonic`.
        """
        return self._changed.get(name, 0.0) < since - SETTLED_SECONDS or (
            self._changed.get(name, 0.0) == 0.0
        )

    def change(self, rng: random.Random) -> str:
        """Takes a file away or puts it back, or a damaged one; says which."""
        damaged = self.path / f'{DAMAGED}.pmask'
        if rng.random() < 0.2:
            if damaged.exists():
                damaged.unlink()
                return 'damaged file taken away'
            damaged.write_bytes(b'damaged' + rng.randbytes(rng.randrange(5000)))
            return 'damaged file added'
        there = [name for name in self._files if self.is_there(name)]
        absent = [name for name in self._files if name not in there]
        # One is left, and most are there most of the time.
        if absent and (len(there) < 2 or rng.random() < 0.6):
            name = rng.choice(absent)
            self._add(name)
        elif len(there) > 1:
            name = rng.choice(there)
            (self.path / self._files[name].name).unlink()
        else:
            return 'nothing'
        self._changed[name] = time.monotonic()
        return 'persona taken away' if name in there else 'persona added'

    def restore(self) -> None:
        """Puts all back."""
        for name in self._files:
            if not self.is_there(name):
                self._add(name)
                self._changed[name] = time.monotonic()
