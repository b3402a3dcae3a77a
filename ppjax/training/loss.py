"""Cross-entropy of answer tokens (paper, Eq. 6), without [B, T, V] logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppjax.models import attention
from ppjax.models import decoder as decoder_lib

# Answer tokens whose logits exist at a time. 256 x 49,152 x 4 bytes = 50 MB.
_UNEMBED_CHUNK = 256


class Rows(NamedTuple):
    """One micro-batch of `data.packing.PackedBatch`; the same without [A]."""

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    sources: jax.Array
    targets: jax.Array
    weights: jax.Array
    owners: jax.Array


def token_nll(
    model: decoder_lib.Decoder, hidden: jax.Array, targets: jax.Array
) -> jax.Array:
    """-log p(target) for each hidden state, computed a chunk of tokens at a time.

    Args:
        model: whose unembedding is used.
        hidden: [M, D] after the final norm.
        targets: [M].

    Returns:
        [M] float32, in nats.
    """
    size = hidden.shape[0]
    chunk = min(size, _UNEMBED_CHUNK)
    padded = -size % chunk

    # Logits are recomputed in the backward pass instead of kept.
    @jax.checkpoint
    def nll(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, wanted = part
        logits = model.unembed(states)  # [chunk, V]
        chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    states = jnp.pad(hidden, ((0, padded), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    wanted = jnp.pad(targets, (0, padded)).reshape(-1, chunk)
    return jax.lax.map(nll, (states, wanted)).reshape(-1)[:size]


def answer_states(
    model: decoder_lib.Decoder,
    ffn_mask: jax.Array | None,
    rows: Rows,
    *,
    prefix: int,
    chunk: int,
    remat: str,
) -> jax.Array:
    """Hidden states that predict the answer tokens of packed rows.

    See `answer_nll` for the arguments.

    Returns:
        [B, M, D] after the final norm.
    """
    attend = attention.Packed(prefix, chunk, rows.segments)
    hidden, _, _ = model(rows.tokens, rows.positions, ffn_mask, attend, remat=remat)
    return jnp.take_along_axis(hidden, rows.sources[:, :, None], axis=1)


def answer_nll(
    model: decoder_lib.Decoder,
    ffn_mask: jax.Array | None,
    rows: Rows,
    *,
    prefix: int,
    chunk: int,
    remat: str,
) -> jax.Array:
    """-log p of every answer token of packed rows.

    Args:
        model: the frozen decoder.
        ffn_mask: [L, F], or None for the dense model.
        rows: one micro-batch; B rows of M answer tokens.
        prefix: P, static.
        chunk: C, static.
        remat: see `Decoder.__call__`.

    Returns:
        [B, M] float32, in nats; where `rows.weights` is 0, meaningless.
    """
    states = answer_states(
        model, ffn_mask, rows, prefix=prefix, chunk=chunk, remat=remat
    )
    flat = token_nll(
        model, states.reshape(-1, states.shape[-1]), rows.targets.reshape(-1)
    )
    return flat.reshape(rows.targets.shape)
