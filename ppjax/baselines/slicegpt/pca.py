"""Principal directions of a stream, in float64 on the host."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Covariance:
    """sum over tokens of x x^T, [D, D]; tokens of padding must be 0."""

    sums: np.ndarray

    @classmethod
    def empty(cls, width: int) -> 'Covariance':
        """Of no token yet."""
        return cls(np.zeros((width, width)))

    def add(self, part: np.ndarray) -> None:
        """That of further tokens."""
        self.sums += part

    def directions(self) -> np.ndarray:
        """Orthogonal Q [D, D], whose columns are in the order of what they carry.

        A column's sign is that of its largest entry, so that it does not depend on the
        library that finds it.
        """
        _, vectors = np.linalg.eigh((self.sums + self.sums.T) / 2)
        vectors = vectors[:, ::-1]
        largest = np.abs(vectors).argmax(axis=0)
        signs = np.sign(vectors[largest, np.arange(len(vectors))])
        return vectors * np.where(signs == 0, 1, signs)

    def carried(self, own: np.ndarray) -> float:
        """What share of the energy some orthogonal directions [D, W] have."""
        energy = np.einsum('dw,de,ew->', own, self.sums, own)
        return float(energy / max(np.trace(self.sums), 1e-30))
