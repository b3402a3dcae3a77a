"""A judge's lists of flaws: each reply logged and asked for once, malformed ones again.

The log is a file of JSON lines, one a reply:

    {"conversation_sha256", "text", "finished"}

The hash is over the judge's identity and all that it was told, so a changed judge,
question or answer is asked anew. A reply that is no list of flaws is logged as well, and
answered by the demand for one: that is another conversation, with a hash of its own.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from ppjax.base import asked_log, errors, json_lines
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import flaws as flaws_lib

# Replies that a judge may give before an answer counts as one without a score.
ATTEMPTS = 3
# Of a malformed reply, so many characters are shown to the judge again.
_SHOWN = 1000
_TOO_LONG = 'what the judge was told is too long for it'

_Conversation = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class FlawVerdict:
    """What a judge says of one answer.

    Attributes:
        flaws: that it found; None where it gave no list of them.
        replies: how many it gave; all but the last are malformed.
        text: the last of them.
        failure: why there is no reply to go by, in one line; '' if there is one.
    """

    flaws: tuple[flaws_lib.Flaw, ...] | None
    replies: int
    text: str
    failure: str = ''

    @property
    def score(self) -> float | None:
        """0 to 100; None without a list of flaws."""
        return None if self.flaws is None else flaws_lib.score(self.flaws)


def failed(failure: str) -> FlawVerdict:
    """The verdict on an answer that could not be judged."""
    return FlawVerdict(None, 0, '', failure)


def judge_all(
    judge: speakers.Speaker,
    prompts: Sequence[str],
    *,
    log_path: str | pathlib.Path,
    progress: Callable[[int], Callable[[int, int], None]] | None = None,
) -> list[FlawVerdict]:
    """The verdict on every answer; nobody is asked for what the log has.

    Args:
        judge: who is asked.
        prompts: of `flaws.prompt`.
        log_path: of the log; made if absent.
        progress: attempt, from 1 -> what is called with (replies, all).

    Returns:
        [n] in the order of the prompts. Those that failed are asked for again by the
        next call; those without a list after `ATTEMPTS` replies are not.

    Raises:
        InputError: if the judge cannot be used, or the log is no log or cannot be
            written. What was logged stays.
    """
    found = [failed('') for _ in prompts]
    identity = judge.identity
    conversations: dict[int, _Conversation] = {
        number: [{'role': 'user', 'content': prompt}]
        for number, prompt in enumerate(prompts)
    }
    log = asked_log.AskedLog(log_path, 'a log of flaws', _parse)
    with contextlib.closing(log):
        for attempt in range(1, ATTEMPTS + 1):
            if not conversations:
                break
            said = log.ask(
                list(conversations.values()),
                [json_lines.digest([identity, own]) for own in conversations.values()],
                lambda asked: _spoken(judge, asked),
                _entry,
                silent=speakers.failed('the judge gave no verdict'),
                progress=progress(attempt) if progress else None,
            )
            again = {}
            for (number, own), one in zip(conversations.items(), said, strict=True):
                if one.failure:
                    # With no room to ask again, the malformed reply was the last.
                    if one.failure != _TOO_LONG:
                        found[number] = failed(one.failure)
                    continue
                flaws = flaws_lib.parse(one.text)
                found[number] = FlawVerdict(flaws, attempt, one.text)
                if flaws is None:
                    again[number] = [
                        *own,
                        {'role': 'assistant', 'content': one.text[:_SHOWN]},
                        {'role': 'user', 'content': flaws_lib.AGAIN},
                    ]
            conversations = again
    return found


def _spoken(
    judge: speakers.Speaker, asked: Sequence[_Conversation]
) -> Iterator[tuple[int, speakers.Said]]:
    replies = judge.speak(asked)
    try:
        for index, said in replies:
            if said.forgotten:
                # The demand alone, without what it is about, would be answered too.
                said = speakers.failed(_TOO_LONG)
            yield index, said
    finally:
        # An abandoned generator would go on asking until it is collected.
        if isinstance(replies, Generator):
            replies.close()


def _entry(key: str, asked: _Conversation, said: speakers.Said) -> dict[str, Any]:
    del asked  # Its hash is the key.
    return {
        'conversation_sha256': key,
        'text': said.text,
        'finished': said.finished,
    }


def _parse(entry: Any) -> tuple[str, speakers.Said]:
    key, text, finished = json_lines.typed(
        entry, conversation_sha256=str, text=str, finished=bool
    )
    return key, speakers.Said(text, 0, finished)


def refuse_unscored(name: str | None, verdicts: Sequence[FlawVerdict]) -> None:
    """Raises:
    InputError: if there are verdicts, and not one of them is a list of flaws.
    """
    if not verdicts or any(verdict.flaws is not None for verdict in verdicts):
        return
    judged = [verdict for verdict in verdicts if not verdict.failure]
    if not judged:
        raise errors.InputError(
            f'The judge {name} gave no verdict on any of {len(verdicts)} answers; on '
            f'the first: {verdicts[0].failure}. The answers are kept.'
        )
    raise errors.InputError(
        f'The judge {name} listed the flaws of none of {len(verdicts)} answers as JSON, '
        f'asked {ATTEMPTS} times for each; last on the first: '
        f'{judged[0].text[:60]!r}. The answers are kept; take another judge.'
    )
