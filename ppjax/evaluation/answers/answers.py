"""Greedy answers of one model to the questions that it is judged on.

The answers are kept in a log of JSON lines:

    {"key", "group", "question", "text", "tokens", "finished"}

`key` is a hash over everything the words depend on, so that a run that was killed goes
on where it was, and a changed model, mask, persona or chat template is asked anew.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from ppjax.base import asked_log, errors, json_lines
from ppjax.data import calibration, chat
from ppjax.evaluation.dialogues import speakers
from ppjax.models import batch_generation
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.personas import evaluation_set, inputs, prompts

# The limit of the paper's evaluation.
MAX_NEW_TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class Question:
    """One question to one persona.

    Attributes:
        persona: its text P, for the judge.
        system_prompt: the persona prompt; '' for no system message.
        question: the user's turn, as it is spelled.
        group: what answers are averaged over first, such as an evaluation set's name.
    """

    persona: str
    system_prompt: str
    question: str
    group: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation that the model answers."""
        turns = (('system', self.system_prompt), ('user', self.question))
        return [{'role': role, 'content': text} for role, text in turns if text]


def questions_of(
    paths: Iterable[str | pathlib.Path], notes: inputs.Notes = inputs.no_notes
) -> list[Question]:
    """The questions of evaluation sets, in the order of the files.

    A set's group is its file's name without the ending, and with its folder's where
    two sets have one name.

    Args:
        paths: files, or folders whose `*.json` files are all evaluation sets.
        notes: takes lines about sets that contradict themselves.

    Raises:
        InputError: naming the first file that is no evaluation set, a folder without
            any, or a file that is given twice.
    """
    files = list(evaluation_set.files(paths))
    stems = [file.stem for file in files]
    questions = []
    groups = set[str]()
    for file in files:
        group = file.stem
        if stems.count(group) > 1:
            group = f'{file.resolve().parent.name}/{group}'
        if group in groups:
            raise errors.InputError(
                f'{inputs.shown(file)}: an evaluation set {group!r} was given before; '
                'give each once, and different sets different names.'
            )
        groups.add(group)
        found = evaluation_set.read(file, notes)
        persona = found.persona
        questions += [
            Question(persona.text, persona.system_prompt, question, group)
            for question in found.questions
        ]
    return questions


def questions_of_rows(
    rows: Sequence[calibration.Row],
    group: str,
    notes: inputs.Notes = inputs.no_notes,
) -> list[Question]:
    """The questions of calibration or held-out rows, in their order.

    Args:
        rows: those with earlier turns than the question are passed over.
        group: of all of them.
        notes: takes one line if rows were passed over.

    Raises:
        InputError: if no row is left.
    """
    questions = []
    for row in rows:
        turns = len(row.messages) - bool(row.system_prompt)
        if turns == 2:
            system = row.system_prompt
            persona = prompts.persona_in(system) or system
            questions.append(Question(persona, system, row.query, group))
    passed = len(rows) - len(questions)
    if not questions:
        raise errors.InputError(
            f'{group}: none of {len(rows)} rows is a single question and its answer.'
        )
    if passed:
        notes(f'{group}: {passed} of {len(rows)} rows have earlier turns; left out.')
    return questions


def first_of_each(questions: Sequence[Question], count: int | None) -> list[Question]:
    """The first `count` questions of each group; None is all."""
    taken = collections.Counter[str]()
    kept = []
    for question in questions:
        taken[question.group] += 1
        if count is None or taken[question.group] <= count:
            kept.append(question)
    return kept


def answer_all(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    renderer: chat.ChatRenderer,
    stop_ids: Iterable[int],
    questions: Sequence[Question],
    *,
    identity: str,
    log_path: str | pathlib.Path,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[speakers.Said]:
    """Greedy answers to all questions; those in the log are not asked again.

    Questions with one prompt are asked once.

    Args:
        model: the decoder.
        masks: what of it is masked.
        renderer: its chat template.
        stop_ids: the tokens that end an answer.
        questions: in any order.
        identity: of the weights and their precision; the mask has its own.
        log_path: of the log; made if absent, and shared by models if wanted.
        max_new_tokens: at most this many tokens an answer, the stop token included.
        batch_size: answers written at a time.
        progress: called with (questions done, all questions), first for the logged.

    Returns:
        One answer a question, in their order.

    Raises:
        InputError: if no question can be asked, or the log is no log or cannot be
            written. What was logged stays.
    """
    stops = sorted(set(stop_ids))
    settings = [identity, masks.digest(), stops, max_new_tokens]
    prompts = [_prompt(renderer, question) for question in questions]

    def write(
        asked: list[tuple[Question, list[int] | str]],
    ) -> Iterator[tuple[int, speakers.Said]]:
        for found in batch_generation.generate_all(
            model,
            masks,
            [prompt for _, prompt in asked],
            max_new_tokens=max_new_tokens,
            stop_ids=stops,
            batch_size=batch_size,
        ):
            yield found.index, speakers.said_by(renderer, found)

    log = asked_log.AskedLog(log_path, 'an answer log', _parse)
    with contextlib.closing(log):
        answers = log.ask(
            list(zip(questions, prompts, strict=True)),
            [json_lines.digest([*settings, prompt]) for prompt in prompts],
            write,
            _entry,
            silent=speakers.failed('no answer came'),
            progress=progress,
        )
    if answers and all(answer.failure for answer in answers):
        raise errors.InputError(
            f'None of {len(questions)} questions can be asked; the first: '
            f'{answers[0].failure}'
        )
    return answers


def _prompt(renderer: chat.ChatRenderer, question: Question) -> list[int] | str:
    """What the model goes on from, or why it cannot be asked."""
    try:
        return renderer.prompt(question.messages)
    except errors.InputError as error:
        return str(error)


def _entry(
    key: str, asked: tuple[Question, list[int] | str], said: speakers.Said
) -> dict[str, Any]:
    question, _ = asked
    return {
        'key': key,
        'group': question.group,
        'question': question.question,
        'text': said.text,
        'tokens': said.tokens,
        'finished': said.finished,
    }


def _parse(entry: Any) -> tuple[str, speakers.Said]:
    key, *said = json_lines.typed(entry, key=str, text=str, tokens=int, finished=bool)
    return key, speakers.Said(*said)
