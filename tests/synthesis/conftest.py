"""A plain reference for sensitivity: one full forward a query and persona."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch


def block_outputs(hf, tokens: Sequence[int]) -> np.ndarray:
    """[1 + L, D]: the embedding and each block's output at the last token.

    By hooks, because transformers normalises the last hidden state that it lists.
    """
    found = []

    def keep(module, inputs, output):
        del module, inputs
        value = output[0] if isinstance(output, tuple) else output
        found.append(value[0, -1].numpy().copy())

    handles = [hf.model.embed_tokens.register_forward_hook(keep)]
    handles += [layer.register_forward_hook(keep) for layer in hf.model.layers]
    with torch.no_grad():
        hf.model(torch.tensor([list(tokens)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return np.array(found)


def sensitivity(states: Sequence[np.ndarray], start: int, stop: int) -> float:
    """Eq. 2 from [1 + L, D] under the target and each reference."""
    target, *references = (
        np.asarray(state[start:stop], np.float64) for state in states
    )
    target = target / np.linalg.norm(target, axis=-1, keepdims=True)
    distances = [
        1 - np.sum(target * other / np.linalg.norm(other, axis=-1, keepdims=True), -1)
        for other in references
    ]
    return float(np.mean(distances))


@pytest.fixture(scope='session')
def plain_sensitivity():
    """(hf, prompts of each persona [r + 1][n], start, stop) -> scores [n]."""

    def scores(hf, prompts, start, stop):
        states = [[block_outputs(hf, tokens) for tokens in rows] for rows in prompts]
        return np.array(
            [sensitivity(column, start, stop) for column in zip(*states, strict=True)]
        )

    return scores
