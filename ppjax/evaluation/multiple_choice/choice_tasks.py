"""A benchmark on one model: its log-likelihoods, predictions and accuracies."""

from collections.abc import Callable, Sequence
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


def evaluate(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    tokenizer: transformers.PreTrainedTokenizerBase,
    questions: Sequence[benchmarks.ChoiceQuestion],
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Scores every choice of every question; see `summarise` for the result.

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
    questions: Sequence[benchmarks.ChoiceQuestion], scores: Sequence[list[float]]
) -> dict[str, Any]:
    """The figures of one model as results/TASK.json keeps them.

    Args:
        questions: of one task.
        scores: log-likelihoods of every question's choices, in nats.

    Returns:
        `acc`, the share of questions whose likeliest choice is right; `acc_norm`, that
        of the likeliest by character, None where choices are letters; `acc` by subject,
        if there are any, in `groups`; and all `questions` with both choices.
    """
    listed: list[dict[str, Any]] = [
        {
            'where': question.where,
            'gold': question.gold,
            'acc': plain,
            'acc_norm': by_character,
            'log_likelihoods': values,
        }
        for question, values, plain, by_character in zip(
            questions, scores, *benchmarks.predictions(questions, scores), strict=True
        )
    ]
    hits: dict[str, list[bool]] = {}
    for question, row in zip(questions, listed, strict=True):
        if question.group:
            hits.setdefault(question.group, []).append(row['acc'] == row['gold'])
    groups = {name: benchmarks.accuracy(own) for name, own in hits.items()}

    def over_all(metric: str) -> benchmarks.Accuracy:
        return benchmarks.accuracy([row[metric] == row['gold'] for row in listed])

    acc = benchmarks.pooled([*groups.values()]) if groups else over_all('acc')
    return {
        'acc': dataclasses.asdict(acc),
        'acc_norm': None if groups else dataclasses.asdict(over_all('acc_norm')),
        'groups': {name: dataclasses.asdict(own) for name, own in groups.items()},
        'questions': listed,
    }
