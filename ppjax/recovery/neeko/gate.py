"""Neeko's gate: which personas' blocks a description of a persona calls for.

A persona's gate vector is the mean last hidden state, over its text, of the model that
the blocks are added to; a description, of a persona that is known or not, is laid beside
all of them by its cosine.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from ppjax.base import errors
from ppjax.exporting import options
from ppjax.personas import prompts


def text_of(system_prompt: str) -> str:
    """The persona of a persona prompt, whose other words all personas share.

    Raises:
        InputError: if there is none.
    """
    text = prompts.persona_in(system_prompt) or system_prompt.strip()
    if not text:
        raise errors.InputError('A persona without a description has no gate vector.')
    return text


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the gate makes of a description.

    Attributes:
        cosines: float64 [P], of its vector with each block's.
        shares: float64 [P], that sum to 1: one 1 and zeros, or a mixture.
    """

    cosines: np.ndarray
    shares: np.ndarray

    @property
    def block(self) -> int:
        """The block with the largest share; of equal ones the first."""
        return int(np.argmax(self.shares))


def choose(
    vectors: np.ndarray,
    wanted: np.ndarray,
    *,
    gate: str = options.NEAREST,
    temperature: float = options.GATE_TEMPERATURE,
) -> Choice:
    """Lays a description's vector beside those of the blocks.

    Args:
        vectors: [P, D], none of them zeros.
        wanted: [D], no zeros either.
        gate: nearest, the block of the largest cosine alone (the first of equal ones);
            or mixture, a softmax of all cosines (Neeko's fusion).
        temperature: that cosines are divided by before the softmax.
    """
    cosines = similarities(np.vstack([wanted, vectors]))[0, 1:]
    if gate == options.NEAREST:
        shares = np.zeros(len(cosines))
        shares[np.argmax(cosines)] = 1
    else:
        shares = np.exp((cosines - cosines.max()) / temperature)
        shares /= shares.sum()
    return Choice(cosines, shares)


def similarities(vectors: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Cosines [P, P] of vectors [P, D], none of them zeros, float64."""
    found = np.asarray(vectors, np.float64)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit @ unit.T
