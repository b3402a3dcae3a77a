"""Persona likelihood: -log p of held-out answers under the persona prompt."""

from collections.abc import Iterator, Sequence
import dataclasses

import jax
import numpy as np

from ppjax.data import chat, packing
from ppjax.models import decoder as decoder_lib
from ppjax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What one model makes of the held-out answers.

    Attributes:
        nll: [n] summed -log p of each example's answer tokens, in nats.
        tokens: [n] answer tokens of each example.
    """

    nll: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per answer token, over all tokens."""
        return float(self.nll.sum() / self.tokens.sum())


def even_batches(examples: Sequence[chat.Example], batch_size: int) -> list[np.ndarray]:
    """All examples once, in batches with about equally many tokens."""
    order = np.argsort([len(example.tokens) for example in examples], kind='stable')
    count = -(-len(order) // batch_size)
    return [order[start::count] for start in range(count)]


class HeldOut:
    """Held-out examples, packed once and measured again and again."""

    def __init__(
        self,
        examples: Sequence[chat.Example],
        prefix: tuple[int, ...],
        batch_size: int,
    ):
        self._examples = examples
        self._order = even_batches(examples, batch_size)
        self._layout = packing.plan_layout(examples, self._order, prefix=prefix)
        self._batches = [
            packing.pack(examples, batch, self._layout) for batch in self._order
        ]
        self._measure = step_lib.make_measure(self._layout)
        self.tokens = np.array([example.num_answer_tokens for example in examples])

    def __len__(self) -> int:
        return len(self._examples)

    def measure(
        self, model: decoder_lib.Decoder, mask: jax.Array | np.ndarray | None
    ) -> Likelihood:
        """Measures the model under a mask [L, F], or None for the dense one."""
        mask = None if mask is None else jax.numpy.asarray(mask, np.float32)
        nll = np.zeros(len(self._examples))
        results = [self._measure(model, mask, batch) for batch in self._batches]
        for order, batch, values in zip(
            self._order, self._batches, results, strict=True
        ):
            real = batch.weights[0] > 0
            owners = order[batch.owners[0][real]]
            np.add.at(nll, owners, np.asarray(values, np.float64)[real])
        return Likelihood(nll, self.tokens)


def activation_sums(
    model: decoder_lib.Decoder,
    examples: Sequence[chat.Example],
    prefix: tuple[int, ...],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, float]]:
    """Sums of squared FFN activations, batch by batch.

    Yields:
        (sums [L, F], tokens summed over), each for one batch.
    """
    batches = even_batches(examples, batch_size)
    layout = packing.plan_layout(examples, batches, prefix=prefix)
    sums = step_lib.make_activation_sums(layout)
    for batch in batches:
        square_sums, tokens = sums(model, packing.pack(examples, batch, layout))
        yield np.asarray(square_sums, np.float64), float(tokens)
