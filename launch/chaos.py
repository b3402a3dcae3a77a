"""Kills every command that writes, again and again, and compares what comes of it.

    python launch/chaos.py --output_dir=runs/chaos

Commands on a tiny random model are killed (at a moment, or before one of their
operations on files), interrupted, run on a full disk, and started twice on one run
directory. Each is then repeated, and must end with exit code 0 and the very files of an
unbroken run: mask bits, exported bytes, calibration rows, results and held-out points,
all but times (listed in launch/striking/runs.py), and no temporary left. What each trial
does follows from --seed and its number. The same command goes on where it stopped; the
table comes on stdout, with all trials in `chaos.json`. Exit code 0 if all trials ended
as they must. Disks are made full in a mount namespace of its own, which wants Linux and
the right to mount (root has it).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import time
from typing import Any

from absl import flags as absl_flags
from striking import child, disks, judge, runs

from ppjax.base import atomic, errors, flags, json_lines, progress, run_directory

# Imported once, for all commands.
for _case in runs.CASES.values():
    importlib.import_module(_case.words[0])
_GOOD = 'as unbroken'
_MOST_TRIALS = 2000
_MAKES = (
    *('inputs', 'reference', 'trials', 'jax', 'trials.jsonl', 'chaos.json'),
    runs.JUDGE,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is done to whom."""

    output_dir: str = flags.setting(None, 'Where the runs, and the result, go.')
    overwrite: bool = flags.setting(False, 'Begin anew.')
    cases: str = flags.setting(
        ','.join(runs.CASES), 'Which commands, with commas between them.'
    )
    kills: int = flags.setting(200, 'How many times SIGKILL falls, over all commands.')
    full_disks: int = flags.setting(20, 'Trials with a disk that is full.')
    twice: int = flags.setting(20, 'Trials with two commands on one run directory.')
    interrupts: int = flags.setting(10, 'Trials with Ctrl-C.')
    places: str | None = flags.setting(
        None,
        'Strike only before operations that this pattern finds, as in "rename .*mask".',
    )
    seed: int = flags.setting(0, 'Of all that is drawn.')
    workers: int = flags.setting(2, 'Trials at a time.')
    keep_runs: bool = flags.setting(False, "Keep good trials' run directories too.")

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise errors.InputError('--output_dir must be given.')
        unknown = set(self.names) - set(runs.CASES)
        if unknown:
            raise errors.InputError(
                f'--cases: unknown {min(unknown)!r}; there are {", ".join(runs.CASES)}.'
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.cases.split(','))

    @property
    def work(self) -> pathlib.Path:
        return pathlib.Path(self.output_dir).absolute()


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is done in one run directory.

    Attributes:
        number: of the trial, which with the seed draws all else.
        kind: 'kill', 'full', 'twice' or 'interrupt'.
        case: name of the command.
        blows: for 'kill', how many at most before the command is left alone.
    """

    number: int
    kind: str
    case: str
    blows: int = 1


class Failed(Exception):
    """A trial that did not end as it must; (kind of failure, what was seen)."""


def _error_of(ended: child.Ended) -> str:
    lines = ended.output.strip().splitlines()
    said = [line for line in lines if line.startswith('ERROR: ')] or lines[-1:] or ['']
    return f'exit {ended.code}: {said[-1][:300]}'


class Ground:
    """Where one trial takes place."""

    def __init__(self, settings: Settings, trial: Trial):
        self.settings, self.trial = settings, trial
        self.folder = settings.work / 'trials' / f'{trial.number:04d}'
        self.run = self.folder / 'run'
        # Not where the run is, whose disk may be full.
        self.said = settings.work / 'outputs' / f'{trial.number:04d}'
        self.said.mkdir(parents=True, exist_ok=True)
        self.log = self.said / 'output.txt'
        self.random = random.Random(f'{settings.seed} {trial.number}')
        self.story: list[str] = []
        own = settings.work / 'reference' / trial.case
        self.reference = own / 'run'
        self.operations = (own / 'operations').read_text('utf-8').splitlines()
        self.seconds = float((own / 'seconds').read_text('utf-8'))

    def start(
        self,
        name: str,
        blow: child.Blow,
        *,
        filler: pathlib.Path | None = None,
        log: str = 'output.txt',
    ) -> child.Ended:
        """Runs a case's command here until it ends or stands still."""
        words = runs.command(name, self.run, self.settings.work)
        output = self.said / log
        pid = child.start(words, self.run, output, blow=blow, filler=filler)
        return self.note(name, child.wait(pid, output, blow=blow))

    def note(self, name: str, ended: child.Ended) -> child.Ended:
        self.story.append(
            f'{name}: {"stands still" if ended.stopped else _error_of(ended)}'
        )
        return ended

    def draw(self, kind: str, *, first: float = 0.0, last: float = 1.0) -> child.Blow:
        """A blow before some operation: all windows alike, often done or not.

        Args:
            kind: of blow.
            first: share of the operations that are left out at the beginning.
            last: share of them after which the others are.
        """
        places: dict[str, list[int]] = {}
        begin = int(first * len(self.operations))
        end = round(last * len(self.operations))
        for number, place in enumerate(self.operations[begin:end], start=begin):
            if re.search(self.settings.places or '', place):
                places.setdefault(place, []).append(number)
        place = self.random.choice(sorted(places))
        self.story.append(f'{kind} before {place}')
        return child.Blow(kind, at=self.random.choice(places[place]))

    def finish(self) -> None:
        """Repeats the command, which must end well, as if nothing had been."""
        ended = self.start(self.trial.case, child.Blow())
        if ended.code == 124:
            raise Failed('hangs', self.story[-1])
        if ended.code:
            refused = 'Traceback' not in ended.output
            raise Failed('is refused' if refused else 'traceback', self.story[-1])
        self.compare()

    def compare(self) -> None:
        left = runs.temporaries(self.run)
        if left:
            raise Failed('temporaries left', ', '.join(left[:4]))
        files = runs.differing(self.run, self.reference)
        if files:
            raise Failed('files differ', ', '.join(files[:6]))


def _kill(ground: Ground) -> int:
    """Kills a command up to some times.

    Returns:
        How often it was killed before it ended by itself.
    """
    killed = 0
    for _ in range(ground.trial.blows):
        share = runs.CASES[ground.trial.case].moments
        if not ground.settings.places and ground.random.random() < share:
            moment = ground.random.uniform(0, ground.seconds)
            ground.story.append(f'kill after {moment:.2f} s')
            blow = child.Blow('moment', seconds=moment)
        else:
            blow = ground.draw('kill')
        ended = ground.start(ground.trial.case, blow)
        if ended.code != -signal.SIGKILL:
            if ended.code:
                raise Failed('is refused', _error_of(ended))
            break
        killed += 1
    ground.finish()
    return killed


def _interrupt(ground: Ground) -> int:
    ended = ground.start(ground.trial.case, ground.draw('interrupt'))
    if ended.code != 130:
        raise Failed('Ctrl-C is not exit 130', _error_of(ended))
    if 'Traceback' in ended.output:
        raise Failed('Ctrl-C gives a traceback', ended.output[-300:])
    ground.finish()
    return 0


def _full_disk(ground: Ground) -> int:
    filler = ground.folder / 'filler'
    if not ground.settings.places and ground.random.random() < 0.3:
        # Full from the first byte on, or after some.
        room = int(2 ** ground.random.uniform(8, 24))
        ground.story.append(f'room for {room} bytes')
        disks.fill(filler)
        os.truncate(filler, max(0, filler.stat().st_size - room))
        blow = child.Blow()
    else:
        blow = ground.draw('fill')
    ended = ground.start(ground.trial.case, blow, filler=filler)
    if ended.code != 0:
        if 'Traceback' in ended.output:
            raise Failed('full disk gives a traceback', ended.output[-300:])
        if ended.code != 1:
            raise Failed('full disk is not exit 1', _error_of(ended))
        if ended.output.count('ERROR: ') != 1:
            raise Failed('full disk is not one line', ended.output[-300:])
        _check_status(ground)
    elif blow.kind == 'fill' and 'results' in ground.story[0]:
        raise Failed('full disk goes unnoticed', ground.story[0])
    filler.unlink(missing_ok=True)
    ground.finish()
    return 0


def _check_status(ground: Ground) -> None:
    """status.json says that the run failed, if a file can still be written."""
    file = ground.run / 'status.json'
    probe = ground.folder / 'probe'
    try:
        probe.write_bytes(bytes(8192))
    except OSError:
        return
    finally:
        probe.unlink(missing_ok=True)
    if not file.exists() or ground.trial.case in ('export', 'report', 'evaluate'):
        return
    status = json.loads(file.read_text('utf-8'))
    if status['state'] != 'failed':
        raise Failed('full disk leaves status.json', str(status))


def _seen(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob('*')
        if path.is_file()
    }


def _twice(ground: Ground) -> int:
    """A second command while the first one stands still, which then ends or is killed.

    Returns:
        How often a command was killed.
    """
    case = ground.trial.case
    other = ground.random.choice((case, *runs.CASES[case].others))
    # Threads make some operations more or fewer; the last might not come.
    first = ground.start(case, ground.draw('stop', first=0.2, last=0.95))
    if not first.stopped:
        raise Failed('ended too early', _error_of(first))
    killed = 0
    try:
        before = _seen(ground.run)
        second = ground.start(other, child.Blow(), log='second.txt')
        if 'Traceback' in second.output:
            raise Failed('second gives a traceback', second.output[-300:])
        if second.code != 1:
            raise Failed('second is not refused', _error_of(second))
        if str(first.pid) not in second.output:
            raise Failed('second is not told who holds it', _error_of(second))
        if _seen(ground.run) != before:
            raise Failed('second changes files', other)
    finally:
        if ground.random.random() < 0.5:
            os.kill(first.pid, signal.SIGKILL)
            killed = 1
        os.kill(first.pid, signal.SIGCONT)
        ended = ground.note(case, child.wait(first.pid, ground.log, blow=child.Blow()))
    if not killed:
        if ended.code:
            raise Failed('first fails', _error_of(ended))
        ground.compare()
    ground.finish()
    return killed


_DOES = {'kill': _kill, 'interrupt': _interrupt, 'full': _full_disk, 'twice': _twice}


def _try(settings: Settings, trial: Trial) -> dict[str, Any]:
    """One trial; what `chaos.json` says of it."""
    ground = Ground(settings, trial)
    shutil.rmtree(ground.folder, ignore_errors=True)
    ground.folder.mkdir(parents=True)
    if trial.kind == 'full':
        disks.mount(ground.folder)
    runs.begin(trial.case, ground.run, settings.work)
    began = time.monotonic()
    outcome, detail, killed = _GOOD, '', 0
    try:
        killed = _DOES[trial.kind](ground)
    except Failed as failed:
        outcome, detail = failed.args
    if trial.kind == 'kill' and outcome != _GOOD:
        killed = sum('exit -9' in line for line in ground.story)
    if outcome == _GOOD and not settings.keep_runs:
        shutil.rmtree(ground.folder, ignore_errors=True)
    return dataclasses.asdict(trial) | {
        'outcome': outcome,
        'detail': detail,
        'killed': killed,
        'story': ground.story,
        'seconds': round(time.monotonic() - began, 2),
    }


def _try_apart(given: tuple[Settings, Trial]) -> dict[str, Any]:
    """One trial in a process of its own, whose mounts end with it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            result = _try(*given)
            os.write(writer, json.dumps(result).encode())
        except BaseException as error:  # noqa: BLE001 - said, and counted as a failure.
            print(f'Trial {given[1]}: {error!r}', file=sys.stderr)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, 'rb') as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if not text:
        return dataclasses.asdict(given[1]) | {
            'outcome': 'the campaign failed',
            'detail': '',
            'killed': 0,
            'story': [],
            'seconds': 0.0,
        }
    return dict(json.loads(text))


def _make_references(settings: Settings) -> None:
    """Runs every command once, unbroken."""
    work = settings.work
    if not (work / 'inputs').exists():
        with atomic.directory(work / 'inputs') as folder:
            runs.write_inputs(folder, settings.seed)
    wanted = list(settings.names)
    for name in wanted:
        after = runs.CASES[name].after
        if after is not None and after not in wanted:
            wanted.append(after)
    if any(name.startswith(('recover', 'compensate')) for name in wanted):
        wanted.append('train')
    ordered = [name for name in runs.CASES if name in wanted]
    shown = progress.counter('Unbroken runs')
    for number, name in enumerate(ordered, start=1):
        folder = work / 'reference' / name
        # A second one finds programs compiled, and takes as long as those that follow.
        times = 1 if settings.places else 2
        for _ in range(0 if (folder / 'seconds').exists() else times):
            runs.begin(name, folder / 'run', work)
            words = runs.command(name, folder / 'run', work)
            log, blow = folder / 'output.txt', child.Blow()
            pid = child.start(
                words, folder / 'run', log, blow=blow, trace=folder / 'operations'
            )
            ended = child.wait(pid, log, blow=blow)
            if ended.code:
                raise errors.InputError(f'{name}, unbroken: {_error_of(ended)}')
        if not (folder / 'seconds').exists():
            atomic.write_text(folder / 'seconds', str(ended.seconds))
        shown(number, len(ordered))


def _plan(settings: Settings, done: Sequence[dict[str, Any]]) -> Iterator[Trial]:
    """Trials that are not done yet; kills until enough have fallen."""
    drawn = random.Random(settings.seed)
    known = {row['number'] for row in done}
    missing = settings.kills - sum(r['killed'] for r in done if r['kind'] == 'kill')
    number = 0
    for kind, count in (
        ('twice', settings.twice),
        ('full', settings.full_disks),
        ('interrupt', settings.interrupts),
    ):
        # A report is read from runs that are still learning: it waits for nobody.
        names = [x for x in settings.names if (kind, x) != ('twice', 'report')]
        for place in range(count):
            if number not in known:
                yield Trial(number, kind, names[place % len(names)])
            number += 1
    # Where none ever falls, all commands fail: the table says so.
    while missing > 0 and number < _MOST_TRIALS:
        blows = drawn.randint(1, 3)
        case = settings.names[number % len(settings.names)]
        if number not in known:
            yield Trial(number, 'kill', case, blows)
            missing -= blows
        number += 1


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Of each kind of trial and each outcome, how many."""
    lines = ['| kind | trials | kills | as unbroken | otherwise |', '|' + '---|' * 5]
    for kind in _DOES:
        own = [row for row in rows if row['kind'] == kind]
        bad = Counter(row['outcome'] for row in own if row['outcome'] != _GOOD)
        cells = [
            kind,
            str(len(own)),
            str(sum(row['killed'] for row in own)),
            str(len(own) - sum(bad.values())),
            ', '.join(f'{count} {name}' for name, count in bad.most_common()) or '-',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main(settings: Settings) -> int:
    """All trials, and the table."""
    # The commands define flags of their own, some by the same names.
    for field in dataclasses.fields(settings):
        delattr(absl_flags.FLAGS, field.name)
    directory = run_directory.RunDirectory(settings.work)
    opened = directory.opened(
        settings,
        {},
        resumable=frozenset({'workers', 'keep_runs', 'overwrite', 'output_dir'}),
        overwrite=settings.overwrite,
        makes=_MAKES,
    )
    asked = judge.serving(settings.work / runs.JUDGE)
    with opened, directory.stage('chaos'), asked:
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(settings.work / 'jax'))
        _make_references(settings)
        log = json_lines.AppendLog(settings.work / 'trials.jsonl')
        rows: list[dict[str, Any]] = list(log.entries)
        context = multiprocessing.get_context('fork')
        while trials := list(_plan(settings, rows)):
            shown = progress.Progress('Trials', len(trials))
            with context.Pool(settings.workers) as pool:
                work = [(settings, trial) for trial in trials]
                found = pool.imap_unordered(_try_apart, work)
                for number, row in enumerate(found, start=1):
                    log.append(row)
                    rows.append(row)
                    bad = sum(other['outcome'] != _GOOD for other in rows)
                    shown.update(number, f'{bad} of {len(rows)} not as they must')
            shown.close()
        log.close()
        rows.sort(key=lambda row: row['number'])
        bad = [row for row in rows if row['outcome'] != _GOOD]
        result = {'settings': dataclasses.asdict(settings), 'trials': rows}
        atomic.write_json(settings.work / 'chaos.json', result)
        directory.done()
    for row in bad:
        print(f'{row["number"]:04d} {row["case"]}: {row["outcome"]} ({row["detail"]})')
        print(*(f'     {line}' for line in row['story']), sep='\n')
    print(_table(rows))
    return int(bool(bad))


if __name__ == '__main__':
    flags.run(Settings, main)
