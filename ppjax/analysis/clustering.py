"""Which masks are alike: average linkage on 1 - J."""

import dataclasses

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance


@dataclasses.dataclass(frozen=True)
class Tree:
    """A dendrogram.

    Attributes:
        order: of the leaves, from one end to the other.
        merges: (places of the four corners, their distances) of each merge; a leaf
            at place n of the order is at n.
    """

    order: list[int]
    merges: list[tuple[list[float], list[float]]]


def tree(similarity: np.ndarray) -> Tree:
    """Of a table [N, N] with 1 on its diagonal, N of 2 at least, without NaN.

    Raises:
        ValueError: if it is none.
    """
    if len(similarity) < 2 or np.isnan(similarity).any():
        raise ValueError(f'wanted similarities of two at least, got {similarity}.')
    apart = 1 - (similarity + similarity.T) / 2
    np.fill_diagonal(apart, 0.0)
    linked = hierarchy.linkage(distance.squareform(apart), method='average')
    drawn = hierarchy.dendrogram(linked, no_plot=True)
    # SciPy's leaves are at 5, 15, 25, ...
    places = [[(x - 5) / 10 for x in corners] for corners in drawn['icoord']]
    return Tree(drawn['leaves'], list(zip(places, drawn['dcoord'], strict=True)))
