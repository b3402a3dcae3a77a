"""Intervals by resampling examples."""

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000


def ratio_interval(
    values: np.ndarray,
    tokens: np.ndarray,
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of sum(values) / sum(tokens) over examples.

    Examples, not tokens, are drawn: the tokens of one answer are not independent.

    Args:
        values: [n] a sum over the answer tokens of each example.
        tokens: [n] answer tokens.
        seed: of the draws.

    Raises:
        ValueError: if there are no examples, or the shapes differ.
    """
    if values.shape != tokens.shape or values.ndim != 1 or not len(tokens):
        raise ValueError(
            'values and tokens must be [n] with n at least 1, got '
            f'{values.shape} and {tokens.shape}.'
        )
    rng = np.random.default_rng(seed)
    count = len(tokens)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(count, size=count)
        means.append(values[drawn].sum() / tokens[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def grouped_interval(groups: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """95 % percentile interval of the mean over personas of their means.

    Answers are drawn within their persona, which keeps its share: the personas are
    those that were asked about, their answers a sample.

    Args:
        groups: persona -> the values of its answers.

    Raises:
        ValueError: if there is no persona, or one has no values.
    """
    if not groups or not all(len(values) for values in groups.values()):
        raise ValueError('groups must hold values for one persona at least.')
    rng = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for values in groups.values():
        drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
        means += np.asarray(values, np.float64)[drawn].mean(axis=1)
    low, high = np.quantile(means / len(groups), [0.025, 0.975])
    return float(low), float(high)
