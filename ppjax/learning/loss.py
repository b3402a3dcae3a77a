"""Losses of answer tokens (paper, Eq. 6), without [B, T, V] logits."""

import jax
import jax.numpy as jnp

from ppjax.data import packing
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

OBJECTIVES = ('ce', 'kl', 'ce+kl')

# Answer tokens whose logits exist at a time, at most: 256 x 49,152 x 4 bytes = 50 MB. All
# pieces are as long, a multiple of what products like.
_UNEMBED_CHUNK = 256
_MULTIPLE = 8


def token_losses(
    model: decoder_lib.Decoder,
    hidden: jax.Array,
    targets: jax.Array,
    dense_hidden: jax.Array | None,
    *,
    objective: str,
    unlikely: jax.Array | None = None,
) -> jax.Array:
    """The loss at each hidden state, computed a chunk of tokens at a time.

    `ce` is -log p(target); `kl` the divergence of the dense model's distribution from
    the model's, sum_v d_v (log d_v - log p_v); `ce+kl` their sum. Where the target is
    to be made unlikely the loss is -log(1 - p(target)) (Welleck et al.,
    arXiv:1908.04319, Eq. 4), whatever the objective.

    Args:
        model: whose unembedding is used.
        hidden: [M, D] after the final norm.
        targets: [M].
        dense_hidden: [M, D] of the dense model, or None for `ce`.
        objective: one of `OBJECTIVES`.
        unlikely: bool [M], or None for nowhere.

    Returns:
        [M] float32, in nats.
    """
    size = hidden.shape[0]
    pieces = -(-size // _UNEMBED_CHUNK)
    chunk = -(-size // pieces)
    chunk += -chunk % _MULTIPLE
    padded = pieces * chunk - size

    # Logits are recomputed in the backward pass instead of kept.
    @jax.checkpoint
    def losses(part: tuple[jax.Array | None, ...]) -> jax.Array:
        states, wanted, dense_states, avoided = part
        assert states is not None and wanted is not None
        logits = model.unembed(states)  # [chunk, V]
        total = jax.nn.logsumexp(logits, axis=-1)
        loss = jnp.zeros(chunk)
        if 'ce' in objective:
            chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
            loss += total - chosen
        if dense_states is not None:
            dense = jax.nn.log_softmax(model.unembed(dense_states), axis=-1)
            dense = jax.lax.stop_gradient(dense)
            ratio = dense - logits + total[:, None]
            loss += jnp.sum(jnp.exp(dense) * ratio, axis=-1)
        if avoided is not None:
            # 1 - p from the other tokens: by subtraction nothing is left of a sure one.
            own = jnp.arange(logits.shape[-1])[None] == wanted[:, None]
            rest = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
            loss = jnp.where(avoided, total - rest, loss)
        return loss

    def fold(x: jax.Array | None) -> jax.Array | None:
        if x is None:
            return None
        x = jnp.pad(x, ((0, padded), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(-1, chunk, *x.shape[1:])

    parts = (fold(hidden), fold(targets), fold(dense_hidden), fold(unlikely))
    return jax.lax.map(losses, parts).reshape(-1)[:size]


def answer_states(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    rows: packing.PackedBatch,
    shape: packing.PackedShape,
    *,
    remat: str,
) -> jax.Array:
    """Hidden states that predict the answer tokens of packed rows.

    See `answer_losses` for the arguments.

    Returns:
        [B, M, D] after the final norm.
    """
    shape.check(rows)
    hidden, _, _ = model(
        rows.tokens,
        rows.positions,
        masks,
        shape.attend(rows.segments),
        remat=remat,
    )
    return jnp.take_along_axis(hidden, rows.sources[:, :, None], axis=1)


def answer_losses(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    rows: packing.PackedBatch,
    shape: packing.PackedShape,
    *,
    remat: str,
    objective: str,
    avoids: bool = False,
) -> jax.Array:
    """The loss at every answer token of packed rows.

    Args:
        model: the frozen decoder.
        masks: what of it is masked.
        rows: one micro-batch; B rows of M answer tokens.
        shape: of the batch, static.
        remat: see `Decoder.__call__`.
        objective: see `token_losses`. With `kl`, the dense model runs too.
        avoids: whether some tokens are to be made unlikely.

    Returns:
        [B, M] float32, in nats; where `rows.weights` is 0, meaningless.
    """

    def states(masks: masks_lib.Masks, remat: str) -> jax.Array:
        found = answer_states(model, masks, rows, shape, remat=remat)
        return found.reshape(-1, found.shape[-1])

    flat = token_losses(
        model,
        states(masks, remat),
        rows.targets.reshape(-1),
        states(masks_lib.DENSE, 'none') if 'kl' in objective else None,
        objective=objective,
        unlikely=rows.weights.reshape(-1) < 0 if avoids else None,
    )
    return flat.reshape(rows.targets.shape)
