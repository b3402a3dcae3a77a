"""Feeds bad inputs to every reader and verb; each must be refused in one line, or read.

    python launch/fuzz.py --cases=5000 --commands=150 --result=fuzz.json
    python launch/fuzz.py --only=gguf --case=17

In-process and through real command lines. A finding is a traceback, a refusal of several
lines or beyond reason in length, an answer later than 30 s, memory beyond reason, a
process that dies, or a file that a refusal leaves behind. Exit code 1 if there is any.
What an input is follows from --seed, its target and its number alone.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
import tempfile
import time
from typing import Any

# All are read when the libraries are imported.
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TRANSFORMERS_OFFLINE', '1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from fuzzing import commands, feeding, judging, material

from ppjax.base import atomic, errors, flags, progress, ranges

Counts = dict[str, collections.Counter[str]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is fed."""

    cases: int = flags.setting(5000, 'Bad inputs fed in-process.', least=0)
    commands: int = flags.setting(150, 'Bad command lines.', least=0)
    jobs: int = flags.setting(
        2, 'Processes fed, or command lines run, at a time.', least=1
    )
    only: str | None = flags.setting(
        None,
        'Targets, with commas between them; all by default: '
        f'{", ".join(feeding.TARGETS)}.',
    )
    case: int | None = flags.setting(
        None, 'Feed this one case of --only, and let its error through.'
    )
    seed: int = flags.setting(0, 'Decides every input.')
    result: str | None = flags.setting(
        None, 'JSON file to write the findings to.', writes=True
    )

    def __post_init__(self) -> None:
        ranges.check(self)
        if unknown := [name for name in self.targets if name not in feeding.TARGETS]:
            raise errors.InputError(f'--only: there is no target {unknown[0]!r}.')
        if self.case is not None and len(self.targets) != 1:
            raise errors.InputError('--case is one of one target; give it with --only.')

    @property
    def targets(self) -> list[str]:
        """The names of what is fed."""
        if not self.only:
            return list(feeding.TARGETS)
        return [name.strip() for name in self.only.split(',')]


def table(counts: Mapping[str, Any], found: Sequence[judging.Finding]) -> str:
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
    counts: Counts = {name: collections.Counter() for name in cfg.targets}
    found: list[judging.Finding] = []
    with tempfile.TemporaryDirectory(prefix='ppjax-fuzz-') as name:
        scratch = pathlib.Path(name)
        if cfg.case is not None:
            folder = scratch / 'case'
            (folder / 'work').mkdir(parents=True)
            whole = material.Material(scratch)
            print(feeding.made(cfg.seed, cfg.targets[0], cfg.case, folder, whole)())
            return 0
        cases = feeding.cases_of(cfg.targets, cfg.cases)
        for target, (outcome, more) in feeding.feed_all(
            cfg.seed, cases, cfg.jobs, scratch
        ):
            counts[target][outcome] += 1
            found += more
            for finding in more:
                progress.say(
                    f'{finding.kind}: {finding.target} --case={finding.case} '
                    f'{finding.place} {finding.said[:200]!r}'
                )
        if cfg.commands:
            count, more = commands.run(
                cfg.seed, cfg.commands, cfg.jobs, scratch / 'commands'
            )
            counts[commands.NAME] = count
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
