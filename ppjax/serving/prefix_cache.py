"""Keys and values of what prompts start with, found again by content.

A prompt is cut into blocks. A block is known by the tokens up to its end and by what the
model that read them masks, never by a name: two personas with one mask share blocks, and
a persona whose file changed finds none of its old ones.
"""

import collections
from collections.abc import Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class _Known:
    tokens: bytes
    block: Any
    size: int


class PrefixCache:
    """Blocks within a limit in bytes; the least recently used goes first.

    One thread changes it; figures may be read by others.

    Attributes:
        limit: most bytes of all blocks.
        size: bytes that they have.
        hits: blocks that were found.
        misses: those looked for in vain.
    """

    def __init__(self, limit: int, block: int):
        """Args:
        limit: most bytes of all blocks together; 0 keeps none.
        block: tokens of a block.
        """
        self.limit, self.size = limit, 0
        self.hits = self.misses = 0
        self._length = block
        self._blocks: collections.OrderedDict[bytes, _Known] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def _keys(self, digest: str, tokens: np.ndarray) -> list[tuple[bytes, bytes]]:
        """(Key, own tokens) of every whole block of a text."""
        key = hashlib.blake2b(digest.encode(), digest_size=16).digest()
        found = []
        for end in range(self._length, len(tokens) + 1, self._length):
            own = np.asarray(tokens[end - self._length : end], np.int32).tobytes()
            key = hashlib.blake2b(key + own, digest_size=16).digest()
            found.append((key, own))
        return found

    def find(self, digest: str, tokens: np.ndarray) -> list[Any]:
        """The known blocks that a text starts with, in order.

        Args:
            digest: of what the model masks.
            tokens: int [T].
        """
        found = []
        keys = self._keys(digest, tokens)
        for key, own in keys:
            known = self._blocks.get(key)
            # Its own tokens too: what a hash says is very likely, and then certain.
            if known is None or known.tokens != own:
                break
            found.append(known.block)
        self._use([key for key, _ in keys[: len(found)]])
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    def unknown(self, digest: str, tokens: np.ndarray) -> list[int]:
        """Which blocks of a text are not there: their numbers."""
        keys = self._keys(digest, tokens)
        return [i for i, (key, _) in enumerate(keys) if key not in self._blocks]

    def add(
        self, digest: str, tokens: np.ndarray, blocks: Sequence[tuple[int, Any, int]]
    ) -> None:
        """Keeps blocks of a text.

        Args:
            digest: of what the model masks.
            tokens: of the text.
            blocks: (number, what is kept, its bytes).
        """
        keys = self._keys(digest, tokens)
        for number, block, size in blocks:
            key, own = keys[number]
            if size > self.limit or key in self._blocks:
                continue
            self._blocks[key] = _Known(own, block, size)
            self.size += size
        self._use([key for key, _ in keys])
        while self.size > self.limit:
            _, gone = self._blocks.popitem(last=False)
            self.size -= gone.size

    def clear(self) -> None:
        """Forgets all blocks."""
        self._blocks.clear()
        self.size = 0

    def _use(self, keys: Sequence[bytes]) -> None:
        """Remembers that blocks were used; later ones of a text are forgotten first.

        A block is of no use without those before it.
        """
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)
