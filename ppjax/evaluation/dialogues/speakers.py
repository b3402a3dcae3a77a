"""Who takes part in a dialogue: a local model, or one behind a server."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import re
from typing import Any, Protocol

from ppjax.base import errors, json_lines
from ppjax.chat_api import client as client_lib
from ppjax.chat_api import replies
from ppjax.data import chat, markup
from ppjax.models import batch_generation, generation
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

# {"role", "content"}
Message = Mapping[str, str]
# Perhaps a system message, then the user's and the assistant's in turn; a user's last.
Conversation = Sequence[Message]

# Of a model's positions, at most this share is kept free for an answer.
_ANSWER_SHARE = 4
# How servers say that a conversation is too long.
_TOO_LONG = re.compile(
    r'context[ _](length|size|window)|prompt is too long|HTTP 413', re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Said:
    """What somebody said.

    Attributes:
        text: as it came.
        tokens: how many; 0 where a server does not say.
        finished: whether it ended by itself, and not at a limit.
        forgotten: earlier exchanges that had to be left out for length.
        failure: why nothing was said; '' where something was.
    """

    text: str
    tokens: int
    finished: bool
    forgotten: int = 0
    failure: str = ''


class Speaker(Protocol):
    """Something that goes on with conversations."""

    @property
    def identity(self) -> str:
        """Differs where words may differ."""
        ...

    def speak(
        self, conversations: Sequence[Conversation]
    ) -> Iterator[tuple[int, Said]]:
        """(index of the conversation, what follows it), each as soon as it is known.

        A conversation that is too long loses its oldest exchange but the first, as
        often as needed, and the first one last.
        """
        ...


def failed(failure: str) -> Said:
    """What was said by somebody who could not be asked."""
    return Said('', 0, False, failure=failure)


def said_by(renderer: chat.ChatRenderer, found: batch_generation.Generated) -> Said:
    """What a model on this machine said."""
    text = renderer.tokenizer.decode(found.tokens, skip_special_tokens=True)
    return Said(text, len(found.tokens), found.finished, failure=found.failure)


def forget(conversation: Conversation) -> tuple[Message, ...] | None:
    """A conversation without its oldest exchange but the first; None if too short.

    The first exchange goes once it is the only one.
    """
    messages = tuple(conversation)
    head = int(messages[0]['role'] == 'system')
    exchanges = (len(messages) - head) // 2
    if not exchanges:
        return None
    oldest = head if exchanges == 1 else head + 2
    return messages[:oldest] + messages[oldest + 2 :]


class LocalSpeaker:
    """A model on this machine."""

    def __init__(
        self,
        decoder: decoder_lib.Decoder,
        masks: masks_lib.Masks,
        renderer: chat.ChatRenderer,
        stop_ids: Iterable[int],
        *,
        weights: str,
        max_new_tokens: int,
        batch_size: int = 8,
        sampling: generation.Sampling = generation.GREEDY,
        seed: int = 0,
    ):
        """Args:
        decoder: its weights.
        masks: what of it is masked.
        renderer: its chat template.
        stop_ids: the tokens that end an answer.
        weights: identifies the weights and their precision; the mask does itself.
        max_new_tokens: at most this many tokens an answer, the stop token included.
        batch_size: answers written at a time.
        sampling: how tokens are drawn.
        seed: of the draws, which do not depend on what else is asked.
        """
        self._decoder, self._masks = decoder, masks
        self._renderer = renderer
        self._stops = sorted(set(stop_ids))
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._sampling, self._seed = sampling, seed
        settings = [
            weights,
            masks.digest(),
            # How the template writes, its date included.
            renderer.prompt([{'role': 'user', 'content': 'Hello.'}]),
            self._stops,
            max_new_tokens,
            dataclasses.astuple(sampling),
            seed,
        ]
        self._identity = f'local {json_lines.digest(settings)}'

    @property
    def identity(self) -> str:
        """By weights, mask, template and settings."""
        return self._identity

    def speak(
        self, conversations: Sequence[Conversation]
    ) -> Iterator[tuple[int, Said]]:
        """See `Speaker`; batch by batch, short conversations first.

        Answers have `max_new_tokens` of room, or a quarter of the model's positions.
        """
        fitted = [self._fitting(conversation) for conversation in conversations]
        for found in batch_generation.generate_all(
            self._decoder,
            self._masks,
            [prompt for prompt, _ in fitted],
            max_new_tokens=self._max_new_tokens,
            stop_ids=self._stops,
            batch_size=self._batch_size,
            sampling=self._sampling,
            seed=self._seed,
            streams=[
                int(
                    json_lines.digest([dict(message) for message in conversation])[:8],
                    16,
                )
                for conversation in conversations
            ],
        ):
            said = said_by(self._renderer, found)
            _, forgotten = fitted[found.index]
            yield found.index, dataclasses.replace(said, forgotten=forgotten)

    def _fitting(self, conversation: Conversation) -> tuple[list[int] | str, int]:
        """(prompt or why there is none, exchanges forgotten).

        The last message stays, however long.
        """
        positions = self._decoder.cfg.max_position
        room = positions - min(self._max_new_tokens, positions // _ANSWER_SHARE)
        lost = 0
        while True:
            # Markers that somebody spelled out are words to the model.
            spaced = [
                _spaced(message, self._renderer.spaced) for message in conversation
            ]
            try:
                prompt = self._renderer.prompt(spaced)
            except errors.InputError as error:
                return str(error), lost
            shorter = forget(conversation)
            if len(prompt) <= room or shorter is None:
                return prompt, lost
            conversation, lost = shorter, lost + 1


class ServerSpeaker:
    """A model behind a server that speaks OpenAI's chat completions, asked greedily."""

    def __init__(
        self, client: client_lib.ChatClient, *, max_new_tokens: int, seed: int = 0
    ):
        """Sends nothing yet.

        Args:
            client: of the server.
            max_new_tokens: the limit of one answer.
            seed: sent along, for servers that draw nevertheless.
        """
        self._client = client
        self._settings = {
            'max_tokens': max_new_tokens,
            'temperature': 0,
            'seed': seed,
        }

    @property
    def identity(self) -> str:
        """By the model and its settings: a server may come back elsewhere."""
        return f'openai {self._client.model} {json.dumps(self._settings)}'

    def speak(
        self, conversations: Sequence[Conversation]
    ) -> Iterator[tuple[int, Said]]:
        """See `Speaker`; as the answers come.

        Raises:
            InputError: if the server refuses the run (key, model, settings) or stays
                away.
        """
        asked = dict(enumerate(map(tuple, conversations)))
        lost = dict.fromkeys(asked, 0)
        while asked:
            calls = [
                client_lib.ChatRequest(
                    str(number),
                    {
                        'messages': [_spaced(m, markup.spaced) for m in messages],
                        **self._settings,
                    },
                )
                for number, messages in asked.items()
            ]
            again = {}
            with contextlib.closing(self._client.ask(calls)) as answers:
                for answer in answers:
                    number = int(answer.key)
                    if answer.choice is not None:
                        yield number, _said(answer.choice, lost[number])
                        continue
                    shorter = None
                    if _TOO_LONG.search(answer.failure):
                        shorter = forget(asked[number])
                    if shorter is None:
                        yield number, failed(answer.failure)
                        continue
                    again[number] = shorter
                    lost[number] += 1
            asked = again


def _spaced(message: Message, spaced: Callable[[str], str]) -> dict[str, str]:
    """A message; of the other's, and not of the speaker's own words, no mark."""
    other = message['role'] == 'user'
    return {**message, 'content': spaced(message['content'])} if other else {**message}


def _said(choice: dict[str, Any], forgotten: int) -> Said:
    text = replies.text_of(choice)
    if not text.strip():
        if replies.only_reasoned(choice):
            return failed(
                'it only reasoned and said nothing; turn its reasoning off on the '
                'server, or take another model'
            )
        filtered = replies.refused(choice)
        return failed(f'the answer is {"filtered" if filtered else "empty"}')
    return Said(text, 0, replies.finished(choice), forgotten=forgotten)
