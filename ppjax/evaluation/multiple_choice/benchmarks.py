"""OpenBookQA, PIQA and MMLU as questions with choices, and their accuracies.

Prompts, choices and metrics are those of lm-evaluation-harness, without a chat
template or system prompt:

    piqa        'Question: {goal}\\nAnswer:', then each solution
    openbookqa  '{question}', then each choice
    mmlu        'The following are multiple choice questions (with answers) about
                {subject}.', the shots, the question with its choices listed as A to D,
                'Answer:', then ' A' to ' D'

`acc` takes the likeliest choice, `acc_norm` the likeliest by character of its text;
of equally likely ones the first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from ppjax.base import errors

TASKS = ('piqa', 'openbookqa', 'mmlu')
_LETTERS = 'ABCD'
# Shots are the first rows of MMLU's dev split, which has five a subject.
MOST_SHOTS = 5


@dataclasses.dataclass(frozen=True)
class ChoiceQuestion:
    """A question with choices.

    Attributes:
        where: names its row in errors and results.
        context: the prompt.
        choices: the texts whose lengths `acc_norm` divides by.
        gold: which of them is right.
        group: MMLU's subject; '' elsewhere.
    """

    where: str
    context: str
    choices: tuple[str, ...]
    gold: int
    group: str = ''

    @property
    def continuations(self) -> list[str]:
        """What follows the context, choice by choice."""
        return [f' {choice}' for choice in self.choices]


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise errors.InputError(f'{where}: field {field!r} is missing or no text.')
    return value


def _label(value: Any, count: int, where: str) -> int:
    """A number from 0, or a letter from A, as data sets have them."""
    if isinstance(value, str) and value.strip() in set(_LETTERS[:count]):
        return _LETTERS.index(value.strip())
    # TensorFlow data sets have NumPy integers.
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and 0 <= value < count:
        return int(value)
    raise errors.InputError(
        f'{where}: the answer must be 0 to {count - 1} or a letter from A, got '
        f'{value!r}; test splits without answers cannot be measured on.'
    )


def _choices(value: Any, where: str) -> tuple[str, ...]:
    """Four texts, from a list or from {"text": [...], "label": [...]}."""
    if isinstance(value, Mapping):
        value = value.get('text')
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if (
        not isinstance(value, list | tuple)
        or len(value) != len(_LETTERS)
        or not all(isinstance(text, str) and text for text in value)
    ):
        raise errors.InputError(
            f'{where}: "choices" must be a list of {len(_LETTERS)} texts, got {value!r}.'
        )
    return tuple(value)


def _read(
    rows: Iterable[tuple[str, Any]],
    question: Callable[[Mapping[str, Any], str], ChoiceQuestion],
) -> list[ChoiceQuestion]:
    questions = []
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise errors.InputError(f'{where}: no JSON object.')
        questions.append(question(row, where))
    return questions


def piqa(rows: Iterable[tuple[str, Any]]) -> list[ChoiceQuestion]:
    """Rows {"goal", "sol1", "sol2", "label"}.

    Args:
        rows: (name for errors, value) pairs.

    Raises:
        InputError: naming the first row that is none.
    """

    def question(row: Mapping[str, Any], where: str) -> ChoiceQuestion:
        context = f'Question: {_text(row, "goal", where)}\nAnswer:'
        solutions = (_text(row, 'sol1', where), _text(row, 'sol2', where))
        gold = _label(row.get('label'), 2, where)
        return ChoiceQuestion(where, context, solutions, gold)

    return _read(rows, question)


def openbookqa(rows: Iterable[tuple[str, Any]]) -> list[ChoiceQuestion]:
    """Rows in any of three forms.

    {"question", "choices": [4], "label"}; the Hub's {"question_stem", "choices":
    {"text", "label"}, "answerKey"}; TensorFlow's {"question": {"stem", "choice_A",
    ...}, "answerKey"}. See `piqa` for the arguments.
    """

    def question(row: Mapping[str, Any], where: str) -> ChoiceQuestion:
        inner = row.get('question')
        gold = row['label'] if 'label' in row else row.get('answerKey')
        if isinstance(inner, Mapping):
            stem = _text(inner, 'stem', where)
            listed: Any = [inner.get(f'choice_{letter}') for letter in _LETTERS]
        else:
            field = 'question_stem' if 'question_stem' in row else 'question'
            stem, listed = _text(row, field, where), row.get('choices')
        if isinstance(listed, Mapping) and isinstance(gold, str):
            # The Hub's rows name their choices, seldom by other letters.
            names = list(listed.get('label') or [])
            gold = names.index(gold.strip()) if gold.strip() in names else gold
        choices = _choices(listed, where)
        return ChoiceQuestion(where, stem, choices, _label(gold, len(choices), where))

    return _read(rows, question)


def _mmlu_question(row: Mapping[str, Any], where: str) -> ChoiceQuestion:
    """A row without a heading and worked examples."""
    choices = _choices(row.get('choices'), where)
    gold = row['label'] if 'label' in row else row.get('answer')
    subject = _text(row, 'subject', where)
    lines = [_text(row, 'question', where).strip()]
    for letter, choice in zip(_LETTERS, choices, strict=True):
        lines.append(f'{letter}. {choice}')
    context = '\n'.join([*lines, 'Answer:'])
    gold = _label(gold, len(choices), where)
    return ChoiceQuestion(where, context, tuple(_LETTERS), gold, subject)


def mmlu(
    rows: Iterable[tuple[str, Any]],
    shots: Iterable[tuple[str, Any]] = (),
    *,
    num_shots: int = 0,
) -> list[ChoiceQuestion]:
    """Rows {"subject", "question", "choices": [4], "label" or "answer"}.

    Args:
        rows: (name for errors, value) pairs of the questions.
        shots: the same of the worked examples.
        num_shots: the first so many of a subject come before its questions.

    Raises:
        InputError: naming a row that is none, or a subject with too few shots.
    """
    worked: dict[str, list[ChoiceQuestion]] = {}
    for shot in _read(shots if num_shots else (), _mmlu_question):
        worked.setdefault(shot.group, []).append(shot)
    questions = []
    for question in _read(rows, _mmlu_question):
        own = worked.get(question.group, [])[:num_shots]
        if len(own) < num_shots:
            raise errors.InputError(
                f'{question.where}: {num_shots} worked examples are wanted and the dev '
                f'rows have {len(own)} of the subject {question.group!r}.'
            )
        context = (
            'The following are multiple choice questions (with answers) about '
            f'{question.group.replace("_", " ")}.\n\n'
        )
        for shot in own:
            context += f'{shot.context} {_LETTERS[shot.gold]}\n\n'
        context += question.context
        questions.append(dataclasses.replace(question, context=context))
    return questions


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of right answers.

    Attributes:
        value: in [0, 1].
        stderr: standard error of the mean; None for a single question.
        count: questions.
    """

    value: float
    stderr: float | None
    count: int


def predictions(
    questions: Sequence[ChoiceQuestion], scores: Sequence[Sequence[float]]
) -> tuple[list[int], list[int]]:
    """The likeliest choices, and the likeliest by character.

    Args:
        questions: n of them.
        scores: the log-likelihoods of each one's choices, in nats.

    Returns:
        ([n], [n]) numbers of choices.
    """
    plain, by_character = [], []
    for question, own in zip(questions, scores, strict=True):
        lengths = np.array([len(choice) for choice in question.choices], float)
        plain.append(int(np.argmax(own)))
        by_character.append(int(np.argmax(np.asarray(own) / lengths)))
    return plain, by_character


def accuracy(right: Sequence[bool]) -> Accuracy:
    """The mean of n hits and misses, its error from their sample deviation."""
    hits = np.asarray(right, float)
    error = float(hits.std(ddof=1) / math.sqrt(len(hits))) if len(hits) > 1 else None
    return Accuracy(float(hits.mean()), error, len(hits))


def pooled(parts: Sequence[Accuracy]) -> Accuracy:
    """Several subjects as one: every question counts the same.

    The error pools the subjects' sample variances, as lm-evaluation-harness does.
    """
    count = sum(part.count for part in parts)
    value = sum(part.value * part.count for part in parts) / count
    if any(part.stderr is None for part in parts) or count <= len(parts):
        return Accuracy(value, None, count)
    spread = sum(
        (part.count - 1) * (part.stderr or 0.0) ** 2 * part.count for part in parts
    )
    return Accuracy(value, math.sqrt(spread / (count - len(parts)) / count), count)
