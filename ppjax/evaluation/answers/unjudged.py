"""Greedy answers of every model, and what is wrong with them by rule: no judge."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from ppjax.evaluation import candidates, config, results_store
from ppjax.evaluation.answers import answers, failures, judged_answers
from ppjax.evaluation.dialogues import speakers

# What rules alone can tell; whose voice an answer has they cannot.
TYPES = tuple(name for name in failures.TYPES if name != failures.ASSISTANT_LIKE)
NOTHING_WRONG = 'none'


def measure(
    cfg: config.EvaluateConfig, models: candidates.Candidates
) -> dict[str, Any]:
    """Answers the questions and sorts what came; writes results/answers.json.

    The answers are those that `judge` judges, from the same log.

    Raises:
        InputError: if no question can be asked; answers so far stay.
    """
    asked = judged_answers.questions(cfg, models)

    def found() -> dict[str, Any]:
        given = {
            model.name: judged_answers.answer(cfg, model, asked)
            for model in models.models
        }
        rows = {name: _rows(asked, said) for name, said in given.items()}
        return {
            'models': {
                name: _counts(own) | judged_answers.length_figures(given[name])
                for name, own in rows.items()
            },
            'answers': [
                {'model': name} | row for name, own in rows.items() for row in own
            ],
        }

    return results_store.measured(
        cfg.run / 'results' / 'answers.json',
        {
            'models': {model.name: model.identity for model in models.models},
            'dtype': cfg.dtype,
            'date': cfg.template_date,
            'max_new_tokens': cfg.max_new_tokens,
            'questions': [dataclasses.astuple(question) for question in asked],
        },
        found,
        overwrite=cfg.overwrite,
    )


def _rows(
    asked: Sequence[answers.Question], given: Sequence[speakers.Said]
) -> list[dict[str, Any]]:
    """Every answer that was given, and its type."""
    rows = []
    for question, one in zip(asked, given, strict=True):
        if one.failure:
            continue
        found = failures.classify(
            one.text, finished=one.finished, question=question.question
        )
        rows.append(
            {
                'group': question.group,
                'question': question.question,
                'answer': one.text,
                'answer_tokens': one.tokens,
                'finished': one.finished,
                'type': found if found in TYPES else NOTHING_WRONG,
            }
        )
    return rows


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = {name: sum(row['type'] == name for row in rows) for name in TYPES}
    return {
        'n': len(rows),
        'counts': counts,
        'shares': {name: count / len(rows) for name, count in counts.items()},
    }
