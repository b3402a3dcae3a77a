"""Conversations whose answers every model is measured on: held-out and plain ones."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from ppjax.base import errors, progress
from ppjax.data import calibration, chat
from ppjax.evaluation import candidates as candidates_lib
from ppjax.evaluation import config as config_lib
from ppjax.evaluation import likelihood
from ppjax.learning import data as data_lib
from ppjax.synthesis import sources
from ppjax.training import trained_run


def measure(
    cfg: config_lib.EvaluateConfig,
    candidates: candidates_lib.Candidates,
    rows: Sequence[calibration.Row],
    *,
    source: str,
    label: str,
) -> dict[str, Any]:
    """What every model makes of the rows' answers, as results keep it.

    Args:
        cfg: the settings.
        candidates: the models, which are loaded.
        rows: the conversations.
        source: where they are from.
        label: of the task, for people.

    Raises:
        InputError: if no row can be measured.
    """
    models = [model.load() for model in candidates.models]
    renderer = chat.ChatRenderer(
        models[0].tokenizer,
        date=cfg.template_date,
        vocab_size=min(model.base.config.vocab_size for model in models),
    )
    positions = min(model.base.config.max_position for model in models)
    examples, dropped = chat.render_rows(
        renderer, list(rows), cfg.max_length, positions=positions
    )
    limit = min(cfg.max_length, positions)
    progress.say(f'{label}: {len(examples)} examples, {dropped.summary(limit)}.')
    found = likelihood.measure(
        models[0],
        models,
        examples,
        batch_size=cfg.batch_size,
        progress=progress.counter(label),
    )
    ids = [example.query_id for example in examples]
    return {
        'heldout': {
            'source': source,
            'rows': len(examples),
            **dataclasses.asdict(dropped),
            'answer_tokens': sum(e.num_answer_tokens for e in examples),
        },
        **likelihood.as_json(candidates.names, found, ids),
    }


def plain_rows(
    cfg: config_lib.EvaluateConfig, run: trained_run.TrainedRun | None
) -> list[calibration.Row]:
    """Some of the general instructions that `--plain` names, with no persona prompt.

    Args:
        cfg: the settings.
        run: whose calibration questions are left out.

    Raises:
        InputError: if there is none, or a source cannot be read.
    """
    assert cfg.plain
    learned = _learned_questions(run) if run else []
    mixed = sources.mix_instructions(
        cfg.plain, learned, seed=cfg.seed, require_answer=True
    )
    progress.say(mixed.summary)
    rows = [
        calibration.Row(
            (
                {'role': 'user', 'content': instruction.query},
                {'role': 'assistant', 'content': instruction.answer},
            ),
            instruction.query_id,
            where=instruction.query_id,
        )
        for instruction in mixed.rows
    ]
    return data_lib.subset(rows, min(cfg.plain_examples, len(rows)), cfg.seed)


def _learned_questions(run: trained_run.TrainedRun) -> list[str]:
    try:
        return [row.query for row in run.calibration_rows()]
    except errors.InputError as error:
        progress.say(
            f"Note: the run's calibration rows are not left out of --plain: {error}"
        )
        return []
