"""Embeddings of texts from any server that speaks OpenAI's protocol."""

from collections.abc import Mapping, Sequence
import contextlib
from typing import Any

import numpy as np

from ppjax.base import errors
from ppjax.chat_api import client, replies


class EmbeddingClient(client.ChatClient):
    """Asks `{base_url}/embeddings`, one text a request; else as a `ChatClient`."""

    _path = 'embeddings'
    _fixed: Mapping[str, Any] = {}
    _reply = 'embedding'
    _first = staticmethod(replies.first_embedding)
    _hello: Mapping[str, Any] = {'input': 'Hello.'}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [n, E] of texts, float64.

        Raises:
            InputError: see `ask`; also if the server leaves a text out, or its
                embeddings are of several lengths.
        """
        calls = [
            client.ChatRequest(str(number), {'input': text})
            for number, text in enumerate(texts)
        ]
        found: dict[int, list[float]] = {}
        with contextlib.closing(self.ask(calls)) as answers:
            for answer in answers:
                if answer.choice is None:
                    text = replies.short(texts[int(answer.key)])
                    raise errors.InputError(
                        f'{self.url} has no embedding of {text!r}: {answer.failure}'
                    )
                found[int(answer.key)] = answer.choice['embedding']
        lengths = {len(vector) for vector in found.values()}
        if len(lengths) > 1:
            raise errors.InputError(
                f'{self.url} sent embeddings of {sorted(lengths)} numbers; they must be '
                'of one length.'
            )
        return np.array([found[number] for number in range(len(texts))], np.float64)
