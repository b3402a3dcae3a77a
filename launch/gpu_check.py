"""Runs the device check; see launch/gpu_check.sh.

Exit codes: 0 all that could be measured was, 1 a part failed (the file says which) or
the device's results are not the CPU's, 2 wrong usage, or packages are missing.
"""

import argparse
import importlib.util
import os
import pathlib
import signal
import sys
import tempfile
import zipfile

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# What is imported, and the package that it is in.
_NEEDED = {
    'absl': 'absl-py',
    'chex': 'chex',
    'flax': 'flax',
    'gguf': 'gguf',
    'jax': 'jax',
    'jinja2': 'jinja2',
    'ml_dtypes': 'ml_dtypes',
    'numpy': 'numpy',
    'optax': 'optax',
    'regex': 'regex',
    'safetensors': 'safetensors',
    'tqdm': 'tqdm',
    'transformers': 'transformers',
}
_OLDEST = (3, 11)
_SECONDS = 450.0


def _missing() -> list[str]:
    importlib.invalidate_caches()
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def _unpack(wheels: pathlib.Path, target: str) -> None:
    """Puts pure-Python wheels behind what is installed."""
    for wheel in sorted(wheels.glob('*-none-any.whl')):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(target)
    sys.path.append(target)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='launch/gpu_check.sh')
    parser.add_argument('out', type=pathlib.Path, metavar='OUT.json')
    parser.add_argument('--tiny', action='store_true', help='tiny models anywhere')
    parser.add_argument(
        '--seconds', type=float, default=_SECONDS, help='for all parts together'
    )
    return parser.parse_args()


def main() -> int:
    """Checks what is needed, runs, and says where the file is."""
    given = _arguments()
    if sys.version_info < _OLDEST:
        print('ERROR: Python 3.11 or later is needed; see PYTHON.', file=sys.stderr)
        return 2
    wheels = pathlib.Path(os.environ.get('WHEELS') or _ROOT / 'launch' / 'wheels')
    # A server of imports and children find it too: they are given this path.
    sys.path.insert(0, str(_ROOT))
    with tempfile.TemporaryDirectory(prefix='ppjax-wheels-') as target:
        if _missing():
            _unpack(wheels, target)
        if missing := [_NEEDED[name] for name in _missing()]:
            print(
                f'ERROR: {sys.executable} lacks {", ".join(missing)}; install them, or '
                f'put their pure-Python wheels into {wheels}.',
                file=sys.stderr,
            )
            return 2
        return _check(given)


def _check(given: argparse.Namespace) -> int:
    from ppjax.base import errors
    from ppjax.benchmarking.device_check import runner

    # As an exit: else a part would go on alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        found = runner.check(
            given.out, size='tiny' if given.tiny else None, seconds=given.seconds
        )
    except errors.InputError as error:
        print(f'ERROR: {error}', file=sys.stderr)
        return 1
    states = [part['state'] for part in found['parts'].values()]
    if found['warning']:
        print(found['warning'])
    print(
        f'{given.out}: {states.count(runner.DONE)} parts measured, '
        f'{states.count(runner.SKIPPED)} skipped, {states.count(runner.FAILED)} '
        f'failed, in {found["seconds"]:.0f} s.'
    )
    figures = found['parts']['equality'].get('figures', {})
    is_right = runner.FAILED not in states and figures.get('is_equal', True)
    return 0 if is_right else 1


if __name__ == '__main__':
    sys.exit(main())
