"""Scoring a whole mixture: resumable, with every score kept."""

from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from ppjax.base import json_lines
from ppjax.base import progress as progress_lib
from ppjax.data import chat, instructions
from ppjax.models import base_model, loading
from ppjax.synthesis import prompt_tokens, sensitivity


@dataclasses.dataclass(frozen=True)
class Scored:
    """Instructions with their scores.

    Attributes:
        rows: those that could be scored, in the order of the mixture.
        scores: of each.
        too_long: how many were left out for their length.
        refused: how many for holding the model's own markup.
    """

    rows: tuple[instructions.Instruction, ...]
    scores: tuple[float, ...]
    too_long: int
    refused: int


def _parse(entry: Any) -> tuple[str, float]:
    return str(entry['query_id']), float(entry['score'])


def score(
    base: base_model.BaseModel,
    renderer: chat.ChatRenderer,
    rows: Sequence[instructions.Instruction],
    system_prompts: Sequence[str],
    path: pathlib.Path,
    *,
    layers: tuple[int, int],
    max_length: int,
    batch_tokens: int,
    dtype: str,
    mesh: jax.sharding.Mesh | None = None,
) -> Scored:
    """Scores every instruction's query; scores that `path` has are not made again.

    Args:
        base: the model whose representations are compared.
        renderer: its chat template.
        rows: the mixture.
        system_prompts: of the target (first) and the references.
        path: scores.jsonl, `{"query_id", "score"}` a line, in the order made.
        layers: see `sensitivity.parse_layers`.
        max_length: longer prompts are left out.
        batch_tokens: tokens of queries that run at a time.
        dtype: precision of weights and activations.
        mesh: that the model is loaded onto; None copies it to all devices.

    Raises:
        InputError: if no row can be scored, or `path` is no file of scores or cannot
            be written.
    """
    prompts = prompt_tokens.render(
        renderer, system_prompts, [row.query for row in rows], max_length=max_length
    )
    chosen = [rows[index] for index in prompts.rendered]
    with contextlib.closing(json_lines.AppendLog(path)) as log:
        known = dict(log.rows(_parse, 'a file of scores'))
        skip = frozenset(
            number for number, row in enumerate(chosen) if row.query_id in known
        )
        if len(skip) < len(chosen):
            if skip:
                progress_lib.say(f'{len(skip)} of {len(chosen)} scores are known.')
            model = loading.load_decoder(
                base.reader,
                base.config,
                dtype=jnp.dtype(dtype),
                mesh=mesh,
                progress=progress_lib.counter('Loading tensors'),
            )
            scorer = sensitivity.Scorer(
                model, prompts, layers=layers, batch_tokens=batch_tokens
            )
            shown = progress_lib.Progress('Sensitivity', len(chosen), initial=len(skip))
            done = len(skip)
            for queries, found in scorer.score(skip):
                entries = [
                    {'query_id': chosen[query].query_id, 'score': float(value)}
                    for query, value in zip(queries, found, strict=True)
                ]
                log.append(*entries)
                known |= {entry['query_id']: entry['score'] for entry in entries}
                done += len(queries)
                shown.update(done)
            shown.close()
    return Scored(
        rows=tuple(chosen),
        scores=tuple(known[row.query_id] for row in chosen),
        too_long=prompts.too_long,
        refused=prompts.refused,
    )
