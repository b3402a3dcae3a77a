"""One bad input after the other, in processes that may hang or die of it."""

from collections.abc import Iterator, Sequence
import concurrent.futures
import multiprocessing
import os
import pathlib
import queue
import random
import shutil
import tempfile
from typing import Any

from fuzzing import judging, material, readers, runs

TARGETS = readers.TARGETS | runs.TARGETS
# Native code does not see the alarm; making the whole inputs takes time, too.
_PATIENCE = judging.SECONDS + 20

Outcome = tuple[str, list[judging.Finding]]


def cases_of(targets: Sequence[str], total: int) -> list[tuple[str, int]]:
    """(target, number) of every case, shared out by the targets' weights."""
    weights = {name: TARGETS[name][1] for name in targets}
    whole = sum(weights.values())
    return [
        (name, number)
        for name, weight in weights.items()
        for number in range(-(-total * weight // whole))
    ]


def made(
    seed: int, target: str, number: int, folder: pathlib.Path, whole: material.Material
) -> readers.Read:
    """Writes one bad input into a folder; what then reads it."""
    rng = random.Random(f'{seed} {target} {number}')
    return TARGETS[target][0](rng, folder, whole)


def feed(seed: int, target: str, number: int, whole: material.Material) -> Outcome:
    """Makes one bad input in a fresh folder and judges what becomes of it."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=whole.folder))
    work = folder / 'work'
    work.mkdir()
    before = pathlib.Path.cwd()
    # What a verb leaves where it was started is found too.
    os.chdir(work)
    try:
        read = made(seed, target, number, folder, whole)
        return judging.judge(target, number, read, work)
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def _serve(connection: Any, seed: int, folder: str) -> None:
    # Warnings of libraries, and what native code prints.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    whole = material.Material(pathlib.Path(folder))
    while True:
        target, number = connection.recv()
        connection.send(feed(seed, target, number, whole))


class _Worker:
    """A process that is fed; a new one once it hangs or died."""

    def __init__(self, seed: int, scratch: pathlib.Path):
        self._seed, self._scratch = seed, scratch
        self._process: Any = None

    def feed(self, target: str, number: int) -> Outcome:
        if self._process is None:
            self._start()
        self._pipe.send((target, number))
        try:
            if self._pipe.poll(_PATIENCE):
                return self._pipe.recv()
            kind, said = 'slow', f'more than {_PATIENCE} s, in native code'
        except EOFError:
            self._process.join()
            kind, said = 'died', f'exit code {self._process.exitcode}'
        self.stop()
        return 'refused', [judging.Finding(target, number, kind, said)]

    def _start(self) -> None:
        context = multiprocessing.get_context('spawn')
        self._pipe, other = context.Pipe()
        folder = tempfile.mkdtemp(dir=self._scratch)
        self._process = context.Process(
            # No daemon, which might have no processes of its own.
            target=_serve,
            args=(other, self._seed, folder),
        )
        self._process.start()
        other.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def feed_all(
    seed: int, cases: Sequence[tuple[str, int]], jobs: int, scratch: pathlib.Path
) -> Iterator[tuple[str, Outcome]]:
    """(target, outcome) of all cases, in no order.

    Args:
        seed: decides the inputs.
        cases: (target, number) pairs.
        jobs: processes that are fed at a time.
        scratch: an existing folder to work in.
    """
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    done: queue.SimpleQueue[tuple[str, Outcome] | None] = queue.SimpleQueue()

    def work() -> None:
        worker = _Worker(seed, scratch)
        try:
            while True:
                target, number = waiting.get_nowait()
                done.put((target, worker.feed(target, number)))
        except queue.Empty:
            done.put(None)
        finally:
            worker.stop()

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for _ in range(jobs):
            pool.submit(work)
        left = jobs
        while left:
            if (item := done.get()) is None:
                left -= 1
            else:
                yield item
