"""The recovery step against PyTorch, and on eight devices against one."""

from collections.abc import Callable
import copy
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppjax.models import loading
from tests.recovery import unlikely

# Of `run_steps`.
STEPS = 3


def test_full_finetuning_is_pytorchs(
    tiny_models: Callable[[str], Any],
    run_steps: Callable[..., Any],
    make_examples: Callable[..., Any],
    hf_answer_nll: Callable[..., torch.Tensor],
) -> None:
    """AdamW on all weights, cosine schedule, tied embedding as one parameter."""
    tiny = tiny_models('llama-tied')
    ours = run_steps(tiny)
    hf = copy.deepcopy(tiny.hf)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-3, weight_decay=0.01)
    examples = make_examples(24, prefix=6)
    for number in range(STEPS):
        rate = 1e-3 * 0.5 * (1 + math.cos(math.pi * number / STEPS))
        optimizer.param_groups[0]['lr'] = rate
        loss = hf_answer_nll(hf, [examples[8 * number + i] for i in range(8)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert ours.metrics[number].loss == pytest.approx(loss.item(), rel=1e-5)
        norm = math.sqrt(sum((p.grad**2).sum().item() for p in hf.parameters()))
        assert ours.metrics[number].grad_norm == pytest.approx(norm, rel=1e-4)
    state = hf.state_dict()
    for attribute in ('w_q', 'w_down', 'attn_norm'):
        weight = loading.BLOCK_WEIGHTS[attribute]
        want = np.stack([state[weight.hf_name.format(i)].numpy() for i in range(3)])
        want = want.swapaxes(1, 2) if weight.transpose else want
        _assert_close(ours.state.trained['blocks'][attribute], want, 1e-5)
    want = state['model.embed_tokens.weight'].numpy()
    _assert_close(ours.state.trained['embedding'], want, 1e-5)
    before = tiny.decoder.embedding[...]
    assert np.abs(ours.state.trained['embedding'] - before).max() > 1e-3


def test_unlikelihood_is_pytorchs(
    tiny_models: Callable[[str], Any],
    run_steps: Callable[..., Any],
    make_examples: Callable[..., Any],
    hf_answer_nll: Callable[..., torch.Tensor],
) -> None:
    """-log(1 - p) of marked tokens, each loss a mean over its own, in any pieces."""
    tiny = tiny_models('llama-tied')
    examples = unlikely.mark_unlikely(make_examples(24, prefix=6))[:8]
    hf = copy.deepcopy(tiny.hf)
    avoided = [x for x in examples if x.unlikely is not None]
    loss = hf_answer_nll(hf, [x for x in examples if x.unlikely is None]).mean()
    p = torch.exp(-hf_answer_nll(hf, avoided))
    marked = torch.tensor(np.concatenate([x.unlikely for x in avoided]))
    unlikelihood = -torch.log(1 - p[marked]).mean()
    (loss + 0.5 * unlikelihood).backward()
    norm = math.sqrt(sum((w.grad**2).sum().item() for w in hf.parameters()))
    for micro_batches in (1, 2):
        ours = run_steps(tiny, unlikelihood=0.5, micro_batches=micro_batches).metrics[0]
        assert ours.loss == pytest.approx(loss.item(), rel=1e-5)
        # A difference of logarithms of sums, for small p.
        assert ours.unlikelihood == pytest.approx(unlikelihood.item(), abs=1e-6)
        assert ours.grad_norm == pytest.approx(norm, rel=1e-4)


def _assert_close(got: Any, want: Any, tolerance: float) -> None:
    """By the norm: Adam turns a gradient near 0 into a step of either sign."""
    got, want = np.asarray(got), np.asarray(want)
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.parametrize(
    ('mesh', 'how'),
    [
        ('fsdp:8', {}),
        ('data:2,fsdp:4', {}),
        ('data:2,fsdp:2,tensor:2', {}),
        ('data:2,fsdp:2,tensor:2', {'rank': 3}),
        ('data:2,fsdp:2,tensor:2', {'gains': True}),
        ('data:2,fsdp:2,tensor:2', {'gains': True, 'unlikelihood': 0.5}),
    ],
)
def test_eight_devices_do_what_one_does(
    tiny_even: Any, run_steps: Callable[..., Any], mesh: str, how: dict[str, Any]
) -> None:
    one = run_steps(tiny_even, **how)
    eight = run_steps(tiny_even, mesh=mesh, **how)
    for ours, theirs in zip(eight.metrics, one.metrics, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(eight.state.trained),
        jax.tree.leaves(one.state.trained),
        strict=True,
    ):
        _assert_close(ours, theirs, 1e-5)


def test_accumulation_changes_nothing(
    tiny_models: Callable[[str], Any], run_steps: Callable[..., Any]
) -> None:
    whole = run_steps(tiny_models('llama-tied'), micro_batches=1)
    pieces = run_steps(tiny_models('llama-tied'))
    for ours, theirs in zip(pieces.metrics, whole.metrics, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(pieces.state), jax.tree.leaves(whole.state), strict=True
    ):
        assert ours.dtype == theirs.dtype
    _assert_close(
        pieces.state.trained['blocks']['w_up'],
        whole.state.trained['blocks']['w_up'],
        1e-5,
    )


def test_masters_and_moments_are_float32_whatever_is_computed_in(
    tiny_models: Callable[[str], Any], run_steps: Callable[..., Any]
) -> None:
    tiny = tiny_models('llama-tied')
    rounded = run_steps(tiny, dtype='bfloat16')
    exact = run_steps(tiny)
    for leaf in jax.tree.leaves(rounded.state):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    assert rounded.metrics[0].loss == pytest.approx(exact.metrics[0].loss, rel=0.02)
    assert rounded.metrics[0].loss != exact.metrics[0].loss
    before = np.asarray(tiny.decoder.blocks.w_up.values[...])
    steps = [run.state.trained['blocks']['w_up'] - before for run in (rounded, exact)]
    alike = np.corrcoef(steps[0].ravel(), steps[1].ravel())[0, 1]
    assert alike > 0.8
