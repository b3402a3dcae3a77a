"""Which personas take each step of a run with many: a pure function of the settings."""

from collections.abc import Callable, Sequence

import numpy as np

from ppjax.training import step as step_lib


def plan_turns(totals: Sequence[int], per_step: int) -> list[dict[int, int]]:
    """The personas of every joint step, and how many of its own each took before.

    Those with the most steps left go first, which ends as early as any plan can.

    Args:
        totals: steps of each persona's own run.
        per_step: at most so many personas at a time.

    Returns:
        Persona -> its own steps before; each comes as often as it has steps.
    """
    left = list(totals)
    turns: list[dict[int, int]] = []
    while any(left):
        waiting = [persona for persona, steps in enumerate(left) if steps]
        chosen = sorted(waiting, key=lambda persona: (-left[persona], persona))
        chosen = sorted(chosen[:per_step])
        turns.append({persona: totals[persona] - left[persona] for persona in chosen})
        for persona in chosen:
            left[persona] -= 1
    return turns


def make_turn(
    chosen: Sequence[int],
    taken: Sequence[int],
    totals: Sequence[int],
    rates: Sequence[Callable[[int], float]],
    slots: int,
    gain_rates: Sequence[Callable[[int], float]] | None = None,
) -> step_lib.Turn:
    """One joint step's turn; slots that stay empty hold personas that sit it out.

    Args:
        chosen: the personas that take the step.
        taken: steps of its own that each persona has taken before.
        totals: steps of each persona's run in which its mask is learned.
        rates: learning rate by step of each persona.
        slots: N.
        gain_rates: the same of gains, where there are some.
    """
    idle = [persona for persona in range(len(totals)) if persona not in chosen]
    personas = [*chosen, *idle][:slots]

    def each(of: Callable[[int], float]) -> np.ndarray:
        return np.array([of(p) for p in personas], np.float32)

    return step_lib.Turn(
        persona=np.array(personas, np.int32),
        active=np.arange(slots) < len(chosen),
        step=np.array([taken[p] for p in personas], np.int32),
        progress=each(lambda p: min(taken[p] / max(totals[p], 1), 1.0)),
        learning_rate=each(lambda p: rates[p](taken[p])),
        gain_rate=gain_rates and each(lambda p: gain_rates[p](taken[p])),
    )
