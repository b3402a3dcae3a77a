"""What is asked of a rewriting model, and the interface of the backends that ask.

With a reference answer the model rewrites it in the persona's voice (paper, section
3.1 and Table 20); without one it answers the query under the persona prompt.
"""

from collections.abc import Generator, Sequence
import dataclasses
from typing import Protocol

from ppjax.data import calibration
from ppjax.data import instructions as instructions_lib
from ppjax.personas import persona as persona_lib
from ppjax.personas import prompts

# A card can hold a book of greetings; about 500 tokens of them show a voice, and
# they are paid for with every row.
VOICE_CHARACTERS = 2000

_VOICE_HEAD = 'This is how the character speaks:'


@dataclasses.dataclass(frozen=True)
class Request:
    """One text to be written.

    Attributes:
        query_id: of the instruction (or the name of a role, for Table 19).
        query: the instruction's query; '' where there is none.
        messages: `{"role", "content"}` dicts, for backends that ask a model.
        reference: the plain answer, which no rewrite may copy; '' where there is
            none.
    """

    query_id: str
    query: str
    messages: tuple[dict[str, str], ...]
    reference: str = ''


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a backend wrote.

    Attributes:
        query_id: of the request.
        text: as it came.
        finished: whether it ended by itself, and not at a limit of tokens.
        refused: whether the backend itself says that it refused, as content
            filters do.
        failure: why there is no text; '' where there is. A failed request is not
            logged, and asked again by the next run.
    """

    query_id: str
    text: str
    finished: bool
    refused: bool = False
    failure: str = ''


class Rewriter(Protocol):
    """A backend: a server, the base model itself, or a file."""

    @property
    def identity(self) -> str:
        """What its texts depend on: a model's name, a file's content.

        Logged replies of another identity are not taken for this backend's.
        """
        ...

    def rewrite(self, requests: Sequence[Request]) -> Generator[Reply, None, None]:
        """Replies as they are done, in any order, one a request at most.

        A request without a reply counts as failed. A generator is closed when its
        caller stops early.

        Raises:
            InputError: if the backend cannot be used at all.
        """
        ...


def requests_for(
    persona: persona_lib.Persona,
    instructions: Sequence[instructions_lib.Instruction],
    *,
    with_reference: bool,
) -> list[Request]:
    """What to ask for, one request an instruction, in their order.

    Args:
        persona: whose voice.
        instructions: the queries and their plain answers.
        with_reference: whether the plain answer is rewritten (Table 20). Otherwise,
            and for an instruction that has no answer, the persona simply answers:
            the system message is the persona prompt, the user message the query.
    """
    described = _described(persona)
    requests = []
    for instruction in instructions:
        messages: tuple[dict[str, str], ...]
        if with_reference and instruction.answer.strip():
            prompt = prompts.rewrite_prompt(
                described, instruction.query, instruction.answer
            )
            messages = ({'role': 'user', 'content': prompt},)
        else:
            messages = calibration.conversation(
                persona.system_prompt, instruction.query
            )
        requests.append(
            Request(
                instruction.query_id, instruction.query, messages, instruction.answer
            )
        )
    return requests


def _described(persona: persona_lib.Persona) -> str:
    """The persona's text, then its voice samples as far as they fit."""
    samples: list[str] = []
    room = VOICE_CHARACTERS
    for sample in persona.voice_samples:
        sample = sample.strip()
        if len(sample) > room and not samples:
            # Better the start of a long greeting than no voice at all.
            sample = sample[:room].rsplit(maxsplit=1)[0] + ' …'
            room = len(sample)
        if sample and len(sample) <= room:
            samples.append(sample)
            room -= len(sample)
    text = persona.text.strip()
    return '\n\n'.join([text, _VOICE_HEAD, *samples]) if samples else text
