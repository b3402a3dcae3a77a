"""Conversations whose answers every model is measured on: held-out and plain ones."""

from collections.abc import Mapping, Sequence
import dataclasses
import types
from typing import Any

import numpy as np

from ppjax.base import errors, processes, progress
from ppjax.data import calibration, chat
from ppjax.evaluation import candidates as candidates_lib
from ppjax.evaluation import config as config_lib
from ppjax.evaluation import likelihood, timing
from ppjax.learning import data as data_lib
from ppjax.masking import apply
from ppjax.synthesis import sources
from ppjax.training import trained_run

# The persona prompt, as the rows have it.
FULL = 'full'


def measure(
    cfg: config_lib.EvaluateConfig,
    candidates: candidates_lib.Candidates,
    rows: Sequence[calibration.Row],
    *,
    source: str,
    label: str,
    prompts: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """What every model makes of the rows' answers, as results keep it.

    Args:
        cfg: the settings.
        candidates: the models, which are loaded.
        rows: the conversations.
        source: where they are from.
        label: of the task, for people.
        prompts: name -> a shorter system message, or '' for none, under which the
            same answers are measured too.

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
    kept, dropped = chat.render_kept(
        renderer, list(rows), cfg.max_length, positions=positions
    )
    examples = [example for _, example in kept]
    limit = min(cfg.max_length, positions)
    progress.say(f'{label}: {len(examples)} examples, {dropped.summary(limit)}.')
    found = _of_models(cfg, models, examples, label)
    ids = [example.query_id for example in examples]
    result = {
        'heldout': {
            'source': source,
            'rows': len(examples),
            **dataclasses.asdict(dropped),
            'answer_tokens': sum(e.num_answer_tokens for e in examples),
        },
        **likelihood.as_json(candidates.names, found, ids),
    }
    if not prompts:
        return result

    def under(
        examples: Sequence[chat.Example],
        figures: Sequence[likelihood.ModelLikelihood],
    ) -> dict[str, Any]:
        own = likelihood.as_json(candidates.names, figures, ids)
        for name, x in zip(candidates.names, figures, strict=True):
            own['models'][name]['nll_difference_to_full'] = likelihood.figure(
                x.nll - found[0].nll, x.tokens
            )
        return _cost(cfg, candidates, examples) | own

    measured = {FULL: under(examples, found)}
    del measured[FULL]['examples']  # They are there already.
    for name, text in prompts.items():
        shorter = chat.render_shortened(renderer, [row for row, _ in kept], text, limit)
        figures = _of_models(cfg, models, shorter, f'{label}, {name} prompt')
        measured[name] = {'system_prompt': text} | under(shorter, figures)
    return result | {'prompts': measured}


def _of_models(
    cfg: config_lib.EvaluateConfig,
    models: Sequence[apply.LoadedModel],
    examples: Sequence[chat.Example],
    label: str,
) -> list[likelihood.ModelLikelihood]:
    return likelihood.measure(
        models,
        examples,
        batch_size=cfg.batch_size,
        progress=progress.counter(label),
    )


def _cost(
    cfg: config_lib.EvaluateConfig,
    candidates: candidates_lib.Candidates,
    examples: Sequence[chat.Example],
) -> dict[str, Any]:
    """Tokens of a prompt on average, and the time to the first token after so many."""
    tokens = float(np.mean([example.answer_start for example in examples]))
    if not cfg.timing or processes.count() > 1:
        return {'prompt_tokens': tokens}
    times = timing.measure(
        {model.name: model.load() for model in candidates.models},
        prompt_length=round(tokens),
        answer_length=2,
        rounds=cfg.rounds,
        seed=cfg.seed,
        progress=progress.counter('Timing'),
    )
    return {
        'prompt_tokens': tokens,
        'first_token_seconds': {
            name: timing.spread(own.prefill) for name, own in times.items()
        },
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
    rows = sources.plain_chats(mixed)
    return data_lib.subset(rows, min(cfg.plain_examples, len(rows)), cfg.seed)


def _learned_questions(run: trained_run.TrainedRun) -> list[str]:
    try:
        return [row.query for row in run.calibration_rows()]
    except errors.InputError as error:
        progress.say(
            f"Note: the run's calibration rows are not left out of --plain: {error}"
        )
        return []


def shorter_prompts(
    cfg: config_lib.EvaluateConfig, run: trained_run.TrainedRun | None
) -> dict[str, str]:
    """The system messages of `--prompts` beside the full one, '' for none.

    Args:
        cfg: the settings.
        run: whose --short_prompt is taken where none is given.

    Raises:
        InputError: if a short one is wanted and there is none.
    """
    found = {}
    if 'short' in cfg.prompt_list:
        text = cfg.short_prompt or (run.settings.short_prompt if run else None)
        if not text:
            raise errors.InputError(
                '--prompts=short needs --short_prompt, as in "You are Jack."; the run '
                'has none.'
            )
        found['short'] = text
    if 'none' in cfg.prompt_list:
        found['none'] = ''
    return found
