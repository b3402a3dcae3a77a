"""Character fidelity of every model's answers: the flaws that a judge finds in them."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from ppjax.base import atomic
from ppjax.base import progress as progress_lib
from ppjax.evaluation import candidates, config, helper_models, results_store
from ppjax.evaluation.answers import answers, judged_answers
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import flaw_judging, judge_scoring, judging
from ppjax.evaluation.judges import flaws as flaws_lib

# Relative to the run directory; the answers' is that of the judged ones.
_LOG = pathlib.Path('evaluation', 'flaws.jsonl')


def judge(cfg: config.EvaluateConfig, models: candidates.Candidates) -> dict[str, Any]:
    """Answers and judges; writes results/fidelity.json and fidelity.csv.

    The answers are those of `judged_answers`, given once for both.

    Raises:
        InputError: if the judge cannot be used, or lists no flaws of any answer;
            answers and replies so far stay.
    """
    asked = judged_answers.questions(cfg, models)
    settings = helper_models.settings(cfg, models, ('judge',)) | {
        'seed': cfg.seed,
        'questions': [dataclasses.astuple(question) for question in asked],
    }
    path = cfg.run / 'results' / 'fidelity.json'
    if there := results_store.stored(path, settings, overwrite=cfg.overwrite):
        return there
    # Before hours of answers: it fails sooner.
    critic = helper_models.HelperModels(cfg).critic()
    given = {
        model.name: judged_answers.answer(cfg, model, asked) for model in models.models
    }
    verdicts = _verdicts(cfg, critic, asked, given)
    # An answer that could not be given has none, however often it is asked for.
    wanted = [
        verdict
        for name, own in verdicts.items()
        for one, verdict in zip(given[name], own, strict=True)
        if not one.failure
    ]
    flaw_judging.refuse_unscored(cfg.judge_model, wanted)
    settings |= judged_answers.lacking([verdict.failure for verdict in wanted])
    groups = [question.group for question in asked]
    found: dict[str, Any] = {'judge': critic.identity, 'models': {}, 'answers': []}
    scored = {name: list(map(as_scored, own)) for name, own in verdicts.items()}
    dense = scored[models.names[0]]
    for name, own in verdicts.items():
        figures = summarise(own, groups)
        if name != models.names[0]:
            figures['to_dense'] = judging.paired_difference(dense, scored[name], groups)
        found['models'][name] = {'fidelity': figures}
        for question, one, verdict in zip(asked, given[name], own, strict=True):
            row = judged_answers.row_of(name, question, one)
            found['answers'].append(row | row_of(verdict))
    table = [row | {'fidelity_flaws': _cell(row)} for row in found['answers']]
    atomic.write_text(
        cfg.run / 'results' / 'fidelity.csv', judged_answers.csv_of(table)
    )
    return results_store.measured(path, settings, lambda: found, overwrite=True)


def _verdicts(
    cfg: config.EvaluateConfig,
    critic: speakers.Speaker,
    asked: Sequence[answers.Question],
    given: dict[str, list[speakers.Said]],
) -> dict[str, list[flaw_judging.FlawVerdict]]:
    """The verdict on every answer of every model, in their order."""
    places, prompts = [], []
    found: dict[str, list[flaw_judging.FlawVerdict]] = {}
    for name, own in given.items():
        found[name] = []
        for number, (question, one) in enumerate(zip(asked, own, strict=True)):
            found[name].append(flaw_judging.failed(f'no answer: {one.failure}'))
            if not one.failure:
                places.append((name, number))
                prompts.append(
                    flaws_lib.prompt(question.persona, question.question, one.text)
                )
    verdicts = flaw_judging.judge_all(
        critic,
        prompts,
        log_path=cfg.run / _LOG,
        progress=lambda attempt: progress_lib.counter(
            'Judging, fidelity' + f', attempt {attempt}' * (attempt > 1)
        ),
    )
    for (name, number), verdict in zip(places, verdicts, strict=True):
        found[name][number] = verdict
    return found


def as_scored(verdict: flaw_judging.FlawVerdict) -> judge_scoring.Verdict:
    """A verdict as `judging` sums them up."""
    return judge_scoring.Verdict('', verdict.score, 1.0, 0.0, '', verdict.failure)


def summarise(
    verdicts: Sequence[flaw_judging.FlawVerdict], personas: Sequence[str]
) -> dict[str, Any]:
    """What the verdicts on one model's answers come to, as results/fidelity.json has it.

    Args:
        verdicts: [n].
        personas: [n], whose answer each is.

    Returns:
        n, n_failed, n_scored, mean, persona_means, mean_over_personas,
            std_over_personas, interval: as in `judging.summarise`.
        n_malformed: answers whose flaws were never listed as JSON; they have no score.
        n_retried: answers on which a reply was malformed, whatever came after it.
        flaws_per_answer: of those with a score; in all, and by type.
        severity: of a flaw, on average; None without any.
    """
    found = judging.summarise(list(map(as_scored, verdicts)), personas)
    # Of refusals, which this judge does not call.
    del found['n_refused'], found['mean_with_zeros']
    lists = [verdict.flaws for verdict in verdicts if verdict.flaws is not None]
    flaws = [flaw for own in lists for flaw in own]
    count = len(lists)

    def share(own: int) -> float | None:
        return own / count if count else None

    return found | {
        'n_malformed': sum(x.flaws is None and not x.failure for x in verdicts),
        'n_retried': sum(x.replies > 1 for x in verdicts),
        'flaws_per_answer': {
            'all': share(len(flaws)),
            **{
                kind: share(sum(flaw.type == kind for flaw in flaws))
                for kind in flaws_lib.KINDS
            },
        },
        'severity': float(np.mean([x.severity for x in flaws])) if flaws else None,
    }


def row_of(verdict: flaw_judging.FlawVerdict) -> dict[str, Any]:
    """What files say of one verdict."""
    return {
        'fidelity_score': verdict.score,
        'fidelity_flaws': None
        if verdict.flaws is None
        else [dataclasses.asdict(flaw) for flaw in verdict.flaws],
        'fidelity_replies': verdict.replies,
        'fidelity_failure': verdict.failure,
    }


def _cell(row: dict[str, Any]) -> str | None:
    flaws = row['fidelity_flaws']
    return None if flaws is None else json.dumps(flaws, ensure_ascii=False)
