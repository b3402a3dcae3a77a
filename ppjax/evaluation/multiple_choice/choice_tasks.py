"""A benchmark on one model: its log-likelihoods, predictions and accuracies."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np
import transformers

from ppjax.base import errors
from ppjax.evaluation.multiple_choice import benchmarks, choice_scoring, choice_tokens
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import tokens as tokens_lib


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one model makes of a benchmark.

    Attributes:
        log_likelihoods: of every question's choices, in nats.
        plain: the likeliest choice of each question.
        by_character: the likeliest by character.
        acc: share of `plain` that is right.
        acc_norm: share of `by_character`; None where choices are letters.
        groups: `acc` by subject; empty where there are none.
    """

    log_likelihoods: list[list[float]]
    plain: list[int]
    by_character: list[int]
    acc: benchmarks.Accuracy
    acc_norm: benchmarks.Accuracy | None
    groups: Mapping[str, benchmarks.Accuracy]


def evaluate(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    tokenizer: transformers.PreTrainedTokenizerBase,
    questions: Sequence[benchmarks.ChoiceQuestion],
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None],
) -> Scores:
    """Scores every choice of every question.

    Args:
        model: the decoder.
        masks: what of it is masked.
        tokenizer: the model's.
        questions: of one task.
        batch_tokens: about how many tokens are run at a time.
        progress: called with (choices done, choices in all).

    Raises:
        InputError: if a choice cannot be scored; see `choice_tokens.encode`.
    """
    encoded = [
        choice_tokens.encode(
            tokenizer,
            question.context,
            question.continuations,
            max_length=model.cfg.max_position,
            where=question.where,
        )
        for question in questions
    ]
    for choice in itertools.chain.from_iterable(encoded):
        ids = (*choice.context, *choice.continuation)
        tokens_lib.refuse_unembedded(ids, model.cfg.vocab_size, tokenizer)
    # Those of one subject begin alike, with its name and worked examples.
    members: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        members.setdefault(question.group, []).append(number)
    total, done = sum(map(len, encoded)), 0
    progress(0, total)
    found: list[list[float]] = [[] for _ in questions]
    for own in members.values():
        flat = [choice for number in own for choice in encoded[number]]
        values = np.zeros(len(flat))
        for numbers, part in choice_scoring.log_likelihoods(
            model, masks, flat, batch_tokens=batch_tokens
        ):
            if not np.isfinite(part).all():
                raise errors.InputError(
                    f"{questions[own[0]].where}: the model's likelihoods are not "
                    'finite; --dtype=float32 may help, or its weights are damaged.'
                )
            values[numbers] = part
            done += len(numbers)
            progress(done, total)
        ends = np.cumsum([len(encoded[number]) for number in own])
        for number, part in zip(own, np.split(values, ends[:-1]), strict=True):
            found[number] = part.tolist()
    return summarise(questions, found)


def summarise(
    questions: Sequence[benchmarks.ChoiceQuestion], scores: list[list[float]]
) -> Scores:
    """Predictions and accuracies from the log-likelihoods of choices."""
    plain, by_character = benchmarks.predictions(questions, scores)
    gold = [question.gold for question in questions]
    right = [a == b for a, b in zip(plain, gold, strict=True)]
    groups: dict[str, list[bool]] = {}
    for question, hit in zip(questions, right, strict=True):
        if question.group:
            groups.setdefault(question.group, []).append(hit)
    by_group = {name: benchmarks.accuracy(hits) for name, hits in groups.items()}
    return Scores(
        log_likelihoods=scores,
        plain=plain,
        by_character=by_character,
        acc=(
            benchmarks.pooled(list(by_group.values()))
            if by_group
            else benchmarks.accuracy(right)
        ),
        acc_norm=(
            None
            if by_group
            else benchmarks.accuracy(
                [a == b for a, b in zip(by_character, gold, strict=True)]
            )
        ),
        groups=by_group,
    )


def as_json(
    questions: Sequence[benchmarks.ChoiceQuestion], scores: Scores
) -> dict[str, Any]:
    """The figures of one model as results/TASK.json keeps them."""

    def figure(accuracy: benchmarks.Accuracy | None) -> dict[str, Any] | None:
        return None if accuracy is None else dataclasses.asdict(accuracy)

    return {
        'acc': figure(scores.acc),
        'acc_norm': figure(scores.acc_norm),
        'groups': {name: figure(part) for name, part in scores.groups.items()},
        'questions': [
            {
                'where': question.where,
                'gold': question.gold,
                'acc': plain,
                'acc_norm': by_character,
                'log_likelihoods': values,
            }
            for question, plain, by_character, values in zip(
                questions,
                scores.plain,
                scores.by_character,
                scores.log_likelihoods,
                strict=True,
            )
        ],
    }
