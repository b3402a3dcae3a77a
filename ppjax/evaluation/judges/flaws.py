"""Flaws of character fidelity: what a judge is asked for, its list, and the score.

A judge lists what in an answer does not fit the character, each flaw with a kind and a
severity of 1 to 5, and the score is what these take away from 100. A reply that is not
exactly such a list is none: nothing is guessed from it.

Source: the dimension and the formula are CoSER's (Wang et al., arXiv:2502.09082), which
    Persona-Pruner's Table 13 reports; the words of the prompt are ours.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from ppjax.chat_api import replies
from ppjax.personas import prompts

KINDS = ('language', 'knowledge', 'personality', 'relationships')
LEAST, MOST = 1, 5
# Of each point of severity, and of severity that a reply may have at no cost.
_POINTS, _FREE = 5, 0.3

_PROMPT = """\
You are a strict critic of role-play. Below are the description of a character, what \
somebody said to the character, and the reply in the character's name. Find what in \
the reply is untrue to the character. Nothing else is of interest: not whether the \
reply is helpful, right or pleasant, and not how long it is.

Character:
[CHARACTER START]
{persona}
[CHARACTER END]

Said to the character:
[QUESTION START]
{question}
[QUESTION END]

Reply:
[ANSWER START]
{answer}
[ANSWER END]

A flaw is of one of these types:
- language: words, tone or manner of speaking that the character would not use
- knowledge: facts, experiences or skills that the character cannot have, lacks though \
it must have them, or has differently
- personality: feelings, values, opinions or deeds that do not suit the character
- relationships: a wrong stance towards others, or a wrong station in life

Its severity is a whole number:
1 - hardly noticeable
2 - noticeable, but it does not disturb
3 - it disturbs: the character would not do so
4 - it contradicts the character in something important
5 - the character is lost: this is somebody else, or a program

List every flaw once, under the type that fits best. If there is none, the list is \
empty. Respond with one JSON object of this form and with nothing else:
{"flaws": [{"instance": "the words of the reply, and what is wrong with them", \
"type": "language", "severity": 3}]}"""

# What follows a reply that is no list.
AGAIN = """\
That is not a JSON object of the form that was asked for. Respond with the object and \
nothing else: {"flaws": [...]}, each flaw with "instance" (a text), "type" (language, \
knowledge, personality or relationships) and "severity" (a whole number from 1 to 5); \
an empty list if there is no flaw."""


@dataclasses.dataclass(frozen=True)
class Flaw:
    """One thing that is untrue to the character.

    Attributes:
        instance: where it is and what it is, in the judge's words.
        type: one of `KINDS`.
        severity: `LEAST` to `MOST`.
    """

    instance: str
    type: str
    severity: int


def prompt(persona: str, question: str, answer: str) -> str:
    """Asks for the flaws of one answer."""
    return prompts.fill(
        _PROMPT, persona=persona.strip(), question=question, answer=answer
    )


def parse(reply: str) -> tuple[Flaw, ...] | None:
    """The flaws of a reply; None if it is anything but the object asked for.

    It may stand in a fenced block of Markdown, and nothing beside it. Keys that were
    not asked for are passed over.
    """
    value = replies.json_in(reply)
    listed = value.get('flaws') if isinstance(value, dict) else None
    if not isinstance(listed, list):
        return None
    found = [_flaw(entry) for entry in listed]
    flaws = tuple(flaw for flaw in found if flaw is not None)
    return flaws if len(flaws) == len(found) else None


def _flaw(entry: Any) -> Flaw | None:
    if not isinstance(entry, dict):
        return None
    instance, kind, severity = (
        entry.get(key) for key in ('instance', 'type', 'severity')
    )
    # A bool is an int.
    if type(severity) is not int or not LEAST <= severity <= MOST:
        return None
    if not isinstance(kind, str) or kind.strip().lower() not in KINDS:
        return None
    if not isinstance(instance, str) or not instance.strip():
        return None
    return Flaw(instance.strip(), kind.strip().lower(), severity)


def score(flaws: Sequence[Flaw], replies: int = 1) -> float:
    """100 - 5 (sum of severities - 0.3 replies), not beyond 0 and 100.

    Args:
        flaws: of all replies together.
        replies: how many of the character's were judged.
    """
    severity = sum(flaw.severity for flaw in flaws)
    return min(100.0, max(0.0, 100.0 - _POINTS * (severity - _FREE * replies)))
