"""The answers to one request while they come, in the event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
import contextlib
import dataclasses
import functools

from ppjax.base import progress
from ppjax.serving import jobs, members
from ppjax.serving.api import choices, problems
from ppjax.serving.api import service as service_lib

_GIVEN_UP = 'The server is ending; the answer was given up.'


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a request asks for, all of it checked.

    Attributes:
        member: who answers.
        jobs: one for each answer; those to one prompt follow one another.
        n: answers to each prompt.
        stop_strings: that end an answer.
        stream: whether pieces are sent as they come.
        include_usage: whether their last says how many tokens there were.
        param: the field that the prompt is in.
    """

    member: members.Member
    jobs: tuple[jobs.Job, ...]
    n: int
    stop_strings: tuple[str, ...]
    stream: bool
    include_usage: bool
    param: str

    def usage(self, finishes: Sequence[choices.Finish]) -> dict[str, object]:
        """Tokens in all; a prompt counts once, however many answers it has.

        Args:
            finishes: of all answers, in order.
        """
        firsts = range(0, len(self.jobs), self.n)
        prompt = sum(len(self.jobs[first].prompt) for first in firsts)
        drawn = sum(finish.tokens for finish in finishes)
        cached = sum(finishes[first].cached_tokens for first in firsts)
        return {
            'prompt_tokens': prompt,
            'completion_tokens': drawn,
            'total_tokens': prompt + drawn,
            'prompt_tokens_details': {'cached_tokens': cached},
        }


@dataclasses.dataclass
class Answer:
    """A whole answer.

    Attributes:
        text: of it.
        tokens: where their probabilities were asked for.
        finish: how it ended.
    """

    text: str = ''
    tokens: tuple[jobs.Token, ...] = ()
    finish: choices.Finish | None = None

    @property
    def ended(self) -> choices.Finish:
        """How it ended, which it has."""
        assert self.finish is not None
        return self.finish


class Running:
    """Answers under way; to be closed, whatever happens."""

    def __init__(self, service: service_lib.Service, asked: Asked):
        """Submits all, or none.

        Raises:
            ApiError: if too many wait, or a prompt is too long.
        """
        self.asked = asked
        self.answers = [Answer() for _ in asked.jobs]
        self._service = service
        self._events: asyncio.Queue[tuple[int, jobs.Token | jobs.Ended | None]] = (
            asyncio.Queue()
        )
        self._choices = [
            choices.Choice(number, job, service.texts, asked.stop_strings)
            for number, job in enumerate(asked.jobs)
        ]
        self._tickets: list[jobs.Ticket] = []
        self._is_closed = False
        loop = asyncio.get_running_loop()
        service.running.add(self)
        try:
            for number, job in enumerate(asked.jobs):
                listener = functools.partial(self._heard, loop, number)
                self._tickets.append(service.engine.submit(job, listener))
        except BaseException as error:
            self.close()
            if isinstance(error, jobs.QueueFullError):
                raise problems.queue_full() from None
            if isinstance(error, ValueError):
                raise problems.wrong(asked.param, str(error)) from None
            raise

    def _heard(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        event: jobs.Token | jobs.Ended,
    ) -> None:
        """In the engine's thread."""
        with contextlib.suppress(RuntimeError):  # The server has ended.
            loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

    async def updates(self) -> AsyncIterator[choices.Update]:
        """What is new, until all have ended.

        Raises:
            FailedError: if an answer broke off; the others are given up.
        """
        left = len(self.answers)
        while left:
            number, event = await self._events.get()
            if event is None:
                raise choices.FailedError(_GIVEN_UP)
            choice, answer = self._choices[number], self.answers[number]
            if isinstance(event, jobs.Token) and not choice.is_cut:
                self._service.metrics.token()
            update = choice.push(event)
            if choice.is_cut:
                self._tickets[number].cancel()
            if update is None:
                continue
            answer.text += update.text
            answer.tokens += update.tokens
            if update.finish:
                answer.finish = update.finish
                self._measure(update.finish)
                left -= 1
            yield update

    async def whole(self) -> list[Answer]:
        """The answers, once all have ended.

        Raises:
            FailedError: if one broke off.
        """
        async for _ in self.updates():
            pass
        return self.answers

    def _measure(self, finish: choices.Finish) -> None:
        self._service.metrics.ended(
            self.asked.member.name,
            finish.reason,
            finish.tokens,
            finish.first_seconds,
            finish.seconds,
        )

    def count(self, number: int) -> int:
        """Tokens of an answer so far."""
        return self._choices[number].count

    def usage(self) -> dict[str, object]:
        """Of all answers, which have ended."""
        return self.asked.usage([answer.ended for answer in self.answers])

    def give_up(self) -> None:
        """Ends it from outside: whoever waits for it is told."""
        self._events.put_nowait((0, None))

    def close(self, end: str = 'gone') -> None:
        """Frees its rows at the next step, if it has any.

        Args:
            end: what the answers that have not ended are counted as.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._service.running.discard(self)
        for ticket, answer in zip(self._tickets, self.answers, strict=False):
            if answer.finish is None:
                ticket.cancel()
        if len(self._tickets) == len(self.answers):
            self._note(end)

    def _note(self, end: str) -> None:
        name = self.asked.member.name
        for choice, answer, job in zip(
            self._choices, self.answers, self.asked.jobs, strict=True
        ):
            if answer.finish is None:
                self._service.metrics.ended(name, end, 0, 0.0, 0.0)
            if self._service.log:
                ended = answer.finish.reason if answer.finish else end
                prompt = self._service.texts.text(job.prompt, special=True)
                self._service.log(
                    f'{name}, asked {prompt!r}, answered in {choice.count} tokens '
                    f'({ended}): {answer.text!r}'
                )


def failure(error: Exception) -> problems.ApiError:
    """What a client is told of an answer that broke off."""
    if isinstance(error, choices.FailedError):
        if str(error) == _GIVEN_UP:
            return problems.draining()
        return problems.failed(str(error))
    progress.say(f'An answer failed: {type(error).__name__}.')
    return problems.failed('The answer broke off for a mistake of the server.')
