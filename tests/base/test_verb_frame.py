"""The frame of every verb: one line for whatever goes wrong, and how it ends."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_PROGRAM = """
import dataclasses
import pathlib
from ppjax.base import errors, flags

@dataclasses.dataclass(frozen=True)
class Settings:
    '''A verb.'''
    what: str = flags.setting('print', 'What happens.')
    other: str | None = flags.setting(None, 'Some text.')

def main(cfg):
    if cfg.what == 'refuse':
        raise errors.InputError('line one\\nline two \\x1b[31m' + 'x' * 100_000 + ' End.')
    if cfg.what == 'open':
        pathlib.Path('n' * 300).read_text()
    if cfg.what == 'speak':
        return print('0.5 ± 0.1, Émile')
    if cfg.what == 'interrupt':
        raise KeyboardInterrupt
    print('answer\\n' * 50_000)
    return 0

if __name__ == '__main__':
    flags.run(Settings, main)
"""


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp('verb') / 'program.py'
    path.write_text(_PROGRAM)
    return path


def _run(*command: str, **more) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {'PYTHONPATH': str(_ROOT)},
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
        **more,
    )


@pytest.mark.parametrize('flag', ['--what=print', '--help'])
def test_a_reader_who_leaves_ends_it_silently(program, flag):
    reads, writes = os.pipe()
    os.close(reads)
    done = _run(str(program), flag, stdout=writes)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, b'')


def test_help_is_no_failure(program):
    done = _run(str(program), '--help', stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b'')
    assert b'--what' in done.stdout


def test_a_terminal_of_few_characters_stops_nothing(program, monkeypatch):
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    done = _run(str(program), '--what=speak', stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b'0.5 ? 0.1, ?mile\n')


def test_output_to_a_full_disk_is_one_line(program):
    with open('/dev/full', 'wb') as full:
        done = _run(str(program), stdout=full)
    assert done.returncode == 1
    assert done.stderr == b'ERROR: standard output: No space left on device.\n'


@pytest.mark.parametrize(
    ('given', 'code', 'start'),
    [
        (['--what=refuse'], 1, r'ERROR: line one\nline two \x1b[31mxxx'),
        (['--what=open'], 1, f'ERROR: {"n" * 300}: File name too long.'),
        (['--what=interrupt'], 130, 'Interrupted.'),
        (['--other='], 2, 'ERROR: --other is empty'),
        (['--other', b'\xff'], 2, r"ERROR: --other is no UTF-8 text, got '\udcff'"),
        (['--what=a\nb', 'c\nd'], 2, r'ERROR: Unexpected arguments: c\nd.'),
        (['--' + 'x' * 100_000 + '=1'], 2, 'ERROR: Unknown command line flag: a'),
        (['--flagfile=/dev/zero'], 2, 'ERROR: Flag file /dev/zero is a device'),
    ],
)
def test_every_end_is_one_short_line(program, given, code, start):
    done = _run(str(program), *given, stdout=subprocess.PIPE)
    assert done.returncode == code
    first, *rest = done.stderr.decode().splitlines()
    assert first.startswith(start)
    assert len(first) < 600
    assert rest == ([f'See: python {program} --help'] if code == 2 else [])


def test_ctrl_c_while_libraries_are_imported(tmp_path):
    for name in ('absl', 'jax'):
        (tmp_path / f'{name}.py').write_text(
            'import time\n'
            'try:\n'
            '    print("importing", flush=True)\n'
            '    time.sleep(60)\n'
            'except BaseException as error:\n'
            '    raise ImportError("swallowed") from error\n'
        )
    running = subprocess.Popen(
        [sys.executable, '-m', 'ppjax.report', '--output_dir=x'],
        env=os.environ | {'PYTHONPATH': f'{tmp_path}:{_ROOT}'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout.readline() == b'importing\n'
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert (running.returncode, said) == (130, b'Interrupted.\n')
