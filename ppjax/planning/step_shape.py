"""The size of a mask learning step, where only its time and memory matter."""

import dataclasses

import numpy as np

from ppjax.data import chat, packing

QUESTION = 16  # Tokens between the persona and the answer.


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of one step.

    Attributes:
        persona: tokens of the prompt that all examples share.
        answer: tokens of every answer.
        batch: examples a step.
        layers: of the model.
    """

    persona: int
    answer: int
    batch: int
    layers: int

    @property
    def own(self) -> int:
        """Tokens of every example that are not shared."""
        return QUESTION + self.answer

    def examples(self, vocab: int) -> list[chat.Example]:
        """Random tokens of these lengths."""
        rng = np.random.default_rng(0)
        prefix = rng.integers(vocab, size=self.persona)
        return [
            chat.Example(
                np.concatenate([prefix, rng.integers(vocab, size=self.own)]).astype(
                    np.int32
                ),
                self.persona + QUESTION,
                str(number),
            )
            for number in range(self.batch)
        ]

    def packed(
        self, examples: list[chat.Example], *, rows: int = 1, micro_batches: int = 1
    ) -> packing.PackedShape:
        """How the step packs them; see `packing.plan_shape`."""
        return packing.plan_shape(
            examples,
            [np.arange(self.batch)],
            prefix=self.persona,
            rows=rows,
            micro_batches=micro_batches,
        )
