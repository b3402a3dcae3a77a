"""What personas' texts are about, as vectors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.analysis import config, sources
from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.chat_api import embedding_client
from ppjax.masking import apply
from ppjax.models import attention, base_model, generation, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import tokens as tokens_lib
from ppjax.personas import prompts


def text_of(system_prompt: str) -> str:
    """The persona of a persona prompt, whose other words all personas share."""
    return prompts.persona_in(system_prompt) or system_prompt.strip()


def embed(
    cfg: config.MasksConfig, mask: sources.SourceMask, texts: Sequence[str]
) -> np.ndarray:
    """Embeddings [P, E] of personas' texts.

    Args:
        cfg: says what makes them.
        mask: one of the masks, which names their base model.
        texts: one a persona, none empty.

    Raises:
        InputError: if the model or the server cannot be used, or a text is too long.
    """
    if cfg.embeddings == 'openai':
        assert cfg.embedding_url and cfg.embedding_model
        client = embedding_client.EmbeddingClient(
            cfg.embedding_url, cfg.embedding_model, notify=progress_lib.say
        )
        found = client.embed(texts)
    elif cfg.embeddings == 'local':
        assert cfg.embedding_model
        base = base_model.open_base_model(cfg.embedding_model)
        found = mean_states(base, texts, dtype=cfg.dtype)
    else:
        found = mean_states(_base(cfg, mask), texts, dtype=cfg.dtype)
    if not np.linalg.norm(found, axis=1).all():
        raise errors.InputError('An embedding of zeros has no direction to compare.')
    return found


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosine similarities [P, P] of vectors [P, E], none of them zeros."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def _base(cfg: config.MasksConfig, source: sources.SourceMask) -> base_model.BaseModel:
    """The base model of the masks."""
    base = (
        base_model.open_base_model(cfg.base_model)
        if cfg.base_model
        else apply.open_own_base(source.mask.base_model, str(source.path))
    )
    source.mask.check_base(base.fingerprint(), base.config.num_layers, base.config.d_ff)
    return base


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
    return sums / jnp.sum(weights)


def mean_states(
    base: base_model.BaseModel, texts: Sequence[str], *, dtype: str
) -> np.ndarray:
    """Mean last hidden states of texts, float64 [n, D].

    What a tokenizer adds at the ends is read by the model, and left out of the mean.

    Raises:
        InputError: if the model is unreadable, or a text has no token or too many.
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
        rows.append((tokens, own))
    model = loading.load_decoder(
        base.reader,
        base.config,
        dtype=jnp.dtype(dtype),
        progress=progress_lib.counter('Loading tensors'),
    )
    found = []
    for tokens, own in progress_lib.over(rows, 'Embeddings'):
        # Padding comes last, where nothing that counts looks.
        width = ((0, generation.bucket(len(tokens)) - len(tokens)),)
        padded = (np.pad(np.asarray(x), width)[None] for x in (tokens, own))
        found.append(np.asarray(_mean_state(model, *padded), np.float64))
    return np.stack(found)
