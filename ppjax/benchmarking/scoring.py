"""Sensitivity scoring against a plain PyTorch loop, side by side.

The plain way, as the authors' released scorer goes: every prompt in full, persona by
persona, in padded batches of 8.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config, inputs, torch_model
from ppjax.evaluation import timing
from ppjax.models import base_model, loading
from ppjax.synthesis import prompt_tokens, selection, sensitivity

_BATCH = 8
# Of the authors' released scorer: hidden states 5 to 24.
_AUTHORS_LAYERS = (5, 25)


def plain_states(model: Any, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """[n, 1 + L, D]: embedding and block outputs at each prompt's last token."""
    import torch

    states = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        lengths = torch.tensor([len(prompt) for prompt in batch])
        tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for row, prompt in zip(tokens, batch, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        tokens, lengths = tokens.to(model.device), lengths.to(model.device)
        places = torch.arange(tokens.shape[1], device=model.device)
        inside = places[None] < lengths[:, None]
        found: list[Any] = []

        def keep(
            module: Any,
            inputs: Any,
            output: Any,
            found: list[Any] = found,
            last: Any = lengths - 1,
        ) -> None:
            del module, inputs
            value = output[0] if isinstance(output, tuple) else output
            found.append(value[torch.arange(len(last), device=last.device), last])

        # By hooks: the last of transformers' listed hidden states is normalised.
        handles = [model.model.embed_tokens.register_forward_hook(keep)]
        handles += [layer.register_forward_hook(keep) for layer in model.model.layers]
        with torch.no_grad():
            model.model(tokens, attention_mask=inside.long(), use_cache=False)
        for handle in handles:
            handle.remove()
        states.append(torch.stack(found, dim=1).cpu().numpy())
    return np.concatenate(states)


def plain_scores(states: Sequence[np.ndarray], layers: tuple[int, int]) -> np.ndarray:
    """Eq. 2 from the states under the target (first) and each reference."""
    target, *references = (
        np.asarray(state[:, slice(*layers)], np.float64) for state in states
    )

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    distances = [
        1 - np.sum(unit(target) * unit(reference), axis=-1) for reference in references
    ]
    return np.mean(distances, axis=(0, 2))


def _ours(
    model: Any, prompts: prompt_tokens.PromptTokens, layers: tuple[int, int]
) -> np.ndarray:
    scorer = sensitivity.Scorer(model, prompts, layers=layers, batch_tokens=2048)
    found = np.zeros(len(prompts.suffixes))
    for queries, scores in scorer.score():
        found[queries] = scores
    return found


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Times both and compares their scores.

    Returns:
        Seconds, their ratio, and for Eq. 2 and the authors' layers the largest
        difference and whether the top 40% come in the same order.
    """
    base = base_model.open_base_model(cfg.base_model)
    personas = inputs.personas(cfg)
    rendering, prompts = timing.timed(
        prompt_tokens.render,
        inputs.renderer(cfg, base),
        [persona.system_prompt for persona in personas],
        [row.query for row in inputs.queries(cfg)],
        max_length=cfg.max_length,
    )
    whole = [
        [[*prefix, *suffix.tolist()] for suffix in prompts.suffixes]
        for prefix in prompts.prefixes
    ]
    theirs = torch_model.load(base).to(torch_model.device())
    progress_lib.say(f'PyTorch, {sum(map(len, whole))} prompts in batches of {_BATCH}')
    taken = [
        timing.timed(plain_states, theirs, rows)
        for rows in progress_lib.over(whole, 'PyTorch')
    ]
    plain_seconds = sum(spent for spent, _ in taken)
    states = [found for _, found in taken]

    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    eq2 = (1, base.config.num_layers + 1)
    # The first time compiles, or reads compiled code from disk.
    (first, _), (second, ours) = (
        timing.timed(_ours, model, prompts, eq2) for _ in range(2)
    )
    found: dict[str, Any] = {
        'queries': len(prompts.suffixes),
        'personas': len(personas),
        'prompt_tokens': sum(len(p) for rows in whole for p in rows),
        'pytorch_seconds': plain_seconds,
        'ppjax_seconds': second + rendering,
        'ppjax_first_seconds': first + rendering,
        'ratio_to_reference': plain_seconds / (second + rendering),
        'ratio_to_reference_first': plain_seconds / (first + rendering),
    }
    compared = {'eq2': (eq2, ours)}
    if base.config.num_layers + 1 >= _AUTHORS_LAYERS[1]:
        again = _ours(model, prompts, _AUTHORS_LAYERS)
        compared['authors'] = (_AUTHORS_LAYERS, again)
    for name, (layers, got) in compared.items():
        want = plain_scores(states, layers)
        found[name] = {
            'max_difference': float(np.abs(got - want).max()),
            'standard_deviation': float(np.std(want)),
            'same_top_40_percent': bool(
                np.array_equal(selection.select(got, 0.4), selection.select(want, 0.4))
            ),
        }
    return found
