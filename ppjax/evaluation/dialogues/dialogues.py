"""Dialogues of several turns between a persona's model and a partner.

In turn 1 the partner asks a question that is given, and the model answers as its
persona; from then on the partner, which does not see the persona, says what an
ordinary person might. All dialogues advance together, turn by turn.

Everything said is kept in a log of JSON lines:

    {"key", "speaker", "text", "tokens", "finished", "forgotten"}

`key` is a hash over who spoke, its settings and the conversation that it was shown, so
a run that was killed goes on where it was, and what follows a changed word is said
anew. Failures are not logged.

Source: Persona-Pruner, arXiv:2606.14695, Figure 6: ten turns, GPT-4o as the partner.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from ppjax.base import asked_log, json_lines
from ppjax.evaluation.dialogues import speakers

PARTNER_PROMPT = """\
You are an ordinary, curious person who has just met someone, and the two of you are \
having a friendly conversation. Each time, reply to what they have just told you in one \
to three sentences: take up a detail of it, then ask about something in their life, \
work, past or opinions that you do not know yet. Speak as yourself, write nothing but \
your own words, and never say that you are an AI."""

# Chat templates want a user's message first, and the partner's question is its own.
_PARTNER_OPENING = 'Hello! You may begin.'


@dataclasses.dataclass(frozen=True)
class Cue:
    """Words of the partner's that are given.

    Attributes:
        text: what it says.
        facts: of the persona, which a full answer holds; '' if none are known.
        told: whether the model's system message holds these facts at this turn, as
            frontends add a book's entry once its keyword is mentioned.
    """

    text: str
    facts: str = ''
    told: bool = False


@dataclasses.dataclass(frozen=True)
class Start:
    """A dialogue to hold.

    Attributes:
        persona: its text P, which the partner is not shown.
        system_prompt: the persona prompt; '' for no system message.
        cues: the partner's first words, one at least; then it speaks freely.
        group: what dialogues are averaged over first, such as a set's name.
    """

    persona: str
    system_prompt: str
    cues: tuple[Cue, ...]
    group: str


@dataclasses.dataclass(frozen=True)
class HeldTurn:
    """What the partner said, and the model's answer.

    Attributes:
        cue: the partner's words.
        answer: as it came.
        tokens: of the answer.
        finished: whether the answer ended by itself, and not at a limit.
        forgotten: earlier exchanges that the model was no longer shown.
        partner_forgotten: the same of the partner.
    """

    cue: Cue
    answer: str
    tokens: int
    finished: bool
    forgotten: int
    partner_forgotten: int


@dataclasses.dataclass
class Dialogue:
    """A dialogue as far as it came.

    Attributes:
        start: what it began with.
        turns: in order.
        failure: why there are no more of them; '' if all were held.
    """

    start: Start
    turns: list[HeldTurn] = dataclasses.field(default_factory=list)
    failure: str = ''


def model_view(
    start: Start, turns: Sequence[HeldTurn], cue: Cue
) -> tuple[speakers.Message, ...]:
    """What the model answers: persona prompt, earlier turns, the partner's words."""
    system = start.system_prompt
    if cue.told and cue.facts:
        system = f'{system}\n\n{cue.facts}'.strip()
    said = [('system', system)] if system else []
    for turn in turns:
        said += [('user', turn.cue.text), ('assistant', turn.answer)]
    return _messages([*said, ('user', cue.text)])


def partner_view(turns: Sequence[HeldTurn]) -> tuple[speakers.Message, ...]:
    """What the partner goes on from; nothing of the persona but its own words."""
    said = [('system', PARTNER_PROMPT), ('user', _PARTNER_OPENING)]
    for turn in turns:
        said += [('assistant', turn.cue.text), ('user', turn.answer)]
    return _messages(said)


def _messages(said: Sequence[tuple[str, str]]) -> tuple[speakers.Message, ...]:
    return tuple({'role': role, 'content': text} for role, text in said)


def hold_all(
    model: speakers.Speaker,
    partner: speakers.Speaker,
    starts: Sequence[Start],
    *,
    turns: int,
    log_path: str | pathlib.Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Dialogue]:
    """Holds all dialogues, from the log as far as it has them.

    Args:
        model: with the personas.
        partner: the same one, of the same settings, for all models to compare.
        starts: in any order.
        turns: answers of the model a dialogue.
        log_path: of the log; made if absent, and shared by models if wanted.
        progress: called with (answers there or given up, all answers).

    Returns:
        One dialogue a start, in their order. One in which somebody could not speak
        ends there, with a `failure`, and is tried again by the next call.

    Raises:
        InputError: if a speaker cannot be used, or the log is no log or cannot be
            written. What was logged stays.
        ValueError: if there is not one turn, or a start has no cue.
    """
    if turns < 1:
        raise ValueError(f'turns must be at least 1, got {turns}.')
    if not all(start.cues for start in starts):
        raise ValueError('a start must have one cue at least.')
    held = [Dialogue(start) for start in starts]
    total = len(held) * turns
    shown: list[int] = []  # A bar that is full is not filled again.

    def report(speaking: int = 0, _: int = 0) -> None:
        done = speaking + sum(turns if one.failure else len(one.turns) for one in held)
        if progress is not None and shown != [done]:
            shown[:] = [done]
            progress(done, total)

    log = asked_log.AskedLog(log_path, 'a dialogue log', _parse)
    with contextlib.closing(log):
        report()
        for number in range(turns):
            live = [one for one in held if not one.failure]
            cues = _cues(log, partner, live, number)
            live = [one for one in live if not one.failure]
            views = [
                model_view(one.start, one.turns, cue)
                for one, (cue, _) in zip(live, cues, strict=True)
            ]
            answers = _say(log, model, views, report)
            for one, (cue, lost), said in zip(live, cues, answers, strict=True):
                if said.failure:
                    one.failure = f'turn {number + 1}: {said.failure}'
                    continue
                one.turns.append(
                    HeldTurn(
                        cue, said.text, said.tokens, said.finished, said.forgotten, lost
                    )
                )
            report()
    return held


def _cues(
    log: asked_log.AskedLog[str, speakers.Said],
    partner: speakers.Speaker,
    live: Sequence[Dialogue],
    number: int,
) -> list[tuple[Cue, int]]:
    """(the partner's words, exchanges it forgot) of dialogues that did not fail here."""
    free = [one for one in live if number >= len(one.start.cues)]
    answers = iter(_say(log, partner, [partner_view(one.turns) for one in free]))
    cues = []
    for one in live:
        if number < len(one.start.cues):
            cues.append((one.start.cues[number], 0))
            continue
        said = next(answers)
        text = said.text.strip()
        failure = said.failure or ('' if text else 'it said nothing')
        if failure:
            one.failure = f'turn {number + 1}, the partner: {failure}'
        else:
            cues.append((Cue(text), said.forgotten))
    return cues


def _say(
    log: asked_log.AskedLog[str, speakers.Said],
    speaker: speakers.Speaker,
    views: Sequence[speakers.Conversation],
    progress: Callable[[int, int], None] | None = None,
) -> list[speakers.Said]:
    """What follows each conversation; equal ones are put to the speaker once."""
    identity = speaker.identity

    def entry(key: str, view: object, said: speakers.Said) -> dict[str, Any]:
        del view
        line = {'key': key, 'speaker': identity} | dataclasses.asdict(said)
        del line['failure']
        return line

    keys = [json_lines.digest([identity, list(view)]) for view in views]
    silent = speakers.failed('no answer came')
    return log.ask(views, keys, speaker.speak, entry, silent=silent, progress=progress)


def _parse(entry: Any) -> tuple[str, speakers.Said]:
    key, *said = json_lines.typed(
        entry, key=str, text=str, tokens=int, finished=bool, forgotten=int
    )
    return key, speakers.Said(*said)
