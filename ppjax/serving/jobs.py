"""What the engine is asked, and what it says: the words between it and the API."""

from collections.abc import Callable
import dataclasses
from typing import Literal, NamedTuple, Protocol

from ppjax.serving import members
from ppjax.serving import sampling as sampling_lib


@dataclasses.dataclass(frozen=True)
class Job:
    """One answer that is wanted.

    Attributes:
        member: who answers.
        prompt: token ids, one at least.
        max_tokens: at most so many tokens, the stop token included; 1 or more.
        stop_ids: the tokens that end the answer; given out too.
        sampling: how tokens are drawn.
        choice: a number below 2^32, which with the seed fixes the draws: answers to one
            request with n above 1 have different ones.
        top_logprobs: so many likeliest tokens come with each token, and its own
            logarithm of probability; None for neither. At most `MOST_LOGPROBS`.
    """

    member: members.Member
    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int]
    sampling: sampling_lib.Sampling = sampling_lib.GREEDY
    choice: int = 0
    top_logprobs: int | None = None


MOST_LOGPROBS = 20


class Token(NamedTuple):
    """One token of an answer.

    Attributes:
        id: as the tokenizer has it.
        logprob: natural logarithm of its probability as the model has it, before any
            of `Sampling`; None where none was asked for.
        top: (id, logprob) of the likeliest, descending; empty where none were asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of an answer, after its last token.

    Attributes:
        reason: a stop token was drawn; the answer is as long as it may be, by
            `max_tokens` or by the context; it was cancelled; or something failed.
        cached_tokens: of the prompt, whose keys and values were known.
        error: what failed, in a sentence; '' otherwise.
    """

    reason: Literal['stop', 'length', 'cancelled', 'error']
    cached_tokens: int = 0
    error: str = ''


# Called in the engine's thread, at once and in order: it must not wait.
Listener = Callable[[Token | Ended], None]


class Ticket(Protocol):
    """An answer under way."""

    def cancel(self) -> None:
        """Frees its row at the next step; `Ended` follows, unless it came already."""


class QueueFullError(Exception):
    """More answers wait than may."""


class Engine(Protocol):
    """What answers jobs. All methods may be called from any thread."""

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""

    def submit(self, job: Job, listener: Listener) -> Ticket:
        """Takes a job, to be started when a row is free.

        Raises:
            QueueFullError: if too many wait, or the engine is draining.
            ValueError: if the prompt is empty or leaves no room for a token.
        """

    def figures(self) -> 'Figures':
        """What has been done so far."""


class PersonaFigures(NamedTuple):
    """Counts of one persona since the start."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int


@dataclasses.dataclass(frozen=True)
class Figures:
    """A snapshot of what the engine does and did.

    Attributes:
        slots: rows there are.
        running: rows that answer, or whose prompt is read.
        waiting: jobs without a row.
        cache_bytes: held by known prefixes.
        cache_limit_bytes: most that they may hold.
        cache_hits: blocks of prompts that were found.
        cache_misses: blocks that were looked for and computed.
        steps: decode steps.
        by_persona: name -> counts.
    """

    slots: int
    running: int
    waiting: int
    cache_bytes: int
    cache_limit_bytes: int
    cache_hits: int
    cache_misses: int
    steps: int
    by_persona: dict[str, PersonaFigures]
