"""How much of what masks keep they have in common."""

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """What pairs of N masks share, layer by layer.

    Attributes:
        shared: int64 [L, N, N], how many units both keep.
        units: F, of each layer.
    """

    shared: np.ndarray
    units: int

    @classmethod
    def of(cls, masks: Sequence[np.ndarray]) -> 'Overlaps':
        """Of masks bool [L, F], all of one shape.

        Raises:
            ValueError: if they are not, or there is none.
        """
        shapes = {mask.shape for mask in masks}
        if len(shapes) != 1 or any(mask.dtype != np.bool_ for mask in masks):
            raise ValueError(f'masks must be bool [L, F] of one shape, got {shapes}.')
        layers = []
        for layer in range(len(masks[0])):
            # A matrix product of floats, which is exact below 2^24, is far faster.
            rows = np.stack([mask[layer] for mask in masks]).astype(np.float32)
            layers.append((rows @ rows.T).astype(np.int64))
        return cls(np.stack(layers), masks[0].shape[1])

    @property
    def widths(self) -> np.ndarray:
        """How many units each mask keeps, [L, N]."""
        return np.diagonal(self.shared, axis1=1, axis2=2)

    def by_layer(self) -> np.ndarray:
        """Jaccard similarity in every layer, [L, N, N]."""
        return _jaccard(self.shared.astype(np.float64), self.widths)

    def jaccard(self) -> np.ndarray:
        """Jaccard similarity over all layers, [N, N].

            J(A, B) = |A and B| / |A or B|

        Source: Persona-Pruner, arXiv:2606.14695, stability of sub-networks.
        """
        return _jaccard(self.shared.sum(axis=0, dtype=np.float64), self.widths.sum(0))

    def chance(self) -> np.ndarray:
        """J of masks that keep as many units in every layer, but any, [N, N].

        Two such masks share k_a k_b / F units of a layer on average. The ratio of
        means stands for the mean of ratios, from which it differs by O(1 / L F).
        """
        return _jaccard(self._expected().sum(axis=0), self.widths.sum(axis=0))

    def chance_by_layer(self) -> np.ndarray:
        """The same in every layer, [L, N, N]."""
        return _jaccard(self._expected(), self.widths)

    def _expected(self) -> np.ndarray:
        widths = self.widths.astype(np.float64)
        return widths[:, :, None] * widths[:, None, :] / self.units


def _jaccard(shared: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """From what is shared [..., N, N] and the widths [..., N], which are above 0."""
    either = widths[..., :, None] + widths[..., None, :] - shared
    return shared / either
