"""Evaluation sets: a persona and the questions it is judged on.

The paper's sets are JSON files, one a persona:

    {"instruction": [{"pos": persona prompt, "neg": ""}],
     "eval_prompt": judge prompt with {question} and {answer} open,
     "user_id": text, "questions": [text, ...],
     "persona_description": P, "system_prompt": persona prompt}

The authors' evaluation gives the model `system_prompt` and judges by `eval_prompt`. In
nine of their forty published files the two speak of different personas (`instruction`
and `eval_prompt` are those of the first file). Here one persona counts for both, the
one that the model is given, and a note says so.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from ppjax.base import atomic, errors, reading
from ppjax.personas import inputs, prompts
from ppjax.personas import persona as persona_lib

_FIELDS = ('questions', 'eval_prompt', 'instruction')


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A persona and its questions.

    Attributes:
        persona: who answers.
        questions: as the file spells them, outer line breaks included.
        user_id: the file's own name for the persona; not unique in the paper's.
        stored: the file's fields as they were read, which `write` keeps; empty for a
            set that was made here.
    """

    persona: persona_lib.Persona
    questions: tuple[str, ...]
    user_id: str = ''
    stored: dict[str, Any] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def judge_template(self) -> str:
        """Table 21 for this persona, `{question}` and `{answer}` still open."""
        return prompts.judge_template(self.persona.text)

    def judge_prompt(self, question: str, answer: str) -> str:
        """What the judge is asked about one answer."""
        return prompts.judge_prompt(self.persona.text, question, answer)

    def to_json(self) -> dict[str, Any]:
        """The paper's form; fields that were read stay as they were."""
        system_prompt = self.persona.system_prompt
        fields = {
            'instruction': [{'pos': system_prompt, 'neg': ''}],
            'eval_prompt': self.judge_template,
            'user_id': self.user_id,
            'questions': list(self.questions),
            'persona_description': self.persona.text,
            'system_prompt': system_prompt,
        }
        return fields | self.stored


def is_evaluation_set(value: Any) -> bool:
    """Whether a JSON value looks like an evaluation set."""
    return (
        isinstance(value, dict)
        and 'questions' in value
        and ('eval_prompt' in value or 'instruction' in value)
    )


def _instruction(value: dict[str, Any]) -> Any:
    instruction = value.get('instruction')
    if isinstance(instruction, list) and instruction:
        instruction = instruction[0]
    return instruction.get('pos') if isinstance(instruction, dict) else instruction


def _persona(value: dict[str, Any], where: str) -> persona_lib.Persona:
    description = value.get('persona_description')
    system_prompt = value.get('system_prompt')
    text: str | None = None
    if inputs.is_text(description):
        text = description.strip()
    for prompt in (system_prompt, _instruction(value)):
        if not text and inputs.is_text(prompt):
            text = prompts.persona_in(prompt)
    if not text:
        raise errors.InputError(
            f'{where}: no persona; wanted "persona_description", or the prompt '
            '"You are roleplaying as a user with this persona: ..." in "system_prompt" '
            'or "instruction".'
        )
    template = None
    if inputs.is_text(system_prompt) and system_prompt.strip():
        template = system_prompt.strip()
        if template == prompts.persona_prompt(text):
            template = None
    return persona_lib.Persona(text, system_template=template, source=where)


def from_json(
    value: Any, where: str, notes: inputs.Notes = inputs.no_notes
) -> EvaluationSet:
    """Checks one parsed JSON value.

    Args:
        value: of an evaluation set.
        where: names it in messages.
        notes: takes one line if its prompts are about another persona.

    Raises:
        InputError: if the persona is missing or empty, or a question is no text.
    """
    if not isinstance(value, dict) or not any(field in value for field in _FIELDS):
        raise errors.InputError(
            f'{where}: no evaluation set; wanted a JSON object with "questions" and '
            '"instruction" or "persona_description".'
        )
    questions = value.get('questions')
    if not isinstance(questions, list) or not questions:
        raise errors.InputError(
            f'{where}: no questions; wanted "questions", a list of texts.'
        )
    for number, question in enumerate(questions):
        if not inputs.is_text(question) or not question.strip():
            raise errors.InputError(
                f'{where}: question {number} is empty or no text; wanted a string.'
            )
    try:  # Everything is written again, so everything must be text.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise errors.InputError(
            f'{where}: holds half of a surrogate pair, NaN or infinity, or is nested '
            'too deep, so it cannot be kept.'
        ) from None
    persona = _persona(value, where)
    user_id = value.get('user_id') or ''
    _note_others(value, persona, where, notes)
    return EvaluationSet(
        persona=persona,
        questions=tuple(questions),
        user_id=user_id if isinstance(user_id, str) else json.dumps(user_id),
        stored=value,
    )


def _note_others(
    value: dict[str, Any],
    persona: persona_lib.Persona,
    where: str,
    notes: inputs.Notes,
) -> None:
    """Says where the file's own prompts are not those that are used."""
    other = []
    prompt = _instruction(value)
    if prompt is not None and (
        not inputs.is_text(prompt) or prompts.persona_in(prompt) != persona.text
    ):
        other.append('"instruction"')
    judge = value.get('eval_prompt')
    if judge is not None and judge != prompts.judge_template(persona.text):
        other.append('"eval_prompt"')
    if other:
        notes(
            f'{where}: {" and ".join(other)} of the file differ from the prompts of '
            f'its persona ({inputs.excerpt(persona.text)!r}), which are used.'
        )


def read(
    path: str | pathlib.Path, notes: inputs.Notes = inputs.no_notes
) -> EvaluationSet:
    """Reads an evaluation set.

    Raises:
        InputError: if the file cannot be read or is no evaluation set.
    """
    where = inputs.shown(path)
    data = reading.read_bytes(path, 'Evaluation set')
    return from_json(inputs.parse_json(data, where), where, notes)


def write(path: str | pathlib.Path, evaluation_set: EvaluationSet) -> None:
    """Writes an evaluation set that the authors' code reads too.

    Raises:
        InputError: if the file cannot be written.
    """
    atomic.write_json(path, evaluation_set.to_json())


def files(paths: Iterable[str | pathlib.Path]) -> Iterator[pathlib.Path]:
    """The evaluation sets that paths, or folders of them, name.

    Raises:
        InputError: if a folder holds none.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield pathlib.Path(path)
            continue
        listed = sorted(pathlib.Path(path).glob('*.json'))
        if not listed:
            raise errors.InputError(
                f'{inputs.shown(path)} holds no evaluation sets (*.json).'
            )
        yield from listed


def all_questions(paths: Iterable[str | pathlib.Path]) -> list[str]:
    """The questions of several files, or folders of them, each once.

    Raises:
        InputError: for the first file or folder that is unusable.
    """
    found = (read(file).questions for file in files(paths))
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))
