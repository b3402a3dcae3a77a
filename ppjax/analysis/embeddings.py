"""What personas' texts are about, as vectors."""

from collections.abc import Sequence

import numpy as np

from ppjax.analysis import config, sources
from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.chat_api import embedding_client
from ppjax.masking import apply
from ppjax.models import base_model, text_states
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
        found = text_states.mean_states(base, texts, dtype=cfg.dtype)
    else:
        found = text_states.mean_states(_base(cfg, mask), texts, dtype=cfg.dtype)
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
