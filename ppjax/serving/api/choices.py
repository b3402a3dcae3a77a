"""One answer as its tokens come: text to be given out, and how it ended."""

import dataclasses
import time
from typing import Literal, NamedTuple

from ppjax.serving import jobs
from ppjax.serving.api import stops, texts


@dataclasses.dataclass(frozen=True)
class Finish:
    """How an answer ended.

    Attributes:
        reason: as OpenAI has it.
        by: a stop token, a stop string, or the length.
        stop: the string that ended it; '' for none.
        tokens: that were drawn, the stop token included.
        cached_tokens: of the prompt.
        first_seconds: from the question to the first token.
        seconds: from the question to the last token.
    """

    reason: Literal['stop', 'length']
    by: Literal['token', 'string', 'length']
    stop: str
    tokens: int
    cached_tokens: int
    first_seconds: float
    seconds: float


class Update(NamedTuple):
    """What is new in an answer.

    Attributes:
        choice: which answer it is of.
        text: to be given out; '' if none.
        tokens: those whose text this is, where their probabilities were asked for.
        offset: characters of the answer before `text`.
        finish: how it ended; None while it goes on.
    """

    choice: int
    text: str
    tokens: tuple[jobs.Token, ...]
    offset: int
    finish: Finish | None = None


class FailedError(Exception):
    """An answer that broke off; what was given out of it stands."""


class Choice:
    """One of the answers to a request, in the making."""

    def __init__(
        self,
        number: int,
        job: jobs.Job,
        own: texts.Texts,
        stop_strings: tuple[str, ...],
    ):
        self._number = number
        self._stop_ids = job.stop_ids
        self._wants_tokens = job.top_logprobs is not None
        self._stream = texts.Stream(own)
        self._stops = stops.StopFinder(stop_strings)
        self._asked = time.monotonic()
        self._first: float | None = None
        self._last = self._asked
        self._read = 0  # Characters of all tokens.
        self._given = 0
        self._waiting: list[tuple[int, int, jobs.Token]] = []
        self.count = 0

    @property
    def is_cut(self) -> bool:
        """Whether a stop string came: no more tokens are wanted."""
        return bool(self._stops.found)

    def push(self, event: jobs.Token | jobs.Ended) -> Update | None:
        """What an event adds; None where that is nothing to give out yet.

        Raises:
            FailedError: if the engine gave the answer up.
        """
        if isinstance(event, jobs.Ended):
            return self._ended(event)
        if self.is_cut:  # Drawn before the engine heard of it.
            return None
        self._last = time.monotonic()
        self._first = self._first or self._last
        self.count += 1
        if event.id in self._stop_ids:
            return None
        piece = self._stream.push(event.id)
        if self._wants_tokens:
            self._waiting.append((self._read, self._read + len(piece), event))
        self._read += len(piece)
        text = self._stops.push(piece)
        tokens = self._tokens_of(text)
        return self._update(text, tokens) if text or tokens else None

    def _ended(self, event: jobs.Ended) -> Update:
        text = ''
        if not self.is_cut:
            if event.reason in ('error', 'cancelled'):
                raise FailedError(event.error or 'The answer was given up.')
            text = self._stops.push(self._stream.flush())
            text += self._stops.flush()
        by: Literal['token', 'string', 'length'] = (
            'string' if self.is_cut else 'token' if event.reason == 'stop' else 'length'
        )
        finish = Finish(
            reason='length' if by == 'length' else 'stop',
            by=by,
            stop=self._stops.found,
            tokens=self.count,
            cached_tokens=event.cached_tokens,
            first_seconds=(self._first or self._last) - self._asked,
            seconds=self._last - self._asked,
        )
        tokens = self._tokens_of(text)
        if not self.is_cut:
            # Bytes that never became a character have no text of their own.
            tokens += tuple(token for _, _, token in self._waiting)
        return self._update(text, tokens, finish)

    def _tokens_of(self, text: str) -> tuple[jobs.Token, ...]:
        """The tokens that are given out with a text; of the last, a part may do."""
        end = self._given + len(text)
        found = []
        while self._waiting:
            first, last, token = self._waiting[0]
            # A stop string may begin within a token.
            if not (last <= end or (self.is_cut and first < end)):
                break
            found.append(token)
            del self._waiting[0]
        return tuple(found)

    def _update(
        self, text: str, tokens: tuple[jobs.Token, ...], finish: Finish | None = None
    ) -> Update:
        offset = self._given
        self._given += len(text)
        return Update(self._number, text, tokens, offset, finish)
