"""Bad command lines, run as a user runs them."""

import collections
import concurrent.futures
import os
import pathlib
import random
import subprocess
import sys
import tempfile

from fuzzing import damage, judging, readers
from fuzzing import material as material_lib

NAME = 'command lines'


def _spoilt(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> list[str]:
    """A verb and its flags, one of which is sure to be refused."""
    verb = rng.choice([name for name in readers.VERBS if name != 'report'])
    given = readers.whole_flags(verb, whole, folder / 'out')
    files = [name for name in given if pathlib.Path(given[name]).is_file()]
    more: list[str] = []
    kind = rng.randrange(9)
    if kind == 0:
        given['seeed'] = '1'
    elif kind == 1:
        # Of `rank` no flag at all, which is refused as well.
        given['base_model'] = rng.choice(
            ['', 'n' * 300, 'two\nlines', '\x1b[31mred', '/dev/null', 'x' * 100_000]
        )
    elif kind == 2 and files:
        name = rng.choice(files)
        path = folder / pathlib.Path(given[name]).name
        bad = rng.choice(['fifo', 'folder', 'empty', 'junk', 'absent'])
        if bad == 'fifo':
            os.mkfifo(path)
        elif bad == 'folder':
            path.mkdir()
        elif bad != 'absent':
            path.write_bytes(b'' if bad == 'empty' else rng.randbytes(99))
        given[name] = str(path)
    elif kind == 3:
        path = folder / 'any.flags'
        bad = rng.choice(['binary', 'itself', 'folder', 'fifo', 'absent'])
        if bad == 'binary':
            path.write_bytes(b'\xff\xfe\0' + rng.randbytes(50))
        elif bad == 'itself':
            path.write_text(f'--flagfile={path}\n')
        elif bad == 'folder':
            path.mkdir()
        elif bad == 'fifo':
            os.mkfifo(path)
        more = [f'--flagfile={path}']
    elif kind == 4:
        seeded = verb not in ('export', 'plan', 'bench')
        given['seed' if seeded else 'dtype'] = rng.choice(['-1', str(2**64), 'x', ''])
    elif kind == 5 and 'output_dir' in given:
        file = folder / 'a_file'
        file.write_text('mine')
        # Where results alone go may be any folder.
        root = '/' if verb not in ('evaluate', 'rank') else ''
        given['output_dir'] = rng.choice(
            [str(file), str(file / 'in'), root, 'o' * 300, '/proc/none', '']
        )
    elif kind == 6:
        more = [rng.choice(['word', damage.text(rng).replace('\0', '') or 'word'])]
        more = [more[0].encode('utf-8', 'replace').decode().strip() or 'word']
        more = [more[0].lstrip('-')]
    elif kind == 7:
        model = folder / 'model'
        model.mkdir()
        (model / 'config.json').write_bytes(rng.choice([b'', b'[]', b'{"a": 1e999}']))
        given['base_model'] = str(model)
    else:
        given[rng.choice(['dtype', 'base_model'])] = rng.choice(['abc', 'x' * 100_000])
    words = ['load'] if verb == 'bench' else []
    return [verb, *words, *(f'--{k}={v}' for k, v in given.items()), *more]


def _ended(command: list[str], work: pathlib.Path) -> tuple[int | None, str]:
    """Exit code (None if it was ended) and stderr."""
    with tempfile.TemporaryFile() as errors_file:
        running = subprocess.Popen(
            [sys.executable, '-m', f'ppjax.{command[0]}', *command[1:]],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors_file,
        )
        try:
            code = running.wait(judging.SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            return None, ''
        errors_file.seek(0)
        return code, errors_file.read().decode('utf-8', 'replace')


def _judged(
    number: int, command: list[str], folder: pathlib.Path
) -> list[judging.Finding]:
    shown = ' '.join(part[:80] for part in command)

    def finding(kind: str, said: str) -> judging.Finding:
        return judging.Finding(NAME, number, kind, f'{said}; {shown}'[:600])

    before = judging.listing(folder)
    code, said = _ended(command, folder / 'work')
    if code is None:
        return [finding('slow', f'no answer in {judging.SECONDS:.0f} s')]
    found = []
    lines = [line for line in said.splitlines() if line.startswith('ERROR: ')]
    if 'Traceback' in said or len(lines) != 1 or code not in (1, 2):
        last = said.strip().splitlines()[-1:] or ['']
        found.append(finding('traceback', f'exit {code}, {last[0][:200]!r}'))
    elif wrong := judging.problem_of_line(lines[0]):
        found.append(finding('line', wrong))
    if left := judging.listing(folder) - before:
        found.append(finding('left', ', '.join(sorted(left))[:300]))
    return found


def run(
    seed: int, total: int, jobs: int, scratch: pathlib.Path
) -> tuple[collections.Counter[str], list[judging.Finding]]:
    """Runs bad command lines, some at a time.

    Args:
        seed: decides them.
        total: how many.
        jobs: at a time.
        scratch: an absent folder to work in.

    Returns:
        How many were refused, and what is wrong.
    """
    (scratch / 'whole').mkdir(parents=True)
    whole = material_lib.Material(scratch / 'whole')
    commands = []
    for number in range(total):
        folder = scratch / str(number)
        (folder / 'work').mkdir(parents=True)
        rng = random.Random(f'{seed} {NAME} {number}')
        commands.append((number, _spoilt(rng, folder, whole), folder))
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        found = [
            finding
            for findings in pool.map(lambda args: _judged(*args), commands)
            for finding in findings
        ]
    return collections.Counter(refused=total), found
