"""Answers of the model that recovery starts from, to make what it repeats unlikely.

A small model left to itself says the same again and again, though it expects good
answers well: its loops are in no text that it learns from. So before the first step it
answers some calibration questions, each token the likeliest, and what goes on there as
it did before is what recovery then pushes down beside what it pulls up.

Source: unlikelihood training of sequences, Welleck et al., arXiv:1908.04319, section 5.2;
there a model answers anew before each of its steps, here once, so that a step costs
little and a run that is gone on with needs no more than the file.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors, json_lines, processes
from ppjax.base import progress as progress_lib
from ppjax.data import chat, stop_tokens
from ppjax.learning import data as data_lib
from ppjax.models import base_model, batch_generation, loading
from ppjax.models import masks as masks_lib

FILE = 'start_answers.jsonl'
# A loop shows in fewer tokens than an answer may have.
TOKENS = 64
# As sequences of words that repeat are counted in the literature.
_NGRAM = 4
# Of a prompt's examples, those that are asked; of a step's, one in four is followed by
# one of them.
_ASKED, _SHARE = 32, 4
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which questions are answered, and which answers each step takes.

    Every answer fills `TOKENS`, so that the steps' shape is known before there is one.

    Attributes:
        questions: calibration examples to be answered, without their own answers.
        steps: for each step, places in `questions`; none where its examples are
            without the persona prompt.
    """

    questions: list[chat.Example]
    steps: list[np.ndarray]

    @property
    def blanks(self) -> list[chat.Example]:
        """As many examples of the same lengths as there will be."""
        return [filled(one, []) for one in self.questions]


def plan(
    examples: Sequence[chat.Example],
    groups: Sequence[data_lib.PromptGroup],
    batches: Sequence[tuple[int, np.ndarray]],
    *,
    positions: int,
    seed: int,
) -> Plan:
    """Draws the questions, and deals them out over the steps.

    Args:
        examples: that groups count.
        groups: what batches are drawn from.
        batches: the group and the examples of each step.
        positions: of the model.
        seed: of the run.
    """
    questions: list[chat.Example] = []
    own: dict[int, np.ndarray] = {}
    for number, group in enumerate(groups):
        rng = np.random.default_rng([seed, number])
        fitting = [
            examples[place]
            for place in rng.permutation(group.examples)
            if examples[place].answer_start + TOKENS <= positions
        ]
        asked = [] if group.shortened else fitting[:_ASKED]
        own[number] = len(questions) + np.arange(len(asked))
        questions += asked
    taken = dict.fromkeys(own, 0)
    steps = []
    for number, batch in batches:
        count = -(-len(batch) // _SHARE) if len(own[number]) else 0
        places = (taken[number] + np.arange(count)) % max(1, len(own[number]))
        steps.append(own[number][places] if count else np.zeros(0, int))
        taken[number] += count
    return Plan(questions, steps)


def repeated(tokens: Sequence[int]) -> np.ndarray:
    """Which tokens lie in a sequence of `_NGRAM` that occurred before, bool [n]."""
    found = np.zeros(len(tokens), bool)
    seen = set()
    for start in range(len(tokens) - _NGRAM + 1):
        gram = tuple(tokens[start : start + _NGRAM])
        if gram in seen:
            found[start : start + _NGRAM] = True
        seen.add(gram)
    return found


def filled(question: chat.Example, answer: Sequence[int]) -> chat.Example:
    """An example of `TOKENS` answer tokens, of which those repeated are unlikely."""
    start = question.answer_start
    tokens = np.zeros(start + TOKENS, np.int32)
    tokens[:start] = question.tokens[:start]
    tokens[start : start + len(answer)] = answer
    unlikely = np.zeros(TOKENS, bool)
    unlikely[: len(answer)] = repeated(answer)
    return dataclasses.replace(question, tokens=tokens, unlikely=unlikely)


def answered(
    plan: Plan,
    model: base_model.BaseModel,
    folder: pathlib.Path,
    *,
    dtype: str,
    mesh: jax.sharding.Mesh | None,
) -> list[chat.Example]:
    """The model's answers to the questions, kept in a run directory.

    Args:
        plan: what is asked.
        model: that recovery starts from.
        folder: of the run.
        dtype: of products.
        mesh: for inference.

    Raises:
        DiskError: if they cannot be written.
    """
    path = folder / FILE
    if not plan.questions:
        progress_lib.say(
            f'No calibration question leaves room for {TOKENS} tokens; nothing that the '
            'model repeats is made less likely.'
        )
        return []
    known = processes.first_decides(lambda: _read(path, plan.questions))
    if known is None:
        known = _generated(plan, model, path, dtype=dtype, mesh=mesh)
    found = [filled(*pair) for pair in zip(plan.questions, known, strict=True)]
    looping = sum(bool(repeated(answer).any()) for answer in known)
    progress_lib.say(
        f'{looping} of {len(known)} answers of the model as it is repeat themselves '
        f'within {TOKENS} tokens; that is made less likely.'
    )
    return found


def _generated(
    plan: Plan,
    model: base_model.BaseModel,
    path: pathlib.Path,
    *,
    dtype: str,
    mesh: jax.sharding.Mesh | None,
) -> list[list[int]]:
    tokenizer = model.tokenizer()
    decoder = loading.load_decoder(
        model.reader, model.config, dtype=jnp.dtype(dtype), mesh=mesh
    )
    answers: list[list[int]] = [[] for _ in plan.questions]
    shown = progress_lib.Progress('Start answers', len(answers))
    for done, one in enumerate(
        batch_generation.generate_all(
            decoder,
            masks_lib.DENSE,
            [x.tokens[: x.answer_start].tolist() for x in plan.questions],
            max_new_tokens=TOKENS,
            stop_ids=stop_tokens.stop_ids(model.generation_config(), tokenizer),
            batch_size=_BATCH,
        ),
        start=1,
    ):
        answers[one.index] = one.tokens
        shown.update(done)
    shown.close()
    if processes.is_first():
        rows: list[dict[str, Any]] = [
            {
                'query_id': question.query_id,
                'text': tokenizer.decode(answer),
                'tokens': answer,
                'repeated': int(repeated(answer).sum()),
            }
            for question, answer in zip(plan.questions, answers, strict=True)
        ]
        json_lines.write(path, rows)
    return answers


def _read(
    path: pathlib.Path, questions: Sequence[chat.Example]
) -> list[list[int]] | None:
    """What the file holds; None if the questions must be asked."""
    if not path.exists():
        return None
    try:
        rows = [
            json_lines.typed(row, query_id=str, tokens=list)
            for _, row in json_lines.read(path, 'Start answers')
        ]
        if [name for name, _ in rows] == [one.query_id for one in questions] and all(
            len(tokens) <= TOKENS and all(isinstance(x, int) for x in tokens)
            for _, tokens in rows
        ):
            return [tokens for _, tokens in rows]
    except (errors.InputError, ValueError, TypeError, KeyError):
        pass
    progress_lib.say(f'{path} is damaged; its questions are asked again.')
    return None
