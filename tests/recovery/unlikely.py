"""Examples some of whose tokens are to be made unlikely."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from ppjax.data import chat


def mark_unlikely(examples: Sequence[chat.Example]) -> list[chat.Example]:
    """Every fourth has some answer tokens that are to be made unlikely."""
    rng = np.random.default_rng(4)
    return [
        dataclasses.replace(
            example, unlikely=rng.random(example.num_answer_tokens) < 0.6
        )
        if number % 4 == 3
        else example
        for number, example in enumerate(examples)
    ]
