"""A server that takes part in dialogues."""

from collections.abc import Callable
from typing import Any

from ppjax.chat_api import client as client_lib
from ppjax.evaluation.dialogues import speakers

ServeJson = Callable[[Callable[[Any], tuple[int, Any]]], str]


class Server:
    """Answers (status, JSON) by a plan of the messages."""

    def __init__(self, serve: ServeJson) -> None:
        self.plan: Callable[[list[dict[str, str]]], tuple[int, Any]] = lambda m: reply(
            f'{len(m)}: {m[-1]["content"]}'
        )
        self.bodies: list[dict[str, Any]] = []
        self.url = serve(self._answer)

    def _answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.bodies.append(body)
        return self.plan(body['messages'])

    def speaker(self, **settings: Any) -> speakers.ServerSpeaker:
        client = client_lib.ChatClient(
            self.url,
            settings.pop('model', 'tiny'),
            api_key_env='PPJAX_TEST_NO_KEY',
            backoff=0.01,
            longest_wait=0.05,
            timeout=10.0,
            retries=1,
            notify=lambda line: None,
        )
        return speakers.ServerSpeaker(client, **{'max_new_tokens': 50} | settings)


def reply(text: str, finish: str = 'stop', **message: Any) -> tuple[int, Any]:
    said = {'role': 'assistant', 'content': text, **message}
    return 200, {'choices': [{'message': said, 'finish_reason': finish}]}
