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
    prefixes: Sequence[tuple[int, ...]],
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[list[list[np.ndarray]], list[packing.Layout]]:
    """Batches of several personas' examples, and layouts of one shape for them.

    On a mesh the layouts have a row, or several, for each of its parts.

    Returns:
        (each persona's batches from `even_batches`, each persona's layout).
    """
    batches = [even_batches(examples, batch_size) for examples in sets]
    layouts = packing.plan_layouts(
        list(zip(sets, batches, strict=True)),
        prefixes,
        rows=1 if mesh is None else sharding.row_shards(mesh),
    )
    return batches, layouts


class HeldOut:
    """Held-out examples, packed once and measured again and again."""

    def __init__(
        self,
        examples: Sequence[chat.Example],
        prefix: tuple[int, ...],
        batch_size: int,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Args:
        examples: to measure on.
        prefix: token ids that all of them start with.
        batch_size: examples at a time.
        mesh: the devices of the models to come; None for one.
        """
        [order], [layout] = packed_batches([examples], [prefix], batch_size, mesh)
        self._setup(examples, order, layout, mesh)

    @classmethod
    def of_personas(
        cls,
        sets: Sequence[Sequence[chat.Example]],
        prefixes: Sequence[tuple[int, ...]],
        batch_size: int,
        mesh: jax.sharding.Mesh | None = None,
    ) -> list['HeldOut']:
        """The same for several personas, in one shape: measuring compiles once."""
        found = []
        for examples, order, layout in zip(
            sets, *packed_batches(sets, prefixes, batch_size, mesh), strict=True
        ):
            heldout = cls.__new__(cls)
            heldout._setup(examples, order, layout, mesh)
            found.append(heldout)
        return found

    def _setup(
        self,
        examples: Sequence[chat.Example],
        order: list[np.ndarray],
        layout: packing.Layout,
        mesh: jax.sharding.Mesh | None,
    ) -> None:
        self._order = order
        self._batches = [packing.pack(examples, batch, layout) for batch in order]
        self._measure = measure_lib.make_measure(len(layout.prefix), layout.chunk, mesh)
        self.tokens = np.array([example.num_answer_tokens for example in examples])

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
