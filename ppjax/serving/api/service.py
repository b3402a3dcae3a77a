"""What the API serves, and how much of it at a time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
from typing import Any, Protocol, TypeVar

from ppjax.serving import jobs
from ppjax.serving import members as members_lib
from ppjax.serving.api import metrics, problems, texts

Result = TypeVar('Result')
Message = dict[str, str]


class Cast(Protocol):
    """Who is served; it may change at any time."""

    def members(self) -> Mapping[str, members_lib.Member]:
        """By name, the base model first."""

    def get(self, name: str) -> members_lib.Member | None:
        """The one of a name; None if there is none."""


# What a chat request's messages become before the chat template has them.
Converse = Callable[[members_lib.Member, Sequence[Message]], Sequence[Message]]


@dataclasses.dataclass(frozen=True)
class Page:
    """The page for people.

    Attributes:
        read: gives media type and content of a file of it.
        headers: sent with each: what a browser may do with it.
    """

    read: Callable[[str], tuple[str, bytes]]
    headers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body: bytes of it.
        messages: of a chat.
        choices: answers, its prompts times its n.
        max_tokens: of an answer in a chat, where the client does not say.
    """

    body: int = 2**20
    messages: int = 1024
    choices: int = 16
    max_tokens: int = 512


@dataclasses.dataclass
class Service:
    """All that requests need; used in the event loop's thread.

    Attributes:
        base: name of the base model, as it was given.
        cast: who is served.
        engine: what answers.
        texts: of the base model's tokenizer.
        converse: see `Converse`.
        page: for people.
        limits: of a request.
        log: takes lines with prompts and answers; None where they are not to be kept.
        metrics: what was measured.
        draining: whether nothing new is taken.
    """

    base: str
    cast: Cast
    engine: jobs.Engine
    texts: texts.Texts
    converse: Converse
    page: Page
    limits: Limits = Limits()
    log: Callable[[str], None] | None = None
    draining: bool = False

    def __post_init__(self) -> None:
        self.metrics = metrics.Metrics(self.engine.figures, self.cast.members)
        # Who answers requests, to be ended when the server is.
        self.running: set[Any] = set()
        # One at a time: texts of strangers are tokenised beside the event loop, but do
        # not take all of the machine.
        self._reader = concurrent.futures.ThreadPoolExecutor(1, 'prompts')

    def member(self, name: str | None) -> members_lib.Member:
        """Who is meant by a model id; the base model without one.

        Raises:
            ApiError: if there is no such model.
        """
        if name is None:
            return next(iter(self.cast.members().values()))
        found = self.cast.get(name)
        if found is None:
            raise problems.no_model(name)
        return found

    async def aside(
        self, work: Callable[..., Result], *args: Any, **more: Any
    ) -> Result:
        """Does some work, as of tokenising, without holding up answers."""
        return await asyncio.get_running_loop().run_in_executor(
            self._reader, functools.partial(work, *args, **more)
        )

    def refuse_if_draining(self) -> None:
        """Raises:
        ApiError: if nothing new is taken.
        """
        if self.draining:
            raise problems.draining()

    def end_all(self) -> None:
        """Gives up all answers under way."""
        for running in list(self.running):
            running.give_up()

    def close(self) -> None:
        """Ends what works aside."""
        self._reader.shutdown(wait=False, cancel_futures=True)
