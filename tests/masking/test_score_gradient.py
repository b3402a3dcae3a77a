"""The score gradient against its closed form, from PyTorch's autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.masking import topk
from ppjax.models import masks as masks_lib

_KEEP = 31


def _closed_form(tiny, hf_answer_nll, examples, mask: np.ndarray) -> tuple:
    """(loss, sum_t a_ti (dL/dy_t . W_down_i)) with y the FFN's output.

    The mask multiplies what down_proj sees, so dL/dm_i is that sum, whatever m is.
    """
    activations, outputs, handles = [], [], []

    def mask_input(module, args):
        activations.append(args[0].detach())
        return args[0] * torch.tensor(mask[len(activations) - 1])

    def keep_output(module, args, y):
        y.requires_grad_(True)
        y.retain_grad()
        outputs.append(y)

    for block in tiny.hf.model.layers:
        handles.append(block.mlp.down_proj.register_forward_pre_hook(mask_input))
        handles.append(block.mlp.register_forward_hook(keep_output))
    try:
        loss = hf_answer_nll(tiny.hf, examples).mean()
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        tiny.hf.zero_grad()
    gradient = [
        torch.einsum('btf,btd,df->f', a, y.grad, block.mlp.down_proj.weight.detach())
        for a, y, block in zip(activations, outputs, tiny.hf.model.layers, strict=True)
    ]
    return loss.item(), torch.stack(gradient).numpy()


@pytest.mark.parametrize('name', ['llama', 'llama-biased', 'qwen3-tied'])
def test_score_gradient_is_the_closed_form(
    tiny_models, make_examples, hf_answer_nll, name
):
    tiny = tiny_models(name)
    examples = make_examples(6, prefix=5, seed=1)
    prefix = packing.common_prefix(examples)
    shape = packing.plan_shape(examples, [np.arange(6)], prefix=prefix, rows=2)
    rows = packing.pack(examples, range(6), shape).first()
    scores = jax.random.normal(jax.random.key(4), (3, 52))

    @jax.jit
    @jax.value_and_grad
    def loss(z, decoder):
        nll = loss_lib.answer_losses(
            decoder,
            masks_lib.Masks(topk.topk_mask(z, _KEEP)),
            rows,
            shape,
            remat='none',
            objective='ce',
        )
        return jnp.sum(nll * rows.weights) / jnp.sum(rows.weights)

    value, gradient = loss(scores, tiny.decoder)
    mask = np.asarray(topk.topk_mask(scores, _KEEP))
    want_value, want = _closed_form(tiny, hf_answer_nll, examples, mask)

    assert value == pytest.approx(want_value, rel=1e-5)
    scale = np.abs(want).max()
    np.testing.assert_allclose(gradient, want, atol=2e-5 * scale)
    dropped = mask == 0
    assert dropped.sum() == 3 * (52 - _KEEP)
    # A dropped channel hears what it would change, so that it can come back.
    assert np.abs(gradient[dropped]).min() > 0
    assert np.abs(gradient[dropped]).mean() > 0.1 * np.abs(gradient[~dropped]).mean()
