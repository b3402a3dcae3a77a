"""Rows for the paper's Table 3: with rewriting and filtering, or without either.

    python -m ppjax.synthesize --persona=demo:ferryman --instructions=demo \\
        --reference_personas=demo --rewriter=file --rewrites=demo:ferryman \\
        --keep_fraction=1 --base_model=smollm2-135m --output_dir=runs/ferryman
    python launch/ablation_rows.py --run=runs/ferryman --instructions=demo \\
        --output_dir=runs/ferryman-rows

From a run that kept all queries. Filtered rows are the most sensitive 40 % of those to
learn from, unfiltered ones as many drawn from all of them; plain ones have the general
answer in place of the rewrite. All four files are as long, and none has a question of the
run's test split.
"""

import dataclasses
import json
import pathlib
import random
from typing import Any

from ppjax.base import errors, flags, json_lines, settings
from ppjax.synthesis import selection, sources


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which run, and what the plain answers are."""

    run: str = flags.setting(
        None, 'A run of python -m ppjax.synthesize with --keep_fraction=1.', path=True
    )
    instructions: str = flags.setting(None, 'Its --instructions.', path=True)
    output_dir: str = flags.setting('runs/ablation', 'Where files go.', path=True)
    keep_fraction: float = flags.setting(
        0.4, 'Share of the rows to learn from that filtering keeps.', within='(0, 1]'
    )
    seed: int = flags.setting(0, 'Of the draw without filtering.')

    def __post_init__(self) -> None:
        settings.require_given(self, 'run', 'instructions')


def variants(
    rows: list[dict[str, Any]], plain: dict[str, str], keep_fraction: float, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """The four sets of rows by name.

    Args:
        rows: of calibration/train.jsonl.
        plain: general answers by query.
        keep_fraction: share that is kept.
        seed: of the draw.

    Raises:
        InputError: if a query has no general answer.
    """
    lacking = [x for x in rows if x['messages'][-2]['content'] not in plain]
    if lacking:
        raise errors.InputError(
            f'--instructions has no answer to {len(lacking)} of {len(rows)} queries, '
            f'the first {lacking[0]["query_id"]}; name what the run read.'
        )
    top = selection.select([row['score'] for row in rows], keep_fraction)
    drawn = random.Random(seed).sample(range(len(rows)), len(top))

    def answered(row: dict[str, Any]) -> dict[str, Any]:
        *before, last = row['messages']
        return row | {
            'messages': [*before, last | {'content': plain[before[-1]['content']]}]
        }

    filtered, unfiltered = [rows[i] for i in top], [rows[i] for i in drawn]
    return {
        'rewritten-filtered': filtered,
        'rewritten': unfiltered,
        'filtered': [answered(row) for row in filtered],
        'neither': [answered(row) for row in unfiltered],
    }


def main(cfg: Settings) -> int:
    """Writes the four files, and says where."""
    file = pathlib.Path(cfg.run) / 'calibration' / 'train.jsonl'
    rows = [row for _, row in json_lines.read(file, 'Calibration file')]
    mixed = sources.mix_instructions(cfg.instructions, [], seed=0, require_answer=True)
    plain = {row.query: row.answer for row in mixed.rows}
    for name, own in variants(rows, plain, cfg.keep_fraction, cfg.seed).items():
        path = pathlib.Path(cfg.output_dir) / f'{name}.jsonl'
        json_lines.write(path, own)
        print(json.dumps({'file': str(path), 'rows': len(own)}))
    return 0


if __name__ == '__main__':
    flags.run(Settings, main)
