"""Gradients of the blocks' weights, and how much each unit matters by them.

To first order, removing a weight w changes the loss by w dL/dw; a unit's score is what
that comes to over all of its weights.

Source: LLM-Pruner, Ma et al., arXiv:2305.11627, section 3.2.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import processes
from ppjax.base import progress as progress_lib
from ppjax.baselines import batches as batches_lib
from ppjax.data import packing
from ppjax.learning import loss as loss_lib
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import weights as weights_lib
from ppjax.parallel import execution

# How a weight's share in the change of the loss is estimated: w g; w^2 times the mean
# of squared gradients of single sequences; the first less half of the second; or w g,
# summed over a row before its size is taken.
KINDS = ('first', 'second', 'mix', 'vectorize')

# Of a block's matrices, the axis that a unit's entries lie along (beside the layer's).
_CHANNEL_AXES = {'w_gate': 1, 'w_up': 1, 'w_down': 2}
_QUERY_AXES = {'w_q': 1, 'w_o': 2}
_KEY_AXES = {'w_k': 1, 'w_v': 1}
_MATRICES = (*_CHANNEL_AXES, *_QUERY_AXES, *_KEY_AXES)
_NORMS = ('attn_norm', 'ffn_norm')


class Scores(NamedTuple):
    """How much the loss would change without each unit, to first order.

    Attributes:
        channels: float64 [L, F].
        groups: of key/value heads with their query heads, float64 [L, K].
        blocks: float64 [L]; of matrices and norms, and by `first` alone.
    """

    channels: np.ndarray
    groups: np.ndarray
    blocks: np.ndarray


@functools.cache
def _make_gradients(
    shape: packing.PackedShape, remat: str, mesh: jax.sharding.Mesh | None
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Builds gradients(weights, masks, rows, tokens) -> (loss, gradients by name).

    The loss is the sum of -log p over the rows' answer tokens, divided by `tokens`.
    """

    def gradients(
        cfg: config_lib.ModelConfig,
        weights: weights_lib.Weights,
        masks: masks_lib.Masks,
        rows: packing.PackedBatch,
        tokens: float,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        own = {name: weights['blocks'][name] for name in (*_MATRICES, *_NORMS)}

        def loss(own: dict[str, jax.Array]) -> jax.Array:
            whole = weights | {'blocks': weights['blocks'] | own}
            decoder = weights_lib.decoder_of(cfg, whole)
            nll = loss_lib.answer_losses(
                decoder, masks, rows, shape, remat=remat, objective='ce'
            )
            return jnp.sum(nll * rows.weights) / tokens

        found, slopes = jax.value_and_grad(loss)(own)
        return found, jax.tree.map(lambda x: x.astype(jnp.float32), slopes)

    compiled = jax.jit(gradients, static_argnums=0)

    def over_mesh(*args: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return execution.call(mesh, compiled, *args)

    return over_mesh


@functools.partial(jax.jit, static_argnames=('kind',))
def _saliences(
    weights: dict[str, jax.Array],
    first: dict[str, jax.Array],
    squares: dict[str, jax.Array] | None,
    *,
    kind: str,
) -> dict[str, jax.Array]:
    """Of each matrix, the score of each row of a unit, [L, ...]; of norms, of all."""
    found = {}
    axes = _CHANNEL_AXES | _QUERY_AXES | _KEY_AXES
    for name, slope in first.items():
        w = weights[name].astype(jnp.float32)
        change = w * slope
        if squares is not None and name in axes:
            second = jnp.square(w) * squares[name]
            change = second if kind == 'second' else change - second / 2
        if name not in axes:
            found[name] = jnp.sum(jnp.abs(change), axis=-1)
        elif kind == 'vectorize':
            found[name] = jnp.abs(jnp.sum(change, axis=axes[name]))
        else:
            found[name] = jnp.sum(jnp.abs(change), axis=axes[name])
    return found


def _zeros(weights: weights_lib.Weights, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: jnp.zeros_like(weights['blocks'][name], jnp.float32) for name in names
    }


_add = jax.jit(lambda total, part: jax.tree.map(jnp.add, total, part), donate_argnums=0)
_add_squares = jax.jit(
    lambda total, part, share: {
        name: total[name] + jnp.square(part[name]) * share for name in total
    },
    donate_argnums=0,
)


def measure(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    batches: batches_lib.Batches,
    *,
    kind: str,
    official_fold: bool = False,
    remat: str = 'dots',
    mesh: jax.sharding.Mesh | None = None,
) -> Scores:
    """Scores of all units from texts; of those that a mask drops they are 0.

    Holds a float32 gradient of every weight of the blocks, two for `second` and `mix`,
    spread over the mesh as the weights are.

    Args:
        model: the dense model.
        masks: what of it is gone already.
        batches: the texts; for `second` and `mix`, of one sequence each.
        kind: one of `KINDS`.
        official_fold: see `_folded`.
        remat: what the backward pass recomputes.
        mesh: the devices.

    Raises:
        ValueError: if squares of single sequences are wanted of larger batches.
    """
    squared = kind in ('second', 'mix')
    if squared and batches.shape.rows != 1:
        raise ValueError(f'{kind!r} takes batches of one sequence.')
    weights = weights_lib.weights_of(model)
    gradients = _make_gradients(batches.shape, remat, mesh)
    masks = masks.as_float32()
    total = _zeros(weights, (*_MATRICES, *_NORMS))
    squares = _zeros(weights, _MATRICES) if squared else None
    count = len(batches.rows)
    progress = progress_lib.Progress('Gradients', count)
    for done, rows in enumerate(batches.rows, 1):
        # A mean over all tokens; squares are of each sequence's own mean.
        tokens = float(rows.weights.sum()) if squared else float(batches.targets)
        _, slopes = gradients(model.cfg, weights, masks, rows, tokens)
        if squares is not None:
            squares = _add_squares(squares, slopes, 1 / count)
            share = tokens / batches.targets
            slopes = jax.tree.map(lambda x, share=share: x * share, slopes)
        total = _add(total, slopes)
        progress.update(done)
    progress.close()
    own = {name: weights['blocks'][name] for name in total}
    found = _saliences(own, total, squares, kind=kind)
    return _scores(
        model.cfg,
        {name: np.asarray(processes.fetch(x), np.float64) for name, x in found.items()},
        official_fold=official_fold,
    )


def _scores(
    cfg: config_lib.ModelConfig, rows: dict[str, np.ndarray], *, official_fold: bool
) -> Scores:
    channels = sum(rows[name] for name in _CHANNEL_AXES)
    heads = sum(_per_head(rows[name], cfg.head_dim) for name in _KEY_AXES)
    for name in _QUERY_AXES:
        own = _per_head(rows[name], cfg.head_dim)
        heads = heads + _folded(own, cfg.num_kv_heads, official=official_fold)
    blocks = sum(x.sum(axis=-1) for name, x in rows.items() if name not in _NORMS)
    blocks = blocks + sum(rows[name] for name in _NORMS)
    return Scores(*map(np.asarray, (channels, heads, blocks)))


def _per_head(entries: np.ndarray, head_dim: int) -> np.ndarray:
    """[L, heads x H] summed over H."""
    return entries.reshape(len(entries), -1, head_dim).sum(axis=-1)


def _folded(heads: np.ndarray, groups: int, *, official: bool) -> np.ndarray:
    """Query heads [L, N] as the groups that they belong to, [L, K].

    Group g has the heads g r to (g + 1) r - 1. The code that LLM-Pruner released adds
    up every K-th head instead, and then removes those of the group (`official`).
    """
    if official:
        return heads.reshape(len(heads), -1, groups).sum(axis=1)
    return heads.reshape(len(heads), groups, -1).sum(axis=2)
