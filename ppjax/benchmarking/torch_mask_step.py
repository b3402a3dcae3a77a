"""Mask learning as one would write it in PyTorch without ppjax.

transformers' model with frozen weights, a straight-through top-k mask before every
`down_proj`, batches padded to their longest example, and the model's own loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppjax.benchmarking import torch_model
from ppjax.data import chat


def padded(
    examples: Sequence[chat.Example], batch: Sequence[int] | np.ndarray
) -> dict[str, np.ndarray]:
    """A batch as the arguments of a transformers model, int64 [B, longest]."""
    longest = max(len(examples[item].tokens) for item in batch)
    shape = (len(batch), longest)
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, -100)
    for row, item in enumerate(batch):
        example, length = examples[item], len(examples[item].tokens)
        tokens[row, :length] = example.tokens
        mask[row, :length] = 1
        answer = slice(example.answer_start, length)
        labels[row, answer] = example.tokens[answer]
    return {'input_ids': tokens, 'attention_mask': mask, 'labels': labels}


class MaskLearner:
    """Scores z [L, F] over a frozen transformers model, and their AdamW."""

    def __init__(
        self,
        model: Any,
        scores: np.ndarray,
        keep: int,
        *,
        learning_rate: float,
        weight_decay: float,
        compiled: bool = False,
        dynamic: bool = True,
    ):
        """Puts masks into the model, for good.

        Args:
            model: transformers' model; its weights are frozen.
            scores: z at the start.
            keep: k.
            learning_rate: of AdamW, constant.
            weight_decay: of AdamW.
            compiled: whether `torch.compile` compiles the model, at its first call.
            dynamic: whether what is compiled is for batches of any length.
        """
        import torch

        self._torch, self._model, self._keep = torch, model.requires_grad_(False), keep
        self.scores = torch.nn.Parameter(
            torch.tensor(scores, dtype=torch.float32, device=model.device)
        )
        self._optimizer = torch.optim.AdamW(
            [self.scores], lr=learning_rate, weight_decay=weight_decay
        )
        for layer, block in enumerate(model.model.layers):
            block.mlp.down_proj.register_forward_pre_hook(self._masking(layer))
        self._call = torch.compile(model, dynamic=dynamic) if compiled else model

    def _masking(self, layer: int) -> Any:
        torch = self._torch

        def mask(module: Any, inputs: tuple[Any]) -> tuple[Any]:
            del module
            (hidden,) = inputs
            scores = self.scores[layer]
            kept = torch.topk(scores, self._keep).indices
            hard = torch.zeros_like(scores).scatter(0, kept, 1.0)
            # Straight through: its value is the mask, its gradient the scores'.
            through = hard + scores - scores.detach()
            return (hidden * through.to(hidden.dtype),)

        return mask

    def gradient(self, batch: dict[str, np.ndarray]) -> float:
        """Leaves the loss's gradient at the scores.

        Returns:
            The loss, in nats an answer token.
        """
        device = self._model.device
        inputs = {
            name: self._torch.from_numpy(x).to(device) for name, x in batch.items()
        }
        self._optimizer.zero_grad()
        loss = self._call(**inputs, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """One optimizer step; the loss before it."""
        loss = self.gradient(batch)
        self._optimizer.step()
        # Else whoever is measured next would wait for it.
        torch_model.wait_for(self._model.device)
        return loss
