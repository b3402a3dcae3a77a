"""Rewriting by the base model itself (the paper's self-synthesis, Table 15)."""

from collections.abc import Generator, Sequence
import hashlib

import jax
import jax.numpy as jnp

from ppjax.base import errors
from ppjax.data import chat, stop_tokens
from ppjax.models import base_model, batch_generation, generation, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.synthesis import rewriting


class LocalRewriter:
    """Generates replies in batches behind the prompts' common prefix.

    Prompts are sorted by length, so that a batch has little padding and its rows
    end at about the same time; rows are spread over the devices. In float32 a
    reply does not depend on the batch it was written in.
    """

    def __init__(
        self,
        base: base_model.BaseModel,
        renderer: chat.ChatRenderer,
        *,
        max_tokens: int,
        temperature: float,
        batch_size: int,
        seed: int,
        dtype: str = 'float32',
        mesh: jax.sharding.Mesh | None = None,
        model: decoder_lib.Decoder | None = None,
    ):
        """Args:
        base: the model that writes.
        renderer: its chat template.
        max_tokens: the limit of one reply.
        temperature: 0 takes the likeliest tokens.
        batch_size: replies written at a time.
        seed: of the draws.
        dtype: precision of weights and activations.
        mesh: that the weights are loaded onto; None copies them to all devices.
        model: its weights, if they are loaded; otherwise they are when the first
            reply is asked for.
        """
        self._base, self._renderer = base, renderer
        self._max_tokens, self._batch_size = max_tokens, batch_size
        self._sampling = generation.Sampling(temperature=temperature)
        self._seed, self._dtype, self._mesh = seed, dtype, mesh
        self._model = model

    @property
    def identity(self) -> str:
        """By the weights and whatever the words depend on."""
        return (
            f'local {self._base.fingerprint()} {self._dtype} seed {self._seed} '
            f'temperature {self._sampling.temperature} tokens {self._max_tokens}'
        )

    def rewrite(
        self, requests: Sequence[rewriting.Request]
    ) -> Generator[rewriting.Reply, None, None]:
        """See `rewriting.Rewriter`; replies come batch by batch, short prompts first."""
        prompts: list[list[int] | str] = []
        for request in requests:
            try:
                prompts.append(self._renderer.prompt(request.messages))
            except errors.InputError as error:
                prompts.append(str(error))
        if self._model is None:
            self._model = loading.load_decoder(
                self._base.reader,
                self._base.config,
                dtype=jnp.dtype(self._dtype),
                mesh=self._mesh,
            )
        tokenizer = self._renderer.tokenizer
        for answer in batch_generation.generate_all(
            self._model,
            masks_lib.DENSE,
            prompts,
            max_new_tokens=self._max_tokens,
            stop_ids=stop_tokens.stop_ids(self._base.generation_config(), tokenizer),
            batch_size=self._batch_size,
            sampling=self._sampling,
            seed=self._seed,
            streams=[_stream(request.query_id) for request in requests],
        ):
            # Markers are for the gates: left out, what they divide would be one text.
            text = tokenizer.decode(answer.tokens, skip_special_tokens=False)
            yield rewriting.Reply(
                requests[answer.index].query_id,
                text,
                answer.finished,
                failure=answer.failure,
            )


def _stream(query_id: str) -> int:
    """A number of the query's own: its draws do not depend on what is left to do."""
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:4], 'little')
