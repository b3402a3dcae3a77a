"""Feeds bad inputs to every reader and verb; each must be refused in one line, or read.

    python launch/fuzz.py --cases=5000 --commands=150 --result=fuzz.json
    python launch/fuzz.py --only=gguf --case=17

In-process and through real command lines. A finding is a traceback, a refusal of several
lines or beyond reason in length, an answer later than 30 s, memory beyond reason, or a
file that a refusal leaves behind. Exit code 1 if there is any. What an input is follows
from --seed, its target and its number alone.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import faulthandler
import os
import pathlib
import random
import shutil
import tempfile
import time
from typing import Any

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TRANSFORMERS_OFFLINE', '1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from fuzzing import commands, judging, material, readers, runs

from ppjax.base import atomic, errors, flags, settings

_TARGETS = readers.TARGETS | runs.TARGETS


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is fed."""

    cases: int = flags.setting(5000, 'Bad inputs fed in-process.')
    commands: int = flags.setting(150, 'Bad command lines.')
    jobs: int = flags.setting(2, 'Command lines run at a time.')
    only: str | None = flags.setting(
        None, f'Targets, with commas between them, of {", ".join(_TARGETS)}.'
    )
    case: int | None = flags.setting(
        None, 'Feed this one case of --only, and let its error through.'
    )
    seed: int = flags.setting(0, 'Decides every input.')
    result: str | None = flags.setting(None, 'JSON file to write the findings to.')

    def __post_init__(self) -> None:
        settings.require(
            self, 'not be negative', lambda value: value >= 0, 'cases', 'commands'
        )
        settings.require(self, 'be at least 1', lambda value: value >= 1, 'jobs')
        if unknown := [name for name in self.targets if name not in _TARGETS]:
            raise errors.InputError(f'--only: there is no target {unknown[0]!r}.')
        if self.case is not None and len(self.targets) != 1:
            raise errors.InputError('--case is one of one target; give it with --only.')

    @property
    def targets(self) -> list[str]:
        """The names of what is fed."""
        return (
            [name.strip() for name in self.only.split(',')]
            if self.only
            else list(_TARGETS)
        )


def cases_of(targets: Sequence[str], total: int) -> Iterator[tuple[str, int]]:
    """(target, number) of every case, shared out by the targets' weights."""
    weights = {name: _TARGETS[name][1] for name in targets}
    whole = sum(weights.values())
    for name, weight in weights.items():
        for number in range(-(-total * weight // whole)):
            yield name, number


def feed(
    seed: int, target: str, number: int, whole: material.Material, scratch: pathlib.Path
) -> tuple[str, list[judging.Finding]]:
    """Makes one bad input in a fresh folder and judges what becomes of it."""
    rng = random.Random(f'{seed} {target} {number}')
    folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    work = folder / 'work'
    work.mkdir()
    before = pathlib.Path.cwd()
    # What a verb leaves where it was started is found too.
    os.chdir(work)
    try:
        read = _TARGETS[target][0](rng, folder, whole)
        return judging.judge(target, number, read, work)
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def in_process(
    cfg: Settings, scratch: pathlib.Path
) -> tuple[dict[str, collections.Counter[str]], list[judging.Finding]]:
    """Feeds all cases; how many of each target were read and refused, and findings."""
    (scratch / 'whole').mkdir()
    whole = material.Material(scratch / 'whole')
    counts: dict[str, collections.Counter[str]] = {}
    found = []
    for target, number in cases_of(cfg.targets, cfg.cases):
        # Native code does not see the alarm.
        faulthandler.dump_traceback_later(10 * judging.SECONDS, exit=True)
        outcome, findings = feed(cfg.seed, target, number, whole, scratch)
        counts.setdefault(target, collections.Counter())[outcome] += 1
        found += findings
    faulthandler.cancel_dump_traceback_later()
    return counts, found


def table(
    counts: dict[str, collections.Counter[str]], found: Sequence[judging.Finding]
) -> str:
    """What was fed, what became of it, and the findings, each cause once."""
    wrong = collections.Counter(finding.target for finding in found)
    lines = [f'{"":<18}{"cases":>8}{"read":>8}{"refused":>9}{"findings":>10}']
    for name, count in counts.items():
        lines.append(
            f'{name:<18}{count.total():>8}{count["read"]:>8}{count["refused"]:>9}'
            f'{wrong[name]:>10}'
        )
    groups: dict[Any, list[judging.Finding]] = {}
    for finding in found:
        groups.setdefault(finding.group, []).append(finding)
    for group in groups.values():
        first = group[0]
        lines.append(
            f'{len(group)} x {first.kind}: {first.target} --case={first.case} '
            f'{first.place} {first.said[:200]!r}'
        )
    return '\n'.join(lines)


def main(cfg: Settings) -> int:
    """Feeds, prints and counts."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix='ppjax-fuzz-') as name:
        scratch = pathlib.Path(name)
        if cfg.case is not None:
            (scratch / 'whole').mkdir()
            whole = material.Material(scratch / 'whole')
            target = cfg.targets[0]
            rng = random.Random(f'{cfg.seed} {target} {cfg.case}')
            (scratch / 'case' / 'work').mkdir(parents=True)
            print(_TARGETS[target][0](rng, scratch / 'case', whole)())
            return 0
        counts, found = in_process(cfg, scratch)
        if cfg.commands:
            count, more = commands.run(
                cfg.seed, cfg.commands, cfg.jobs, scratch / 'commands'
            )
            counts['command lines'] = count
            found += more
    print(table(counts, found))
    print(f'{time.perf_counter() - start:.0f} s, --seed={cfg.seed}')
    if cfg.result:
        atomic.write_json(
            cfg.result,
            {
                'settings': dataclasses.asdict(cfg),
                'counts': counts,
                'findings': [dataclasses.asdict(finding) for finding in found],
            },
        )
    return 1 if found else 0


if __name__ == '__main__':
    flags.run(Settings, main)
