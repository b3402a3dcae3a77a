"""Rewriting by the base model itself (the paper's self-synthesis, Table 15)."""

from collections.abc import Iterator, Sequence
import hashlib

import jax.numpy as jnp

from ppjax import errors
from ppjax.data import chat
from ppjax.models import base_model, generation, loading, shared_prefix
from ppjax.models import decoder as decoder_lib
from ppjax.parallel import mesh as mesh_lib
from ppjax.synthesis import prompt_tokens, rewriting


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
        model: its weights, if they are loaded; otherwise they are when the first
            reply is asked for.
        """
        self._base, self._renderer = base, renderer
        self._max_tokens, self._batch_size = max_tokens, batch_size
        self._sampling = generation.Sampling(temperature=temperature)
        self._seed, self._dtype = seed, dtype
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
    ) -> Iterator[rewriting.Reply]:
        """See `rewriting.Rewriter`; replies come batch by batch, short prompts first."""
        prompts: list[list[int]] = []
        asked: list[rewriting.Request] = []
        for request in requests:
            try:
                prompts.append(self._prompt(request))
                asked.append(request)
            except errors.InputError as error:
                yield rewriting.Reply(request.query_id, '', False, failure=str(error))
        if not asked:
            return
        mesh = mesh_lib.data_mesh()
        if self._model is None:
            self._model = loading.load_decoder(
                self._base.reader, self._base.config, dtype=jnp.dtype(self._dtype)
            )
        model = mesh_lib.replicate(self._model, mesh)
        shared = prompt_tokens.shared_length(prompts)
        prefix = shared_prefix.compute(
            model, None, prompts[0][:shared], slots=generation.bucket(max(shared, 1))
        )
        prefix = mesh_lib.replicate(prefix, mesh)
        stops = generation.stop_ids(
            self._base.generation_config(), self._renderer.tokenizer
        )
        # All batches have one size, so that only lengths make new shapes.
        size = -(-min(self._batch_size, len(asked)) // mesh.size) * mesh.size
        order = sorted(range(len(asked)), key=lambda i: (len(prompts[i]), i))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            padded = rows + rows[-1:] * (size - len(rows))
            answers = generation.generate(
                model,
                None,
                [prompts[row][shared:] for row in padded],
                max_new_tokens=self._max_tokens,
                stop_ids=stops,
                sampling=self._sampling,
                seed=self._seed,
                prefix=prefix,
                streams=[_stream(asked[row].query_id) for row in padded],
                mesh=mesh,
            )
            for row, answer in zip(rows, answers, strict=False):
                finished = bool(answer) and answer[-1] in stops
                words = answer[:-1] if finished else answer
                text = self._renderer.tokenizer.decode(words, skip_special_tokens=True)
                yield rewriting.Reply(asked[row].query_id, text, finished)

    def _prompt(self, request: rewriting.Request) -> list[int]:
        prompt = self._renderer.prompt(request.messages)
        room = self._base.config.max_position - len(prompt)
        if room < 1:
            raise errors.InputError(
                f'its prompt of {len(prompt)} tokens leaves no room in the model'
            )
        return prompt


def _stream(query_id: str) -> int:
    """A number of the query's own: its draws do not depend on what is left to do."""
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:4], 'little')
