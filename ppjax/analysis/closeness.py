"""Masks of one persona against masks of different ones."""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from ppjax.analysis import labels

RESAMPLES = 2000

# Whether a pair of masks counts.
Pairs = Callable[[labels.ComparedMask, labels.ComparedMask], bool]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean similarity.

    Attributes:
        value: the mean over personas, or pairs of them, of their own means.
        interval: 95 %, over personas; None where they are too few.
        pairs: of masks that it is of.
    """

    value: float
    interval: tuple[float, float] | None
    pairs: int


@dataclasses.dataclass(frozen=True)
class Closeness:
    """How alike masks are within and between personas; None where there are no pairs.

    Attributes:
        within: of one persona.
        between: of two personas.
        between_same: of two personas and one repetition; None if repetitions are
            numbered only.
        between_other: of two personas and two repetitions, as within is; None
            likewise.
        difference: within minus between, of two repetitions where these have names.
    """

    within: Mean | None
    between: Mean | None
    between_same: Mean | None
    between_other: Mean | None
    difference: Mean | None


def table(
    masks: Sequence[labels.ComparedMask],
    similarity: np.ndarray,
    personas: Sequence[str],
    counts: Pairs = lambda first, second: True,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean similarity of each two personas' masks.

    Args:
        masks: N of them.
        similarity: [N, N], symmetric.
        personas: P names, the order of the table.
        counts: whether a pair of different masks does.

    Returns:
        ([P, P], NaN where there is no pair; of how many pairs, int [P, P]). The
        diagonal is of masks of one persona.
    """
    places = {name: place for place, name in enumerate(personas)}
    sums = np.zeros((len(personas), len(personas)))
    numbers = np.zeros(sums.shape, int)
    for i, first in enumerate(masks):
        for j, second in enumerate(masks[:i]):
            if not counts(first, second):
                continue
            a, b = sorted((places[first.persona], places[second.persona]))
            sums[a, b] += similarity[i, j]
            numbers[a, b] += 1
    lower = np.tril_indices(len(personas), -1)
    sums[lower], numbers[lower] = sums.T[lower], numbers.T[lower]
    means = np.full(sums.shape, np.nan)
    np.divide(sums, numbers, out=means, where=numbers > 0)
    return means, numbers


def measure(
    masks: Sequence[labels.ComparedMask],
    similarity: np.ndarray,
    personas: Sequence[str],
    *,
    named: bool,
    seed: int = 0,
) -> Closeness:
    """Means within and between personas, with intervals over personas.

    Personas are drawn, not pairs: a persona is in many pairs. Masks of two personas
    that one seed was used for may be alike for that alone, as random scores and the
    order of examples are the same: what masks of one persona are compared with are
    those of two personas and two seeds.

    Args:
        masks: N of them.
        similarity: [N, N], symmetric.
        personas: P names.
        named: whether what repetitions are called means the same for all personas.
        seed: of the draws.
    """

    def between_seeds(alike: bool) -> _Sample:
        def counts(first: labels.ComparedMask, second: labels.ComparedMask) -> bool:
            return (first.repetition == second.repetition) == alike

        return _Sample.between(*table(masks, similarity, personas, counts))

    draws = np.random.default_rng(seed).multinomial(
        len(personas), [1 / len(personas)] * len(personas), size=RESAMPLES
    )
    every = table(masks, similarity, personas)
    within, between = _Sample.within(*every), _Sample.between(*every)
    same, other = (
        (between_seeds(alike=True), between_seeds(alike=False))
        if named
        else (None, None)
    )
    return Closeness(
        within.mean(draws),
        between.mean(draws),
        same.mean(draws) if same else None,
        other.mean(draws) if other else None,
        within.minus(other or between, draws),
    )


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Similarities of pairs of personas; the weight of one is the product of theirs.

    Attributes:
        values: [P, P], 0 where there is none.
        there: float [P, P], 1 where there is one.
        own: whether a pair is of one persona, whose weight is then its own.
        pairs: of masks.
    """

    values: np.ndarray
    there: np.ndarray
    own: bool
    pairs: int

    @classmethod
    def within(cls, means: np.ndarray, numbers: np.ndarray) -> '_Sample':
        return cls._of(means, numbers, np.eye(len(means), dtype=bool))

    @classmethod
    def between(cls, means: np.ndarray, numbers: np.ndarray) -> '_Sample':
        return cls._of(means, numbers, np.triu(np.ones(means.shape, bool), 1))

    @classmethod
    def _of(cls, means: np.ndarray, numbers: np.ndarray, part: np.ndarray) -> '_Sample':
        there = part & (numbers > 0)
        values = np.where(there, means, 0.0)
        own = bool(part.diagonal().all())
        return cls(values, there.astype(float), own, int(numbers[there].sum()))

    def _means(self, draws: np.ndarray) -> np.ndarray:
        """Weighted by how often personas [R, P] are drawn; NaN without a pair, [R]."""
        if self.own:
            sums, weights = (
                draws @ self.values.diagonal(),
                draws @ self.there.diagonal(),
            )
        else:
            sums, weights = (
                np.einsum('rp,pq,rq->r', draws, x, draws)
                for x in (self.values, self.there)
            )
        return np.divide(
            sums, weights, out=np.full(len(draws), np.nan), where=weights > 0
        )

    def _value(self) -> float:
        return float(self._means(np.ones((1, len(self.values))))[0])

    def mean(self, draws: np.ndarray) -> Mean | None:
        if not self.pairs:
            return None
        interval = _interval(self._means(draws)) if self._enough() else None
        return Mean(self._value(), interval, self.pairs)

    def minus(self, other: '_Sample', draws: np.ndarray) -> Mean | None:
        """The difference, of the same draws of personas."""
        if not (self.pairs and other.pairs):
            return None
        enough = self._enough() and other._enough()
        interval = None
        if enough:
            interval = _interval(self._means(draws) - other._means(draws))
        value = self._value() - other._value()
        return Mean(value, interval, self.pairs + other.pairs)

    def _enough(self) -> bool:
        """Whether there are three personas at least: of two, any draw is the same pair."""
        return int((self.there.any(axis=0) | self.there.any(axis=1)).sum()) >= 3


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
