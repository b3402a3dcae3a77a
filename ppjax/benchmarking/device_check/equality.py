"""Losses, gradients of scores and logits of float32 models, here and on the CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.benchmarking.device_check import shapes
from ppjax.benchmarking.device_check import sizes as sizes_lib
from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.masking import topk
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.planning import step_shape

# Of the largest value: float32 sums of some thousand terms, in another order.
TOLERANCE = 1e-4
_TINY_STEP = (24, 16, 3)
_STEP = (64, 32, 4)
_SPARSITY = 0.25


@functools.partial(jax.jit, static_argnames=('packed', 'keep'))
def outputs(
    scores: jax.Array,
    model: decoder_lib.Decoder,
    rows: packing.PackedBatch,
    *,
    packed: packing.PackedShape,
    keep: int,
) -> dict[str, jax.Array]:
    """What a step computes of a model, before its optimizer.

    Args:
        scores: z [L, F].
        model: whose weights are frozen.
        rows: one micro-batch, B rows of M answer tokens.
        packed: its shape.
        keep: k.

    Returns:
        losses [B, M], gradient of their mean by the scores [L, F], and the masked
        model's logits [B, M, V].
    """

    def masks(scores: jax.Array) -> masks_lib.Masks:
        return masks_lib.Masks(channels=topk.topk_mask(scores, keep))

    def mean(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = loss_lib.answer_losses(
            model, masks(scores), rows, packed, remat='dots', objective='ce'
        )
        losses = losses * rows.weights
        return jnp.sum(losses) / jnp.sum(rows.weights), losses

    (_, losses), gradient = jax.value_and_grad(mean, has_aux=True)(scores)
    hidden = loss_lib.answer_states(model, masks(scores), rows, packed, remat='none')
    return {
        'losses': losses,
        'score_gradients': gradient,
        'logits': model.unembed(hidden),
    }


def differences(got: dict[str, Any], want: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How far apart two sides' arrays are, each beside its largest value.

    `is_equal` is whether all numbers are finite and no difference exceeds `TOLERANCE`
    of the largest value.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, other in want.items():
        mine, theirs = np.asarray(got[name], np.float64), np.asarray(other, np.float64)
        is_finite = bool(np.isfinite(mine).all() and np.isfinite(theirs).all())
        if not is_finite:
            found[name] = {'is_finite': False, 'is_equal': False}
            continue
        most, largest = (float(np.abs(x).max()) for x in (mine - theirs, theirs))
        found[name] = {
            'is_finite': True,
            'largest_difference': most,
            'largest_value': largest,
            'is_equal': most <= TOLERANCE * largest,
        }
    return found


def _one(
    shaped: shapes.Shaped,
    step: step_shape.Shape,
    devices: tuple[jax.Device, jax.Device],
) -> dict[str, Any]:
    cfg = shaped.config
    examples = step.examples(cfg.vocab_size)
    packed = step.packed(examples)
    rows = packing.pack(examples, np.arange(step.batch), packed).first()
    cpu = devices[1]
    with jax.default_device(cpu):
        model = shapes.random_model(cfg, jnp.float32)
        scores = jax.random.normal(jax.random.key(1), (cfg.num_layers, cfg.d_ff))
    keep = topk.keep_size(cfg.d_ff, _SPARSITY, 1)
    sides = []
    for device in devices:
        args = jax.device_put((scores, model, rows), device)
        with jax.default_matmul_precision('highest'):
            sides.append(jax.device_get(outputs(*args, packed=packed, keep=keep)))
    return shaped.figures() | {'differences': differences(*sides)}


def measure(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    """Compares a tiny model, and one of SmolLM2's shape where sizes are full.

    Raises:
        InputError: if JAX has no CPU beside the device.
    """
    device = jax.devices()[0]
    try:
        cpu = jax.devices('cpu')[0]
    except RuntimeError:
        raise errors.InputError(
            'JAX has no CPU to compare with; leave JAX_PLATFORMS unset, or end it in '
            ',cpu.'
        ) from None
    tiny = shapes.shaped(shapes.SMOLLM2, tiny=True)
    wanted = [(tiny, _TINY_STEP)]
    if not sizes.is_tiny:
        wanted.append((sizes.shaped(shapes.SMOLLM2), _STEP))
    models = [
        _one(shaped, step_shape.Shape(*step, shaped.config.num_layers), (device, cpu))
        for shaped, step in wanted
    ]
    return {
        'compared': f'{device.platform} with cpu',
        # Of a CPU with itself nothing follows.
        'is_of_two_platforms': device.platform != cpu.platform,
        'dtype': 'float32',
        'tolerance': TOLERANCE,
        'is_equal': all(
            found['is_equal']
            for model in models
            for found in model['differences'].values()
        ),
        'models': models,
    }
