"""Parts run one after the other, each in its own process and time, into one file.

A part that hangs, runs out of memory or crashes costs its own time and no more: the
file is written after every part, and says of each what became of it.
"""

from collections.abc import Mapping, Sequence
import datetime
import math
import multiprocessing
from multiprocessing import connection as connection_lib
import os
import pathlib
import threading
import time
from typing import Any

import ppjax
from ppjax.base import atomic, compile_cache, errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking.device_check import parts as parts_lib
from ppjax.benchmarking.device_check import sizes as sizes_lib

FORMAT = 'ppjax.device_check.v1'
# A part with less time than this would only be stopped.
LEAST_SECONDS = 15.0
_KILL_SECONDS = 10.0

WAITING, RUNNING, DONE, SKIPPED, FAILED = (
    'waiting',
    'running',
    'done',
    'skipped',
    'failed',
)
_SIZES = {sizes.name: sizes for sizes in (sizes_lib.FULL, sizes_lib.TINY)}

_ENVIRONMENT = {
    # Else JAX lends a program three quarters of a GPU, too little for the largest model.
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92',
    # Figures are of one GPU.
    'CUDA_VISIBLE_DEVICES': '0',
}

Answer = dict[str, Any]


def run_part(part: parts_lib.Part, size: str | None, before: dict[str, Any]) -> Answer:
    """Runs a part in this process.

    Args:
        part: which.
        size: 'full' or 'tiny'; None is tiny on a CPU alone.
        before: part -> figures of those that are done.

    Returns:
        What the file says of it: `state`, `size`, `device`, and `figures` or `reason`.
    """
    import jax

    answer: Answer = {}
    try:
        answer['device'] = device = part.device()
        is_cpu = device['platform'] == 'cpu'
        sizes = _SIZES[size or ('tiny' if is_cpu else 'full')]
        answer['size'] = sizes.name
        if sizes.is_tiny:
            compile_cache.enable()
        else:
            # What compiling takes is measured.
            jax.config.update('jax_enable_compilation_cache', False)
        return answer | {'state': DONE, 'figures': part.measure(sizes, before)}
    except errors.InputError as error:
        return answer | {'state': SKIPPED, 'reason': str(error)}
    except Exception as error:  # noqa: BLE001  Drivers and compilers raise all kinds.
        said = errors.one_line(f'{type(error).__name__}: {error}')
        return answer | {'state': FAILED, 'reason': said}


def _end_with_parent() -> None:
    """Ends this process once its parent is gone: nobody would stop it any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _child(
    sender: connection_lib.Connection,
    part: parts_lib.Part,
    size: str | None,
    before: dict[str, Any],
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.update(part.environment)
    sender.send(run_part(part, size, before))


def _in_time(
    part: parts_lib.Part, size: str | None, before: dict[str, Any], seconds: float
) -> Answer:
    """Runs a part in a process of its own, which is killed when its time is up."""
    # Imports are made once, by a server that starts no device, and not for each part.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([parts_lib.__name__])
    deadline = time.monotonic() + seconds
    receiver, sender = context.Pipe(duplex=False)
    # No daemon: PyTorch's compiler has processes of its own.
    process = context.Process(target=_child, args=(sender, part, size, before))
    process.start()
    sender.close()
    try:
        if not receiver.poll(max(0.0, deadline - time.monotonic())):
            return {'state': FAILED, 'reason': f'stopped after {seconds:.0f} s'}
        return receiver.recv()
    except EOFError:
        process.join(_KILL_SECONDS)
        return {
            'state': FAILED,
            'reason': f'its process ended with exit code {process.exitcode}',
        }
    finally:
        # What a device still does for it would disturb the next.
        process.kill()
        process.join(_KILL_SECONDS)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _as_json(value: Any) -> Any:
    """Without what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(own) for own in value]
    return value


def check(
    path: pathlib.Path,
    *,
    size: str | None = None,
    seconds: float,
    parts: Sequence[parts_lib.Part] = parts_lib.PARTS,
) -> dict[str, Any]:
    """Runs all parts and writes the file after each.

    Args:
        path: of the JSON file.
        size: 'full' or 'tiny'; None is tiny on a CPU alone.
        seconds: for all; parts that they are not enough for are skipped.
        parts: the first says what the device is; without it none of the others runs.

    Returns:
        What the file holds.

    Raises:
        DiskError: if the file cannot be written.
    """
    began = time.monotonic()
    found: dict[str, Any] = {
        'format': FORMAT,
        'ppjax': ppjax.__version__,
        'started': _now(),
        'finished': None,
        'seconds': 0.0,
        'seconds_allowed': seconds,
        'is_gpu': None,
        'size': size,
        'warning': None,
        'parts': {part.name: {'state': WAITING} for part in parts},
    }
    done: dict[str, Any] = {}

    def write(**more: Any) -> None:
        found.update(more, seconds=round(time.monotonic() - began, 1))
        atomic.write_json(path, _as_json(found))

    for number, part in enumerate(parts):
        left = seconds - (time.monotonic() - began)
        own = found['parts'][part.name]
        if number and not done:
            own |= {'state': SKIPPED, 'reason': 'no device was found'}
        elif left < LEAST_SECONDS:
            own |= {
                'state': SKIPPED,
                'reason': f'{left:.0f} s of {seconds:.0f} s were left',
            }
        else:
            own['state'] = RUNNING
            write()
            progress_lib.say(f'{part.name} ...')
            since = time.monotonic()
            limit = min(part.seconds, left)
            own |= _in_time(part, size, done, limit)
            own |= {'seconds': round(time.monotonic() - since, 1), 'limit_s': limit}
        if own['state'] == DONE:
            done[part.name] = own['figures']
            if not number:
                size = own['size']
                found |= _kind(own['device'], size)
        progress_lib.say(line(part.name, own))
        write()
    write(finished=_now())
    return found


def _kind(device: Mapping[str, Any], size: str) -> dict[str, Any]:
    """What the file says first: what its figures are of."""
    warning = None
    if not device['is_gpu']:
        warning = f'Measured on {device["kind"]}: nothing here is a figure of a GPU.'
    if size == 'tiny':
        warning = f'{warning or ""} Models are tiny: rates say nothing.'.strip()
    return {'is_gpu': device['is_gpu'], 'size': size, 'warning': warning}


def line(name: str, part: Mapping[str, Any]) -> str:
    """A part in one line for people."""
    figures = part.get('figures', {})
    told = [f'{name}: {part["state"]}']
    if 'device' in part:
        told.append(f'on {part["device"]["kind"]}')
    if 'reason' in part:
        told.append(part['reason'])
    if 'is_equal' in figures:
        told.append('equal' if figures['is_equal'] else 'NOT EQUAL')
    for key, unit in (('examples_per_s', 'examples/s'), ('mfu', 'MFU')):
        if figures.get(key) is not None:
            told.append(f'{figures[key]:.3g} {unit}')
    for rows, own in figures.get('by_rows', {}).items():
        told.append(f'{own["decode_tokens_per_s"]:.4g} tokens/s at {rows}')
    return ', '.join(told)
