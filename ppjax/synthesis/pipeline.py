"""Persona in, calibration set out: the story of `python -m ppjax.synthesize`.

Paper, section 3.1 and appendix B: score every general query by how differently the
model represents it under this persona, keep the most sensitive ones, have their
answers rewritten in the persona's voice. The first queries are for testing
(Alpaca-P's top 20), the next ones for learning.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from ppjax.base import (
    atomic,
    errors,
    flags,
    json_lines,
    processes,
    run_directory,
    versions,
)
from ppjax.base import progress as progress_lib
from ppjax.data import calibration, chat, instructions
from ppjax.models import base_model, weights
from ppjax.parallel import sharding
from ppjax.personas import evaluation_set, prompts
from ppjax.personas import persona as persona_lib
from ppjax.synthesis import config as config_lib
from ppjax.synthesis import (
    rewrite_gates,
    rewrite_log,
    rewriting,
    scoring,
    selection,
    sensitivity,
    sources,
)

_MAKES = (
    'role.jsonl',
    'persona.json',
    'scores.jsonl',
    'selected.jsonl',
    'rewrites.jsonl',
    'calibration/train.jsonl',
    'calibration/test.jsonl',
    'evaluation_set.json',
    'results/synthesis.json',
)
_EXAMPLES = 5
_BINS = 40


@dataclasses.dataclass(frozen=True)
class Selected:
    """One query that is kept.

    Attributes:
        row: the instruction.
        score: its sensitivity.
        rank: 0 for the most sensitive query.
        split: 'test', 'train', or 'unused' beyond `--train_size`.
    """

    row: instructions.Instruction
    score: float
    rank: int
    split: str


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The files of a finished synthesis; None where nobody rewrote.

    Attributes:
        persona: whose they are.
        train: calibration/train.jsonl.
        test: calibration/test.jsonl, or None if it would be empty.
    """

    persona: persona_lib.Persona
    train: pathlib.Path | None
    test: pathlib.Path | None


def describe_role(
    role: str, rewriter: rewriting.Rewriter, path: pathlib.Path
) -> persona_lib.Persona:
    """Has a known character described (paper, Table 19; appendix B.2).

    Args:
        role: its name.
        rewriter: who describes it.
        path: where the reply is kept, so that it is asked for once.

    Raises:
        InputError: if no usable description came back.
    """
    request = rewriting.Request(
        role, '', ({'role': 'user', 'content': prompts.role_expansion_prompt(role)},)
    )
    described, _ = rewrite_log.rewrite_all(rewriter, [request], path)
    return persona_lib.Persona(described[role].strip(), name=role, source='--role')


def split(
    scored: scoring.Scored, *, keep_fraction: float, test_size: int, train_size: int
) -> list[Selected]:
    """Ranks and splits the kept queries (appendix B: the top ones are for testing).

    Raises:
        InputError: if nothing would be left to learn from.
    """
    order = selection.select(scored.scores, keep_fraction)
    if len(order) <= test_size:
        raise errors.InputError(
            f'Of {len(scored.rows)} queries {len(order)} are kept, and the first '
            f'{test_size} of them are for testing: nothing is left to learn from. Give '
            'more --instructions, a larger --keep_fraction or a smaller --test_size.'
        )
    names = ['test'] * test_size + ['train'] * train_size
    names += ['unused'] * (len(order) - len(names))
    return [
        Selected(scored.rows[index], scored.scores[index], rank, name)
        for rank, (index, name) in enumerate(zip(order, names, strict=False))
    ]


def _write_selected(path: pathlib.Path, selected: Sequence[Selected]) -> None:
    rows = [
        {
            'query_id': one.row.query_id,
            'query': one.row.query,
            'answer': one.row.answer,
            'source': one.row.source,
            'score': one.score,
            'rank': one.rank,
            'split': one.split,
        }
        for one in selected
    ]
    json_lines.write(path, rows)


def _write_calibration(
    path: pathlib.Path,
    persona: persona_lib.Persona,
    selected: Sequence[Selected],
    rewrites: dict[str, str],
) -> int:
    rows = [
        {
            'messages': calibration.conversation(
                persona.system_prompt, one.row.query, rewrites[one.row.query_id]
            ),
            'query_id': one.row.query_id,
            'score': one.score,
            'source': one.row.source,
        }
        for one in selected
        if one.row.query_id in rewrites
    ]
    if rows:
        json_lines.write(path, rows)
    else:
        path.unlink(missing_ok=True)
    return len(rows)


def statistics(scored: scoring.Scored, selected: Sequence[Selected]) -> dict[str, Any]:
    """What Figure 2 shows: what the filter prefers, against chance.

    Returns:
        Means of all scores (what a random choice of queries has on average) and of
        the kept ones, the lowest score kept, a histogram, and the queries at both
        ends.
    """
    scores = np.asarray(scored.scores)
    counts, edges = np.histogram(scores, bins=_BINS)
    order = selection.ranking(scored.scores)

    def examples(indices: np.ndarray) -> list[dict[str, Any]]:
        return [
            {'query': scored.rows[index].query, 'score': scored.scores[index]}
            for index in indices
        ]

    return {
        'queries': len(scores),
        'too_long': scored.too_long,
        'markup': scored.refused,
        'kept': len(selected),
        'mean_all': float(scores.mean()),
        'mean_kept': float(np.mean([one.score for one in selected])),
        'threshold': float(selected[-1].score),
        'histogram': {'counts': counts.tolist(), 'edges': edges.tolist()},
        'highest': examples(order[:_EXAMPLES]),
        'lowest': examples(order[::-1][:_EXAMPLES]),
    }


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()


def synthesize(
    cfg: config_lib.SynthesisSettings, *, stage: str | None = None
) -> Calibration:
    """Makes a persona's calibration set in a run directory.

    Args:
        cfg: the settings.
        stage: its name, where it is one of a run of several.

    Raises:
        InputError: for anything wrong with the settings, the files, the rewriter or
            the disk. What was scored and rewritten stays.
    """
    base = base_model.open_base_model(cfg.base_model)
    layers = sensitivity.parse_layers(cfg.score_layers, base.config.num_layers)
    mesh = sharding.inference_mesh(cfg.mesh)
    if mesh is not None:
        sharding.shardings(weights.abstract(base.config), mesh)
    renderer = chat.ChatRenderer(
        base.tokenizer(), date=cfg.date, vocab_size=base.config.vocab_size
    )
    given = sources.read_persona(cfg)
    references = sources.read_references(cfg, given or persona_lib.Persona(''))
    excluded = sources.read_exclusions(cfg)
    mixture = sources.read_instructions(cfg, excluded)
    progress_lib.say(mixture.summary)
    directory = run_directory.RunDirectory(cfg.output_dir, stage=stage)
    path = directory.path
    rewriter = (
        None if cfg.rewriter == 'none' else sources.open_rewriter(cfg, base, renderer)
    )
    inputs = {
        'base model': base.fingerprint(),
        'tokenizer': base_model.tokenizer_fingerprint(renderer.tokenizer),
        'persona': _digest(given.text, given.system_template, given.voice_samples)
        if given
        else _digest(cfg.role),
        'reference personas': _digest([one.text for one in references]),
        'instructions': _digest(
            [(row.query_id, row.query, row.answer) for row in mixture.rows]
        ),
    }
    processes.agree({'settings': flags.to_flagfile(cfg)} | inputs)
    opened = directory.opened(
        cfg,
        inputs,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )
    with opened, directory.stage('synthesize'):
        if given is None:
            assert rewriter is not None and cfg.role is not None
            persona = describe_role(cfg.role, rewriter, path / 'role.jsonl')
            progress_lib.say(f'{cfg.role}: {persona.text}')
        else:
            persona = given
        references = sources.read_references(cfg, persona)
        atomic.write_json(
            path / 'persona.json',
            {
                'name': persona.name,
                'persona': persona.text,
                'system_prompt': persona.system_prompt,
            },
        )
        progress_lib.say(
            f'Sensitivity of {len(mixture.rows)} queries: {persona.name or "persona"} '
            f'against {len(references)} others, blocks {layers[0]} to {layers[1] - 1}.'
        )
        scored = scoring.score(
            base,
            renderer,
            mixture.rows,
            [one.system_prompt for one in (persona, *references)],
            path / 'scores.jsonl',
            layers=layers,
            max_length=cfg.max_length,
            batch_tokens=cfg.batch_tokens,
            dtype=cfg.dtype,
            mesh=mesh,
        )
        selected = split(
            scored,
            keep_fraction=cfg.keep_fraction,
            test_size=cfg.test_size,
            train_size=cfg.train_size,
        )
        _write_selected(path / 'selected.jsonl', selected)
        figures = statistics(scored, selected)
        progress_lib.say(
            f'{len(selected)} of {len(scored.rows)} queries kept: mean sensitivity '
            f'{figures["mean_kept"]:.5f}, {figures["mean_all"]:.5f} over all '
            f'({scored.too_long} too long, {scored.refused} with markup left out).'
        )
        record: dict[str, Any] = {
            'persona': {'name': persona.name, 'text': persona.text},
            'references': len(references),
            'sources': [dataclasses.asdict(counts) for counts in mixture.counts],
            'selection': figures,
            'settings': dataclasses.asdict(cfg),
            'versions': versions.versions(),
        }
        made = Calibration(persona, None, None)
        if rewriter is not None:
            made, record['rewriting'] = _rewrite(
                cfg, path, persona, selected, renderer, rewriter
            )
        questions = [one.row.query for one in selected if one.split == 'test']
        if questions:
            evaluation_set.write(
                path / 'evaluation_set.json',
                evaluation_set.EvaluationSet(
                    persona, tuple(questions), user_id=persona.name
                ),
            )
        atomic.write_json(path / 'results' / 'synthesis.json', record)
        directory.done()
    return made


def _rewrite(
    cfg: config_lib.SynthesisSettings,
    path: pathlib.Path,
    persona: persona_lib.Persona,
    selected: Sequence[Selected],
    renderer: chat.ChatRenderer,
    rewriter: rewriting.Rewriter,
) -> tuple[Calibration, dict[str, Any]]:
    """Has the kept queries answered and writes the calibration files."""
    wanted = [one for one in selected if one.split != 'unused']
    requests = rewriting.requests_for(
        persona,
        [one.row for one in wanted],
        with_reference=cfg.rewrite_with_reference,
    )
    tokenizer = renderer.tokenizer
    gates = rewrite_gates.Gates(
        max_length=cfg.rewrite_max_tokens,
        length=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        markup=renderer.mark_in_answer,
    )
    rewrites, counts = rewrite_log.rewrite_all(
        rewriter,
        requests,
        path / 'rewrites.jsonl',
        gates=gates,
        progress=progress_lib.counter('Rewriting'),
    )
    progress_lib.say(counts.summary())
    files: dict[str, pathlib.Path | None] = {}
    rows = {}
    for name in ('train', 'test'):
        file = path / 'calibration' / f'{name}.jsonl'
        part = [one for one in wanted if one.split == name]
        rows[name] = _write_calibration(file, persona, part, rewrites)
        files[name] = file if rows[name] else None
    if files['train'] is None:
        raise errors.InputError(
            f'No rewrite of the {len(wanted)} kept queries that are for learning can '
            f'be used ({counts.summary()[:-1]}).'
        )
    progress_lib.say(
        f'Calibration set: {rows["train"]} rows to learn from, {rows["test"]} to test.'
    )
    return Calibration(persona, files['train'], files['test']), {
        'backend': cfg.rewriter,
        **dataclasses.asdict(counts),
        **rows,
    }
