"""The verb as people start it: a process of its own that serves the page."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return os.environ | {'PYTHONPATH': str(_ROOT)}


def command(*flags: str) -> list[str]:
    return [sys.executable, '-m', 'ppjax.rank', *flags]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*flags),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


class Served:
    """A running server.

    Attributes:
        url: without a slash at its end.
    """

    def __init__(self, *flags: str):
        self.process = subprocess.Popen(
            command('--serve', *flags),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.startswith('Ranking page: http://'):
            _, said = self.process.communicate(timeout=60)
            raise AssertionError((line, said))
        self.url = line.split()[-1].rstrip('/')

    @property
    def port(self) -> str:
        return self.url.rpartition(':')[2]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@contextlib.contextmanager
def served(*flags: str) -> Iterator[Served]:
    found = Served(*flags)
    try:
        yield found
    finally:
        found.kill()
