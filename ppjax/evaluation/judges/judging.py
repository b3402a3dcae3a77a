"""The run of a judge: every verdict logged and asked once; and what they come to.

The log is a file of JSON lines, one a verdict:

    {"prompt_sha256", "key", "score", "mass", "refusal", "text"}

The hash is over the judge's identity, the prompt and its range of scores, so a changed
judge, question or answer is asked anew; `key` is for people. Failures are not logged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from ppjax.base import asked_log, errors, json_lines
from ppjax.evaluation import bootstrap
from ppjax.evaluation.judges import judge_scoring

# An answer that is likelier than not called one is counted as a refusal.
REFUSED = 0.5

# Asked where a judge's first verdict has no number; {} is one.
_CONTROL = 'Write the number {} and nothing else.'
_CONTROL_NUMBER = 85


def judge_all(
    judge: judge_scoring.Judge,
    requests: Sequence[judge_scoring.JudgeRequest],
    *,
    log_path: str | pathlib.Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, judge_scoring.Verdict]:
    """Asks for every verdict that the log does not have.

    A run that is killed loses at most the verdicts that were on their way. Equal
    prompts are asked once.

    Args:
        judge: who is asked.
        requests: one a key.
        log_path: of the log; made if absent.
        progress: called with (requests done, all requests), first for the logged.

    Returns:
        The verdicts by key, in the order of the requests; those that failed have a
        `failure`, and are asked for again by the next call.

    Raises:
        InputError: if the judge cannot be used, gives no numbers, or the log is no
            log or cannot be written. What was logged stays.
        ValueError: if two requests have one key, or the judge answers one that it
            was not asked.
    """
    if len({request.key for request in requests}) != len(requests):
        raise ValueError('Two requests have the same key.')
    if not requests:
        return {}
    # A local model's identity is a hash of its weights: once, not once a request.
    identity = judge.identity
    keys = [_hash(request, identity) for request in requests]
    log = asked_log.AskedLog(log_path, 'a judge log', _parse)
    with contextlib.closing(log):
        doubted = not any(log.known[key].understood for key in keys if key in log.known)
        found = log.ask(
            requests,
            keys,
            functools.partial(_asked, judge, doubted=doubted),
            _entry,
            silent=judge_scoring.failed('', 'the judge gave no verdict'),
            progress=progress,
        )
    return {
        request.key: dataclasses.replace(verdict, key=request.key)
        for request, verdict in zip(requests, found, strict=True)
    }


def _asked(
    judge: judge_scoring.Judge,
    requests: Sequence[judge_scoring.JudgeRequest],
    *,
    doubted: bool,
) -> Iterator[tuple[int, judge_scoring.Verdict]]:
    """(index of the request, verdict) as they come.

    Args:
        judge: who is asked.
        requests: one at least.
        doubted: whether it is not known yet that the judge answers in numbers.
    """
    numbers = {request.key: number for number, request in enumerate(requests)}
    with contextlib.closing(judge.judge(requests)) as verdicts:
        for verdict in verdicts:
            if verdict.key not in numbers:
                raise ValueError(f'The judge was not asked {verdict.key!r}.')
            number = numbers[verdict.key]
            if doubted and not verdict.failure:
                if not verdict.understood:
                    _refuse_without_numbers(judge, requests[number], verdict)
                doubted = False
            yield number, verdict


def _refuse_without_numbers(
    judge: judge_scoring.Judge,
    request: judge_scoring.JudgeRequest,
    verdict: judge_scoring.Verdict,
) -> None:
    """Raises:
    InputError: if a judge that gave no number gives none where it must either.
    """
    number = min(_CONTROL_NUMBER, request.numbers[1])
    control = judge_scoring.JudgeRequest(
        'number check', _CONTROL.format(number), request.numbers
    )
    for found in judge.judge([control]):
        if not (found.failure or found.understood):
            raise errors.InputError(
                'The judge does not answer in numbers: it begins with '
                f'{verdict.text[:60]!r} and gives all of them {verdict.mass:.0%} '
                f'together; asked to write {number}, it begins with '
                f'{found.text[:60]!r}. Turn its reasoning off, or take another judge.'
            )


def refuse_unscored(
    name: str | None, verdicts: Sequence[judge_scoring.Verdict]
) -> None:
    """Raises:
    InputError: if there are verdicts, and not one of them is a score.
    """
    if not verdicts or any(verdict.score is not None for verdict in verdicts):
        return
    judged = [verdict for verdict in verdicts if not verdict.failure]
    if not judged:
        raise errors.InputError(
            f'The judge {name} gave no verdict on any of {len(verdicts)} answers; on '
            f'the first: {verdicts[0].failure}. The answers are kept.'
        )
    refused = sum(verdict.refusal >= REFUSED for verdict in judged)
    raise errors.InputError(
        f'The judge {name} scored none of {len(verdicts)} answers; {refused} of them '
        f'it called refusals, and on the first it began with {judged[0].text[:60]!r}. '
        'The answers are kept.'
    )


def _hash(request: judge_scoring.JudgeRequest, identity: str) -> str:
    judged: list[Any] = [identity, request.prompt]
    if request.numbers != judge_scoring.ALL_NUMBERS:
        judged.append(list(request.numbers))
    return json_lines.digest(judged)


def _entry(
    digest: str, request: judge_scoring.JudgeRequest, verdict: judge_scoring.Verdict
) -> dict[str, Any]:
    del request  # The verdict has its key.
    entry = dataclasses.asdict(verdict)
    del entry['failure']
    return {'prompt_sha256': digest} | entry


def _parse(entry: Any) -> tuple[str, judge_scoring.Verdict]:
    def within(value: Any, largest: float) -> float:
        if type(value) not in (int, float) or not 0 <= value <= largest:
            raise TypeError
        return float(value)

    digest, key, text = json_lines.typed(entry, prompt_sha256=str, key=str, text=str)
    return digest, judge_scoring.Verdict(
        key=key,
        score=None if entry['score'] is None else within(entry['score'], 100.0),
        mass=within(entry['mass'], 1.0),
        refusal=within(entry['refusal'], 1.0),
        text=text,
    )


def summarise(
    verdicts: Sequence[judge_scoring.Verdict], personas: Sequence[str]
) -> dict[str, Any]:
    """What the verdicts on one model's answers come to, as results/judge.json has it.

    Args:
        verdicts: [n].
        personas: [n], whose answer each is.

    Returns:
        Figures, None where there is nothing:
        n: answers.
        n_failed: without a verdict; they enter no other figure.
        n_scored: with a score.
        n_refused: called a refusal with a probability of `REFUSED` or more.
        mean: of the scores.
        mean_with_zeros: the same with 0 for an answer that got none.
        persona_means: mean score of each persona that has one.
        mean_over_personas: of these.
        std_over_personas: of these, divided by one less than their number.
        interval: 95 % bootstrap interval of `mean_over_personas`.

    Raises:
        ValueError: if the lengths differ.
    """
    judged = [verdict for verdict in verdicts if not verdict.failure]
    scores = [verdict.score for verdict in judged if verdict.score is not None]
    groups = _grouped(
        (persona, verdict.score)
        for verdict, persona in zip(verdicts, personas, strict=True)
    )
    means = {persona: float(np.mean(values)) for persona, values in groups.items()}
    over = list(means.values())
    return {
        'n': len(verdicts),
        'n_failed': len(verdicts) - len(judged),
        'n_scored': len(scores),
        'n_refused': sum(verdict.refusal >= REFUSED for verdict in judged),
        'mean': float(np.mean(scores)) if scores else None,
        'mean_with_zeros': math.fsum(scores) / len(judged) if judged else None,
        'persona_means': means,
        'mean_over_personas': float(np.mean(over)) if over else None,
        'std_over_personas': float(np.std(over, ddof=1)) if len(over) > 1 else None,
        'interval': bootstrap.grouped_interval(groups) if groups else None,
    }


def paired_difference(
    dense: Sequence[judge_scoring.Verdict],
    other: Sequence[judge_scoring.Verdict],
    personas: Sequence[str],
) -> dict[str, Any]:
    """Scores of one model less the dense model's, question by question.

    Args:
        dense: [n].
        other: [n], on the same questions in the same order.
        personas: [n].

    Returns:
        n: questions on which both have a score.
        mean: of the differences, in points; over personas of their means.
        interval: its 95 % bootstrap interval; both are None without any.

    Raises:
        ValueError: if the lengths differ.
    """

    def change(
        base: judge_scoring.Verdict, ours: judge_scoring.Verdict
    ) -> float | None:
        if base.score is None or ours.score is None:
            return None
        return ours.score - base.score

    groups = _grouped(
        (persona, change(base, ours))
        for base, ours, persona in zip(dense, other, personas, strict=True)
    )
    means = [np.mean(values) for values in groups.values()]
    return {
        'n': sum(map(len, groups.values())),
        'mean': float(np.mean(means)) if groups else None,
        'interval': bootstrap.grouped_interval(groups) if groups else None,
    }


def _grouped(values: Iterable[tuple[str, float | None]]) -> dict[str, list[float]]:
    """The values of each persona that are there, personas as they first come."""
    groups: dict[str, list[float]] = {}
    for persona, value in values:
        if value is not None:
            groups.setdefault(persona, []).append(value)
    return groups
