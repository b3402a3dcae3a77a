"""Rewrites by any server that speaks OpenAI's chat completions."""

from collections.abc import Generator, Sequence
import contextlib
from typing import Any

from ppjax.base import errors
from ppjax.chat_api import client as client_lib
from ppjax.chat_api import replies
from ppjax.synthesis import rewriting


class OpenAIRewriter:
    """A backend that asks `{base_url}/chat/completions`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        max_tokens: int = 1024,
        temperature: float | None = 0.7,
        **asking: Any,
    ):
        """Sends nothing yet.

        Args:
            base_url: the server's address, with or without `/v1`.
            model: its name on the server.
            max_tokens: the limit of one reply.
            temperature: None leaves it to the server; some models allow no other.
            asking: see `client.ChatClient`.

        Raises:
            InputError: for an address that is none, or a setting out of range.
        """
        self._client = client_lib.ChatClient(base_url, model, **asking)
        if max_tokens < 1:
            raise errors.InputError(f'max_tokens must be at least 1, got {max_tokens}.')
        self._max_tokens = max_tokens
        self._temperature = temperature

    @property
    def identity(self) -> str:
        """By the model and its settings: a server may come back elsewhere.

        Rows cut off at the limit of tokens are so asked again with a larger one.
        """
        return (
            f'openai {self._client.model} temperature {self._temperature} '
            f'tokens {self._max_tokens}'
        )

    def rewrite(
        self, requests: Sequence[rewriting.Request]
    ) -> Generator[rewriting.Reply, None, None]:
        """Replies as they come; rows that the server did not answer are failures.

        Raises:
            InputError: if the server refuses the run (key, model, settings) or stays
                away.
        """
        calls = [
            client_lib.ChatRequest(request.query_id, self._body(request))
            for request in requests
        ]
        with contextlib.closing(self._client.ask(calls)) as answers:
            for answer in answers:
                yield _reply(answer)

    def _body(self, request: rewriting.Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            'messages': list(request.messages),
            'max_tokens': self._max_tokens,
        }
        if self._temperature is not None:
            body['temperature'] = self._temperature
        return body


def _reply(answer: client_lib.Completion) -> rewriting.Reply:
    if answer.choice is None:
        return rewriting.Reply(answer.key, '', False, failure=answer.failure)
    text = replies.text_of(answer.choice)
    if replies.only_reasoned(answer.choice):
        # Some servers send thoughts apart from the answer, which never came.
        text = '<think>'
    return rewriting.Reply(
        answer.key,
        text,
        finished=replies.finished(answer.choice),
        refused=replies.refused(answer.choice),
    )
