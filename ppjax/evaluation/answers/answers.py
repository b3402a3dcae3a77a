"""Greedy answers of one model to the questions that it is judged on.

The answers are kept in a log of JSON lines:

    {"key", "group", "question", "text", "tokens", "finished"}

`key` is a hash over everything the words depend on, so that a run that was killed goes
on where it was, and a changed model, mask, persona or chat template is asked anew.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from ppjax.base import errors, json_lines
from ppjax.data import calibration, chat
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


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        question: that it answers.
        text: as it came.
        tokens: how many it has, its stop token not counted.
        finished: whether it ended by itself, and not at a limit.
        failure: why the model could not be asked; '' where it was.
    """

    question: Question
    text: str
    tokens: int
    finished: bool
    failure: str = ''


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
) -> list[Answer]:
    """Greedy answers to all questions; those in the log are not asked again.

    Answers are on disk as soon as their batch is done. Questions with one prompt are
    asked once.

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
    keys: list[str] = []
    failures: dict[str, str] = {}
    asked: dict[str, tuple[Question, list[int]]] = {}
    for question in questions:
        try:
            prompt = renderer.prompt(question.messages)
        except errors.InputError as error:
            key = json_lines.digest(
                ['no prompt', question.system_prompt, question.question]
            )
            failures[key] = str(error)
        else:
            key = json_lines.digest([*settings, prompt])
            asked.setdefault(key, (question, prompt))
        keys.append(key)
    with contextlib.closing(json_lines.AppendLog(log_path)) as log:
        done = dict(log.rows(_parse, 'an answer log'))

        def report() -> None:
            if progress is not None:
                known = sum(key in done or key in failures for key in keys)
                progress(known, len(keys))

        report()
        todo = [key for key in asked if key not in done]
        for answer in batch_generation.generate_all(
            model,
            masks,
            [asked[key][1] for key in todo],
            max_new_tokens=max_new_tokens,
            stop_ids=stops,
            batch_size=batch_size,
        ):
            key = todo[answer.index]
            if answer.failure:
                failures[key] = answer.failure
            else:
                text = renderer.tokenizer.decode(
                    answer.tokens, skip_special_tokens=True
                )
                log.append(_entry(key, asked[key][0], text, answer))
                done[key] = (text, len(answer.tokens), answer.finished)
            report()
    if failures and len(failures) == len(set(keys)):
        raise errors.InputError(
            f'None of {len(questions)} questions can be asked; the first: '
            f'{failures[keys[0]]}'
        )
    return [
        Answer(question, '', 0, False, failures[key])
        if key in failures
        else Answer(question, *done[key])
        for question, key in zip(questions, keys, strict=True)
    ]


def _entry(
    key: str, question: Question, text: str, answer: batch_generation.Generated
) -> dict[str, Any]:
    return {
        'key': key,
        'group': question.group,
        'question': question.question,
        'text': text,
        'tokens': len(answer.tokens),
        'finished': answer.finished,
    }


def _parse(entry: Any) -> tuple[str, tuple[str, int, bool]]:
    key, *answer = json_lines.typed(entry, key=str, text=str, tokens=int, finished=bool)
    return key, tuple(answer)
