"""The size of a mask learning step, where only its time and memory matter."""

import dataclasses

import numpy as np

from ppjax.data import chat, packing
from ppjax.models import config as config_lib
from ppjax.planning import useful_flops
from ppjax.training import step as step_lib
from ppjax.training import turns

QUESTION = 16  # Tokens between the persona and the answer.
# Of steps whose masks nobody uses.
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.01


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

    def useful_flops(
        self, cfg: config_lib.ModelConfig, *, dense_too: bool = False
    ) -> float:
        """See `useful_flops.mask_step`."""
        return useful_flops.mask_step(
            cfg,
            prefix=self.persona,
            own=[self.own] * self.batch,
            answers=self.answer * self.batch,
            dense_too=dense_too,
        )


def plain_learning(
    keep: int, *, remat: str, objective: str = 'ce'
) -> step_lib.Learning:
    """The settings of a step where only its time and memory matter.

    Args:
        keep: k.
        remat: see `Decoder.__call__`.
        objective: one of `loss.OBJECTIVES`.
    """
    return step_lib.Learning(
        keep=keep,
        estimator='ste',
        objective=objective,
        anneal=0.0,
        weight_decay=WEIGHT_DECAY,
        remat=remat,
        seed=0,
    )


def plain_turn(taken: int = 0, *, of: int = 1, slots: int = 1) -> step_lib.Turn:
    """A turn of as many personas as there are slots.

    Args:
        taken: steps that each has taken before.
        of: steps of each one's run.
        slots: N.
    """
    rates = [lambda _: LEARNING_RATE] * slots
    return turns.make_turn(range(slots), [taken] * slots, [of] * slots, rates, slots)
