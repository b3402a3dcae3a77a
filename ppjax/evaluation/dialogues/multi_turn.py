"""Dialogues of every model, each answer judged for how well it keeps to the persona."""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.evaluation import candidates, config, helper_models, results_store
from ppjax.evaluation.answers import answers, judged_answers
from ppjax.evaluation.dialogues import consistency, dialogues
from ppjax.evaluation.judges import judge_prompts, judge_scoring, judging
from ppjax.personas import persona as persona_lib
from ppjax.personas import prompts, sources

# Relative to the run directory; logs are kept, so that nothing is asked twice.
_DIALOGUES = pathlib.Path('evaluation', 'dialogues.jsonl')
_VERDICTS = pathlib.Path('evaluation', 'verdicts.jsonl')

_PROBE = 'What can you tell me about {key}?'


def starts(
    cfg: config.EvaluateConfig, models: candidates.Candidates
) -> list[dialogues.Start]:
    """How the dialogues begin.

    With questions of `--eval_sets`; or, of a character card with a book as
    `--persona`, with what the book's keywords are asked about; or with the held-out
    questions, put to `--persona` if there is one.

    Raises:
        InputError: if there are none, or a file is malformed.
    """
    persona = None
    if cfg.persona:
        persona = sources.read_persona(cfg.persona, notes=progress_lib.say)
    probes = []
    if persona is not None:
        probes = probe_starts(persona, turns=cfg.turns, count=cfg.dialogues)
    if probes and not cfg.eval_sets:
        return probes
    if not (cfg.eval_sets or cfg.heldout or models.run):
        raise errors.InputError(
            '--tasks=multiturn needs questions to begin with: --eval_sets, --heldout, '
            'or a character card with a book of keywords as --persona.'
        )
    if persona is not None and cfg.eval_sets and not probes:
        progress_lib.say(
            '--persona has no book of keywords; the dialogues are those of --eval_sets.'
        )
    found = []
    asked = judged_answers.questions(cfg, models)
    for question in answers.first_of_each(asked, cfg.dialogues):
        start = dialogues.Start(
            question.persona,
            question.system_prompt,
            (dialogues.Cue(question.question),),
            question.group,
        )
        if persona is not None and not cfg.eval_sets:
            start = dataclasses.replace(
                start,
                persona=persona.text,
                system_prompt=persona.system_prompt,
                group=_group(persona),
            )
        found.append(start)
    return found + probes


def probe_starts(
    persona: persona_lib.Persona, *, turns: int, count: int
) -> list[dialogues.Start]:
    """Dialogues in which a card's partner asks about the keywords of its book.

    Each begins elsewhere in the book and goes on in its order, so that with `count`
    of them the entries come up at different turns, and in as many turns as there are.

    Args:
        persona: of a character card.
        turns: of a dialogue; a smaller book leaves the last ones to the partner.
        count: of dialogues, at most one an entry.
    """
    cues = [
        dialogues.Cue(
            prompts.fill(_PROBE, key=entry.key), entry.content, told=not entry.in_text
        )
        for entry in persona.lorebook
    ]
    count = min(count, len(cues))
    found = []
    for number in range(count):
        first = number * len(cues) // count
        turned = cues[first:] + cues[:first]
        found.append(
            dialogues.Start(
                persona.text,
                persona.system_prompt,
                tuple(turned[:turns]),
                _group(persona),
            )
        )
    return found


def _group(persona: persona_lib.Persona) -> str:
    return persona.name or 'persona'


def _verdicts(
    cfg: config.EvaluateConfig,
    judge: judge_scoring.Judge,
    held: dict[str, list[dialogues.Dialogue]],
) -> dict[str, list[list[judge_scoring.Verdict]]]:
    """The verdict on every turn of every dialogue of every model."""
    requests = []
    for name, own in held.items():
        for number, dialogue in enumerate(own):
            start = dialogue.start
            for turn, one in enumerate(dialogue.turns):
                prompt = judge_prompts.consistency_prompt(
                    start.persona, one.cue.text, one.answer, one.cue.facts
                )
                requests.append(
                    judge_scoring.JudgeRequest(
                        f'{name} {number} {turn}',
                        prompt,
                        judge_prompts.CONSISTENCY_SCORES,
                        group=start.persona,
                    )
                )
    found = judging.judge_all(
        judge,
        requests,
        log_path=cfg.run / _VERDICTS,
        progress=progress_lib.counter('Judging, consistency'),
    )
    return {
        name: [
            [found[f'{name} {number} {turn}'] for turn in range(len(dialogue.turns))]
            for number, dialogue in enumerate(own)
        ]
        for name, own in held.items()
    }


def measure(
    cfg: config.EvaluateConfig, models: candidates.Candidates
) -> dict[str, Any]:
    """Holds the dialogues and judges them; writes results/multiturn.json.

    Raises:
        InputError: if a model cannot be used, or no dialogue comes to a first answer;
            what was said and judged so far stays.
    """
    begun = starts(cfg, models)
    settings = helper_models.settings(cfg, models, ('judge', 'partner')) | {
        'seed': cfg.seed,
        'turns': cfg.turns,
        'starts': [dataclasses.asdict(start) for start in begun],
    }
    path = cfg.run / 'results' / 'multiturn.json'
    if there := results_store.stored(path, settings, overwrite=cfg.overwrite):
        return there
    helpers = helper_models.HelperModels(cfg)
    # Before hours of dialogues: they fail sooner.
    judge, partner = helpers.judge(), helpers.partner()
    held = {
        model.name: dialogues.hold_all(
            helper_models.local_speaker(
                cfg, model.load(), model.identity, cfg.max_new_tokens
            ),
            partner,
            begun,
            turns=cfg.turns,
            log_path=cfg.run / _DIALOGUES,
            progress=progress_lib.counter(f'Dialogues, {model.name}'),
        )
        for model in models.models
    }
    broken = [one for own in held.values() for one in own if one.failure]
    if not any(one.turns for own in held.values() for one in own):
        raise errors.InputError(
            f'None of {len(broken)} dialogues came to an answer; the first: '
            f'{broken[0].failure}'
        )
    verdicts = _verdicts(cfg, judge, held)
    said = [verdict for own in verdicts.values() for turns in own for verdict in turns]
    judging.refuse_unscored(cfg.judge_model, said)
    missing = sum(bool(verdict.failure) for verdict in said)
    if missing:
        progress_lib.say(
            f'{missing} answers have no verdict yet; the same command asks again.'
        )
    if broken:
        progress_lib.say(
            f'{len(broken)} dialogues broke off; the first in {broken[0].failure}.'
        )
    # What a server failed at is tried again; what a model on this machine failed at
    # would fail again.
    unfinished = {
        'without_verdict': missing,
        'broken_off': len(broken) if cfg.partner == 'openai' else 0,
    }
    # Never taken for a whole result.
    settings |= {name: number for name, number in unfinished.items() if number}
    found = {
        'judge': judge.identity,
        'partner': partner.identity,
        'models': {
            name: summary(own, verdicts[name], turns=cfg.turns)
            for name, own in held.items()
        },
        'dialogues': [
            _row(name, dialogue, of_turns)
            for name, own in held.items()
            for dialogue, of_turns in zip(own, verdicts[name], strict=True)
        ],
    }
    return results_store.measured(path, settings, lambda: found, overwrite=True)


def summary(
    held: Sequence[dialogues.Dialogue],
    verdicts: Sequence[Sequence[judge_scoring.Verdict]],
    *,
    turns: int,
) -> dict[str, Any]:
    """One model's figures.

    Args:
        held: its dialogues.
        verdicts: on the turns that each of them has.
        turns: that each should have.
    """
    shape = len(held), turns
    scores = np.full(shape, math.nan)
    judged, there = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, of_turns in enumerate(verdicts):
        for turn, verdict in enumerate(of_turns):
            there[row, turn] = True
            judged[row, turn] = not verdict.failure
            if verdict.score is not None:
                scores[row, turn] = verdict.score
    groups = [dialogue.start.group for dialogue in held]
    found = consistency.summarise(scores, judged, there, groups)
    said = [turn for dialogue in held for turn in dialogue.turns]
    return found | {
        'dialogues': len(held),
        'personas': len(set(groups)),
        'broken_off': sum(bool(dialogue.failure) for dialogue in held),
        'forgotten': sum(bool(turn.forgotten) for turn in said),
        'partner_forgotten': sum(bool(turn.partner_forgotten) for turn in said),
        'at_limit': sum(not turn.finished for turn in said),
    }


def _row(
    name: str,
    dialogue: dialogues.Dialogue,
    verdicts: Sequence[judge_scoring.Verdict],
) -> dict[str, Any]:
    turns = []
    for turn, verdict in zip(dialogue.turns, verdicts, strict=True):
        row: dict[str, Any] = {'message': turn.cue.text}
        if turn.cue.facts:
            row['facts'] = turn.cue.facts
        turns.append(
            row
            | {
                'answer': turn.answer,
                'answer_tokens': turn.tokens,
                'finished': turn.finished,
                'forgotten': turn.forgotten,
                'partner_forgotten': turn.partner_forgotten,
                'score': verdict.score,
                'mass': verdict.mass,
                'failure': verdict.failure,
            }
        )
    return {
        'model': name,
        'group': dialogue.start.group,
        'failure': dialogue.failure,
        'turns': turns,
    }
