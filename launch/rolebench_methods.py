"""Compares ways to a small model of a RoleBench role, from the same rows and steps.

    python launch/rolebench_methods.py --rolebench=FILE --output_dir=runs/methods \\
        --methods=new_persona

A method is a chain of verbs, each in a run directory of its own; chains that begin alike
share what they begin with. `new_persona` leaves the role out of what is shared: a small
model is made from the other roles' answers alone, and the role's own --steps come last.
Every model is measured on the role's held-out rows (or, with --measure_on=dev, on rows
for choosing settings), and on the tasks that say what it lost elsewhere. Every run can be
interrupted; the same command goes on. The result is `methods.json` (`methods-dev.json`), to which commands with other roles or
methods add theirs, and a Markdown table on stdout.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

# Beside this file.
import rolebench_rows
import rolebench_table

from ppjax.base import atomic, errors, flags, ranges, run_directory, settings


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared, on which roles."""

    rolebench: str = flags.setting(None, 'RoleBench rows as JSONL.', path=True)
    output_dir: str = flags.setting('runs/methods', 'Where runs go.', path=True)
    base_model: str = flags.setting(
        'smollm2-135m', 'The dense model, as for python -m ppjax.train.', path=True
    )
    methods: str = flags.setting(
        'new_persona', 'Which methods, separated by commas; see METHODS.'
    )
    roles: str = flags.setting(
        '', 'Names of roles, separated by commas; all by default.', may_be_empty=True
    )
    sparsities: str = flags.setting('0.25,0.5', 'Sparsities, separated by commas.')
    steps: int = flags.setting(
        60, "Optimizer steps of 8 from the role's own rows, in all.", least=2
    )
    refit_rows: int = flags.setting(
        500, "Of the role's rows, so many are what a model is refitted on.", least=2
    )
    shared_steps: int = flags.setting(
        80, "For new_persona: steps of 8 from the other roles' rows.", least=1
    )
    shared_rows: int = flags.setting(
        250, "For new_persona: rows of each other role's that are fitted.", least=2
    )
    rates: str = flags.setting(
        'gains=1e-2,again=1e-2,lora=2e-3,full=1e-4',
        'Learning rates: of gains, of gains that were learned before, of LoRA, of all '
        'weights.',
    )
    measure_on: str = flags.setting(
        'test', 'Held-out rows, or rows to choose settings on.', choices=('test', 'dev')
    )
    tasks: str = flags.setting(
        'likelihood', 'What python -m ppjax.evaluate measures of every model.'
    )
    evaluate: str = flags.setting(
        '',
        'More flags for python -m ppjax.evaluate, separated by spaces: the data of '
        'the tasks.',
        may_be_empty=True,
    )
    seed: int = flags.setting(0, 'Of draws and of the order of rows.')

    def __post_init__(self) -> None:
        settings.require_given(self, 'rolebench')
        ranges.check(self)
        for method in self.method_list:
            if method not in METHODS:
                raise errors.InputError(
                    f'--methods must be some of {", ".join(METHODS)}, got {method!r}.'
                )
        if self.steps % 2:
            raise errors.InputError('--steps must be even: LoRA takes half of them.')
        missing = {'gains', 'again', 'lora', 'full'} - self.rate_of.keys()
        if missing:
            raise errors.InputError(f'--rates lacks {", ".join(sorted(missing))}.')

    @property
    def method_list(self) -> list[str]:
        """The methods, in the order given."""
        return [name.strip() for name in self.methods.split(',')]

    @property
    def rate_of(self) -> dict[str, str]:
        """The learning rates by name."""
        pairs = (part.partition('=') for part in self.rates.split(','))
        return {name.strip(): rate.strip() for name, _, rate in pairs}


def run(verb: str, output: pathlib.Path, *options: str) -> pathlib.Path:
    """Runs a verb in a run directory, or goes on there; returns the directory.

    One that has ended by the same command is not started again. How long it took, in
    all its parts, stands in its `made.json`; a verb that made no run leaves none.

    Raises:
        InputError: if it fails; it has said why.
    """
    file = output / 'made.json'
    command = [verb, *options]
    made: dict[str, Any] = {'command': command, 'seconds': 0.0, 'finished': False}
    if file.exists():
        before = json.loads(file.read_text('utf-8'))
        if before['command'] == command:
            made = before
    if made['finished']:
        return output
    print(f'== {verb} {output}', file=sys.stderr, flush=True)
    began = time.monotonic()
    # Stdout is the table's.
    code = subprocess.run(
        [sys.executable, '-m', f'ppjax.{verb}', f'--output_dir={output}', *options],
        stdout=sys.stderr,
        check=False,
    ).returncode
    made |= {
        'seconds': made['seconds'] + time.monotonic() - began,
        'finished': not code,
    }
    # Without the marker, the next would take it for somebody's own file.
    if not code or (output / run_directory.MARKER).exists():
        atomic.write_json(file, made)
    if code:
        raise errors.InputError(f'{verb} in {output} ended with exit code {code}.')
    return output


def _few(rows: pathlib.Path, count: int, folder: pathlib.Path) -> pathlib.Path:
    """Every n-th line of a file, `count` at most, as another of its name."""
    lines = rows.read_text('utf-8').splitlines(keepends=True)
    few = folder / rows.name
    atomic.write_text(few, ''.join(lines[:: -(-len(lines) // count)]))
    return few


@dataclasses.dataclass(frozen=True)
class Cell:
    """One role at one sparsity.

    Attributes:
        cfg: the settings.
        sparsity: as it is written in flags.
        split: the role's rows.
        others: the other roles' rows, none that asks what any role is measured on.
        folder: of the role's runs.
        shared: of what is made from the others' rows.
        parts: run directories that a model came of.
    """

    cfg: Settings
    sparsity: str
    split: rolebench_rows.Split
    others: Sequence[pathlib.Path]
    folder: pathlib.Path
    shared: pathlib.Path
    parts: list[pathlib.Path] = dataclasses.field(default_factory=list)

    def run(self, verb: str, output: pathlib.Path, *options: str) -> pathlib.Path:
        """`run`, remembered in `parts`."""
        self.parts.append(run(verb, output, *options))
        return output

    def minutes(self) -> float:
        """What all parts took together."""
        made = [json.loads((p / 'made.json').read_text('utf-8')) for p in self.parts]
        return sum(part['seconds'] for part in made) / 60

    def _common(self) -> tuple[str, ...]:
        return ('--dtype=bfloat16', '--max_length=256', f'--seed={self.cfg.seed}')

    def _learned(
        self,
        verb: str,
        name: str,
        steps: int,
        *options: str,
        rows: Sequence[pathlib.Path] = (),
        folder: pathlib.Path | None = None,
    ) -> pathlib.Path:
        source = ','.join(map(str, rows or [self.split.every]))
        return self.run(
            verb,
            (folder or self.folder) / name,
            f'--calibration={source}',
            f'--steps={steps}',
            '--batch_size=8',
            '--heldout_every=100000',
            *self._common(),
            *options,
        )

    def mask(self, name: str, steps: int, *options: str, **where: Any) -> pathlib.Path:
        """A mask learned from activations; its run directory."""
        return self._learned(
            'train',
            name,
            steps,
            f'--base_model={self.cfg.base_model}',
            f'--sparsity={self.sparsity}',
            *options,
            **where,
        )

    def recovered(
        self, name: str, start: str, steps: int, *options: str, **where: Any
    ) -> pathlib.Path:
        """A model finetuned from `start`, a flag; its hf/."""
        found = self._learned(
            'recover', name, steps, start, '--micro_batches=1', *options, **where
        )
        return found / 'hf'

    def refitted(self, name: str = 'refitted', *options: str) -> pathlib.Path:
        """A model refitted to the dense one on the role's rows; its hf/."""
        options = options or (
            f'--base_model={self.cfg.base_model}',
            f'--sparsity={self.sparsity}',
        )
        rows = _few(self.split.every, self.cfg.refit_rows, self.folder / 'rows')
        return (
            self.run(
                'compensate',
                self.folder / name,
                f'--calibration={rows}',
                *self._common(),
                *options,
            )
            / 'hf'
        )

    def gains(self, name: str, start: pathlib.Path, **more: Any) -> pathlib.Path:
        """Gains learned on a model; its hf/."""
        rate = f'--learning_rate={self.cfg.rate_of["gains"]}'
        return self.recovered(
            name, f'--model={start}', self.cfg.steps, '--gains', rate, **more
        )

    def lora(self, name: str, start: str, steps: int = 0) -> pathlib.Path:
        """Adapters of rank 16 learned on a model, in all steps or so many; its hf/."""
        rate = f'--learning_rate={self.cfg.rate_of["lora"]}'
        return self.recovered(
            name, start, steps or self.cfg.steps, '--lora_rank=16', rate
        )

    def full(self, name: str, start: str, steps: int = 0) -> pathlib.Path:
        """All weights learned on a model, in all steps or so many; its hf/."""
        rate = f'--learning_rate={self.cfg.rate_of["full"]}'
        return self.recovered(name, start, steps or self.cfg.steps, rate)

    def half(self) -> str:
        """A mask of half of the steps, as recovery takes it."""
        return f'--run={self.mask("mask_half", self.cfg.steps // 2)}'

    def shared_model(self) -> pathlib.Path:
        """A small model that has not seen the role, made from the others' rows."""
        few = [
            _few(rows, self.cfg.shared_rows, self.shared / 'rows')
            for rows in self.others
        ]
        refitted = self.run(
            'compensate',
            self.shared / 'refitted',
            f'--base_model={self.cfg.base_model}',
            f'--sparsity={self.sparsity}',
            f'--calibration={",".join(map(str, few))}',
            *self._common(),
        )
        return self.recovered(
            'gains',
            f'--model={refitted / "hf"}',
            self.cfg.shared_steps,
            '--gains',
            f'--learning_rate={self.cfg.rate_of["gains"]}',
            rows=self.others,
            folder=self.shared,
        )

    def new_persona(self) -> pathlib.Path:
        """The shared model, and the role's own gains on it."""
        return self.recovered(
            'new_persona',
            f'--model={self.shared_model()}',
            self.cfg.steps,
            '--gains',
            f'--learning_rate={self.cfg.rate_of["again"]}',
        )

    def nested(self) -> pathlib.Path:
        """One mask for all sparsities, exported at this one."""
        found = self._learned(
            'train',
            'nested',
            self.cfg.steps,
            f'--base_model={self.cfg.base_model}',
            '--nested=0.1:0.6',
            '--sparsity=0.35',
            folder=self.folder.parent,
        )
        return self.run(
            'export',
            self.folder / 'nested',
            '--materialize',
            f'--base_model={self.cfg.base_model}',
            f'--mask={found / "mask.pmask"}',
            f'--mask_sparsity={self.sparsity}',
            '--overwrite',
        )

    def paper(self) -> pathlib.Path:
        """The paper's A.1: random scores, 3 passes over the rows, batches of 16."""
        steps = self._paper_steps()
        return (
            self.mask(
                'paper',
                steps,
                '--score_init=random',
                '--batch_size=16',
                *self._curve(steps),
                rows=[self.split.train],
            )
            / 'mask.pmask'
        )

    def a_fifth(self) -> pathlib.Path:
        """Ridge and gains on a fifth of the examples that `paper` takes.

        Half of them are refitted to, and the other half are the gains' steps.
        """
        steps = self._paper_steps() * 16 // 5 // 2 // 8
        lines = self.split.train.read_text('utf-8').splitlines(keepends=True)
        few = self.folder / 'rows' / 'a_fifth.jsonl'
        atomic.write_text(few, ''.join(lines[: 8 * steps]))
        refitted = self.run(
            'compensate',
            self.folder / 'a_fifth_refitted',
            f'--base_model={self.cfg.base_model}',
            f'--sparsity={self.sparsity}',
            f'--calibration={few}',
            f'--heldout={self.split.measured}',
            *self._common(),
        )
        return self.recovered(
            'a_fifth',
            f'--model={refitted / "hf"}',
            steps,
            '--gains',
            f'--learning_rate={self.cfg.rate_of["gains"]}',
            *self._curve(steps),
            rows=[self.split.train],
        )

    def _paper_steps(self) -> int:
        rows = len(self.split.train.read_text('utf-8').splitlines())
        return 3 * (rows // 16)

    def _curve(self, steps: int) -> tuple[str, ...]:
        """Held-out rows are measured 8 times, for the curve of the run's report."""
        return f'--heldout={self.split.measured}', f'--heldout_every={-(-steps // 8)}'

    def masked(self, name: str, steps: int, *options: str) -> pathlib.Path:
        """A mask learned from activations; its file."""
        return self.mask(name, steps, *options) / 'mask.pmask'


# Name -> makes what is measured: a mask file, or an exported model.
METHODS: dict[str, Callable[[Cell], pathlib.Path]] = {
    'one_shot': lambda cell: cell.masked('one_shot', 0),
    'mask': lambda cell: cell.masked('mask', cell.cfg.steps),
    'mask+gains': lambda cell: cell.masked('mask+gains', cell.cfg.steps, '--gains'),
    'ridge': lambda cell: cell.refitted(),
    'mask+ridge': lambda cell: cell.refitted(
        'mask+ridge', f'--run={cell.mask("mask", cell.cfg.steps)}'
    ),
    'ridge+gains': lambda cell: cell.gains('ridge+gains', cell.refitted()),
    'lora': lambda cell: cell.lora('lora', cell.half(), cell.cfg.steps // 2),
    'ridge+lora': lambda cell: cell.lora('ridge+lora', f'--model={cell.refitted()}'),
    'full': lambda cell: cell.full('full', cell.half(), cell.cfg.steps // 2),
    'ridge+full': lambda cell: cell.full('ridge+full', f'--model={cell.refitted()}'),
    'nested': lambda cell: cell.nested(),
    'paper': lambda cell: cell.paper(),
    'a_fifth': lambda cell: cell.a_fifth(),
    'shared': lambda cell: cell.shared_model(),
    'new_persona': lambda cell: cell.new_persona(),
    'shared+lora': lambda cell: cell.lora(
        'shared+lora', f'--model={cell.shared_model()}'
    ),
}


def measure(
    cell: Cell, models: Mapping[str, pathlib.Path]
) -> dict[str, dict[str, Any]]:
    """What `evaluate` says of a cell's models, beside the dense one.

    Args:
        cell: whose rows they are measured on.
        models: by method.

    Returns:
        method -> task -> the figures of both ('dense', 'own').
    """
    masks = {name: path for name, path in models.items() if path.suffix == '.pmask'}
    exports = {name: path for name, path in models.items() if name not in masks}
    directory = run(
        'evaluate',
        cell.folder / 'measured' / ','.join(models),
        f'--base_model={cell.cfg.base_model}',
        '--dtype=bfloat16',
        f'--heldout={cell.split.measured}',
        f'--tasks={cell.cfg.tasks}',
        *_listed('mask', masks),
        *_listed('model', exports),
        *cell.cfg.evaluate.split(),
    )
    found: dict[str, dict[str, Any]] = {name: {} for name in models}
    for file in sorted((directory / 'results').glob('*.json')):
        figures = json.loads(file.read_text('utf-8'))['models']
        for name in models:
            found[name][file.stem] = {'dense': figures['dense'], 'own': figures[name]}
    return found


def _listed(flag: str, models: Mapping[str, pathlib.Path]) -> list[str]:
    pairs = ','.join(f'{name}={path}' for name, path in models.items())
    return [f'--{flag}={pairs}'] if pairs else []


def main(cfg: Settings) -> int:
    """Makes and measures every model, role by role."""
    output = pathlib.Path(cfg.output_dir)
    roles, splits = rolebench_rows.write_all(cfg.rolebench, output / 'rows')
    dev = 'dev' if cfg.measure_on == 'dev' else ''
    everyone = rolebench_rows.write_shared(
        splits, cfg.measure_on, output / 'rows' / 'shared' / dev
    )
    wanted = [name.strip() for name in cfg.roles.split(',') if name.strip()]
    if unknown := [name for name in wanted if name not in roles.values()]:
        raise errors.InputError(
            f'--roles names {unknown[0]!r}, which is none of '
            f'{", ".join(roles.values())}.'
        )
    results_file = output / f'methods{"-dev" if dev else ""}.json'
    shown = []
    for name, role in roles.items():
        if wanted and role not in wanted:
            continue
        others = [file for file in everyone if file.stem != name]
        for sparsity in (part.strip() for part in cfg.sparsities.split(',')):
            runs = f'sparsity_{sparsity}'
            cell = Cell(
                cfg,
                sparsity,
                splits[name][cfg.measure_on],
                others,
                output / name / dev / runs,
                output / name / dev / f'without-{runs}',
            )
            models, minutes = {}, {}
            for method in cfg.method_list:
                cell.parts.clear()
                models[method] = METHODS[method](cell)
                minutes[method] = cell.minutes()
            for method, results in measure(cell, models).items():
                row = {
                    'role': role,
                    'sparsity': sparsity,
                    'method': method,
                    'minutes': minutes[method],
                    'settings': dataclasses.asdict(cfg),
                    'results': results,
                }
                stored = (
                    json.loads(results_file.read_text('utf-8'))
                    if results_file.exists()
                    else []
                )
                atomic.write_json(results_file, rolebench_table.merged(stored, row))
                shown.append(row)
    print(rolebench_table.markdown(shown))
    print()
    print(rolebench_table.summary(shown))
    return 0


if __name__ == '__main__':
    flags.run(Settings, main)
