"""What texts are about, as vectors: a model's mean last hidden states."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.models import attention, base_model, generation, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import tokens as tokens_lib
from ppjax.parallel import execution


class TextTokens(NamedTuple):
    """A text as a model reads it.

    Attributes:
        tokens: [T].
        own: bool [T], of those that are not what a tokenizer adds at the ends.
    """

    tokens: Sequence[int]
    own: np.ndarray


@jax.jit
def _mean_state(
    model: decoder_lib.Decoder, tokens: jax.Array, own: jax.Array
) -> jax.Array:
    """The mean hidden state [D] after the final norm of tokens [1, T] where own [1, T]."""
    positions = jnp.arange(tokens.shape[1])[None]
    attend = attention.causal(*tokens.shape)
    hidden, _, _ = model(tokens, positions, masks_lib.DENSE, attend)
    weights = own.astype(jnp.float32)[:, :, None]
    sums = jnp.sum(hidden.astype(jnp.float32) * weights, axis=(0, 1))
    return execution.whole(sums / jnp.sum(weights))


def tokens_of(base: base_model.BaseModel, texts: Sequence[str]) -> list[TextTokens]:
    """Texts as a model reads them.

    Raises:
        InputError: if one has no token or too many, or the tokenizer is unreadable.
    """
    tokenizer = base.tokenizer()
    special = np.array(tokenizer.all_special_ids, int)
    rows = []
    for text in texts:
        tokens = tokenizer.encode(text)
        tokens_lib.refuse_unembedded(tokens, base.config.vocab_size)
        own = ~np.isin(tokens, special)
        if not own.any() or len(tokens) > base.config.max_position:
            raise errors.InputError(
                f'A persona text of {int(own.sum())} tokens cannot be embedded: '
                f'{base.name} reads 1 to {base.config.max_position}.'
            )
        rows.append(TextTokens(tokens, own))
    return rows


def means(
    model: Any, texts: Sequence[TextTokens], mesh: jax.sharding.Mesh | None = None
) -> np.ndarray:
    """Mean last hidden states of texts, float64 [n, D].

    What a tokenizer adds at the ends is read by the model, and left out of the mean.

    Args:
        model: a decoder.
        texts: n of them.
        mesh: that the decoder lies on; None for one device.
    """
    found = []
    for tokens, own in progress_lib.over(texts, 'Embeddings'):
        # Padding comes last, where nothing that counts looks.
        width = ((0, generation.bucket(len(tokens)) - len(tokens)),)
        padded = (np.pad(np.asarray(x), width)[None] for x in (tokens, own))
        state = execution.call(mesh, _mean_state, model, *padded)
        found.append(np.asarray(state, np.float64))
    return np.stack(found)


def mean_states(
    base: base_model.BaseModel, texts: Sequence[str], *, dtype: str
) -> np.ndarray:
    """`means` of a model's own files.

    Raises:
        InputError: if the model is unreadable, or see `tokens_of`.
    """
    rows = tokens_of(base, texts)
    model = loading.load_decoder(
        base.reader,
        base.config,
        dtype=jnp.dtype(dtype),
        progress=progress_lib.counter('Loading tensors'),
    )
    return means(model, rows)
