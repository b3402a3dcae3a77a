"""Several continuations of one text as a tree of tokens."""

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TokenTrie:
    """The distinct token prefixes of A sequences, N nodes with the empty one.

    Node 0 is the empty prefix, the end of the text before; a parent comes before
    its children.

    Attributes:
        tokens: int32 [N], the last token of each prefix; 0 at the root.
        parents: int32 [N]; the root is its own.
        depths: int32 [N], tokens of each prefix.
        ends: int32 [A], the node that is all of a sequence.
    """

    tokens: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    ends: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.tokens)

    def ancestors(self) -> np.ndarray:
        """bool [N, N]: row i is true at i and at every node on its way to the root."""
        seen = np.eye(self.num_nodes, dtype=bool)
        for node, parent in enumerate(self.parents.tolist()):
            seen[node] |= seen[parent]
        return seen

    def along_paths(self, steps: np.ndarray) -> np.ndarray:
        """Sums over the way from the root: [..., N] values -> [..., N] sums."""
        sums = np.array(steps, np.float64)
        for node, parent in enumerate(self.parents.tolist()):
            if node:
                sums[..., node] += sums[..., parent]
        return sums


def build(sequences: Sequence[Sequence[int]]) -> TokenTrie:
    """The tree of A token sequences, in the order in which prefixes first occur.

    Raises:
        ValueError: if a sequence is empty, or there are two alike.
    """
    if not all(sequences) or len(set(map(tuple, sequences))) != len(sequences):
        raise ValueError('sequences must be distinct, and none of them empty.')
    nodes: dict[tuple[int, ...], int] = {(): 0}
    parents = [0]
    for sequence in sequences:
        for length in range(1, len(sequence) + 1):
            prefix = tuple(sequence[:length])
            if prefix not in nodes:
                parents.append(nodes[prefix[:-1]])
                nodes[prefix] = len(nodes)
    return TokenTrie(
        tokens=np.array([prefix[-1] if prefix else 0 for prefix in nodes], np.int32),
        parents=np.array(parents, np.int32),
        depths=np.array([len(prefix) for prefix in nodes], np.int32),
        ends=np.array([nodes[tuple(sequence)] for sequence in sequences], np.int32),
    )
