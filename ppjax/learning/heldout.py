"""Persona likelihood: -log p of held-out answers under the persona prompt."""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from ppjax.data import chat, packing
from ppjax.learning import measure as measure_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding


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


def packed_batches(
    sets: Sequence[Sequence[chat.Example]],
    prefix: int,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[list[list[np.ndarray]], packing.PackedShape]:
    """Batches of several personas' examples, and one shape for them.

    On a mesh it has a row, or several, for each of the mesh's parts.

    Returns:
        (each persona's batches from `even_batches`, their shape).
    """
    batches = [even_batches(examples, batch_size) for examples in sets]
    shape = packing.plan_common_shape(
        list(zip(sets, batches, strict=True)),
        prefix=prefix,
        rows=1 if mesh is None else sharding.row_shards(mesh),
    )
    return batches, shape


class HeldOut:
    """Held-out examples, packed once and measured again and again."""

    def __init__(
        self,
        examples: Sequence[chat.Example],
        order: list[np.ndarray],
        shape: packing.PackedShape,
        mesh: jax.sharding.Mesh | None,
    ):
        """See `of_personas`; `order` is the examples of each batch."""
        self._order = order
        self._batches = [packing.pack(examples, batch, shape) for batch in order]
        self._measure = measure_lib.make_measure(shape, mesh)
        self.tokens = np.array([example.num_answer_tokens for example in examples])

    @classmethod
    def of_personas(
        cls,
        sets: Sequence[Sequence[chat.Example]],
        batch_size: int,
        mesh: jax.sharding.Mesh | None = None,
    ) -> list['HeldOut']:
        """Those of several personas, in one shape: measuring compiles once.

        Args:
            sets: each persona's examples.
            batch_size: examples at a time.
            mesh: the devices of the models to come; None for one.
        """
        if not sets:
            return []
        prefix = min(map(packing.common_prefix, sets))
        batches, shape = packed_batches(sets, prefix, batch_size, mesh)
        return [
            cls(examples, order, shape, mesh)
            for examples, order in zip(sets, batches, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.tokens)

    def measure(self, model: decoder_lib.Decoder, masks: masks_lib.Masks) -> Likelihood:
        """Measures the model under masks."""
        masks = masks.as_float32()
        nll = np.zeros(len(self.tokens))
        results = [self._measure(model, masks, batch) for batch in self._batches]
        for order, batch, values in zip(
            self._order, self._batches, results, strict=True
        ):
            real = batch.weights[0] > 0
            owners = order[batch.owners[0][real]]
            np.add.at(nll, owners, np.asarray(values, np.float64)[real])
        return Likelihood(nll, self.tokens)
