"""Recovers RoleBench roles' pruned models and tabulates their held-out persona NLL.

    python launch/rolebench_recovery.py --runs=runs/rolebench --roles=jack_sparrow

Goes on from the masks that launch/rolebench.py has learned in --runs, and learns from
all answers to a role's training questions. Every run can be interrupted; the same
command goes on. The result is a Markdown table on stdout, and `recovery.json` in --runs,
to which commands with other roles, steps or rates add theirs.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from ppjax.base import atomic, errors, flags, ranges, settings
from ppjax.evaluation import bootstrap


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which models are recovered, and how."""

    runs: str = flags.setting(
        'runs/rolebench', 'What launch/rolebench.py has written.', path=True
    )
    roles: str = flags.setting(
        None, "Folders of the roles in --runs, separated by commas, as 'jack_sparrow'."
    )
    mask_run: str = flags.setting(
        'sparsity_0.5',
        'Run of mask learning in --runs, of all roles, to go on from.',
        path=True,
    )
    steps: int = flags.setting(63, 'Optimizer steps of 16 examples.')
    # The best of those tried on Jack Sparrow's held-out rows.
    rates: str = flags.setting(
        '1e-4',
        'Learning rates for all weights, separated by commas; may be empty.',
        may_be_empty=True,
    )
    lora_rates: str = flags.setting(
        '2e-3', 'Learning rates for adapters, likewise.', may_be_empty=True
    )
    lora_rank: int = flags.setting(16, 'Rank of the adapters.', least=1)

    def __post_init__(self) -> None:
        settings.require_given(self, 'roles')
        ranges.check(self)

    @property
    def tried(self) -> list[tuple[int, str]]:
        """(rank of adapters or 0, learning rate) of the runs of each role."""
        ranks = {0: self.rates, self.lora_rank: self.lora_rates}
        return [
            (rank, rate.strip())
            for rank, rates in ranks.items()
            for rate in rates.split(',')
            if rate.strip()
        ]


def recover(settings: Settings, role: str, rank: int, rate: str) -> dict[str, Any]:
    """Recovers one role's model, or goes on; what results/recovery.json says.

    Args:
        settings: of all runs.
        role: folder of its data and runs.
        rank: of adapters; 0 trains all weights.
        rate: peak learning rate.

    Raises:
        InputError: if the run fails; it has said why.
    """
    folder = pathlib.Path(settings.runs) / role
    method = f'lora_{rank}' if rank else 'full'
    name = f'{settings.mask_run}-{method}-{rate}-{settings.steps}_steps'
    output = folder / f'recovered_{name}'
    command = [
        sys.executable,
        '-m',
        'ppjax.recover',
        f'--run={pathlib.Path(settings.runs, settings.mask_run, "personas", role)}',
        f'--calibration={folder / "train_all_answers.jsonl"}',
        f'--heldout={folder / "test.jsonl"}',
        f'--steps={settings.steps}',
        f'--lora_rank={rank}',
        f'--learning_rate={rate}',
        '--micro_batches=2',
        '--dtype=bfloat16',
        f'--output_dir={output}',
    ]
    print(f'== {role}, {method}, {rate}', file=sys.stderr, flush=True)
    # Stdout is the table's.
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code:
        raise errors.InputError(f'Recovery of {role} ended with exit code {code}.')
    text = (output / 'results' / 'recovery.json').read_text('utf-8')
    return dict(json.loads(text))


def to_dense(result: dict[str, Any]) -> dict[str, Any]:
    """Recovered minus dense in nats per answer token, and its 95 % interval."""
    examples = result['examples']
    gains = np.array([example['recovered'] - example['dense'] for example in examples])
    tokens = np.array([example['answer_tokens'] for example in examples])
    return {
        'nll': float(gains.sum() / tokens.sum()),
        'interval': list(bootstrap.ratio_interval(gains, tokens)),
    }


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table, in nats per answer token."""
    lines = [
        '| role | trained | steps | learning rate | dense | learned mask | recovered | '
        + 'recovered - dense | 95 % interval |',
        '|' + '---|' * 9,
    ]
    for row in results:
        nll = {name: float(own['nll']) for name, own in row['models'].items()}
        rank = row['settings']['lora_rank']
        low, high = row['to_dense']['interval']
        cells = [
            row['role'],
            f'LoRA, rank {rank}' if rank else 'all weights',
            str(row['steps']),
            f'{row["learning_rate"]:g}',
            *(f'{nll[name]:.3f}' for name in ('dense', 'start', 'recovered')),
            f'{row["to_dense"]["nll"]:+.3f}',
            f'{low:+.3f} to {high:+.3f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    rank = row['settings']['lora_rank']
    return row['role'], rank, row['learning_rate'], row['steps']


def merged(
    before: Sequence[dict[str, Any]], row: dict[str, Any]
) -> list[dict[str, Any]]:
    """All results with one more, which takes the place of its earlier self."""
    return [*(other for other in before if _key(other) != _key(row)), row]


def main(settings: Settings) -> int:
    """Recovers all roles' models in all ways."""
    results = []
    file = pathlib.Path(settings.runs) / 'recovery.json'
    for role in settings.roles.split(','):
        for rank, rate in settings.tried:
            found = recover(settings, role.strip(), rank, rate)
            found['to_dense'] = to_dense(found)
            # Examples' own figures stay in the runs.
            del found['examples']
            results.append({'role': role.strip()} | found)
            before = json.loads(file.read_text('utf-8')) if file.exists() else []
            atomic.write_json(file, merged(before, results[-1]))
    print(markdown(results))
    return 0


if __name__ == '__main__':
    flags.run(Settings, main)
