"""Several processes, each with some of the devices, that run one command together.

All of them do the same in the same order. The first alone writes files and speaks;
what could differ between them (settings, data, code) is compared before the first
step, and what depends on files that change is decided by the first.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
from typing import Any, TypeVar

import ppjax
from ppjax.base import errors

Value = TypeVar('Value')

# Of the network: a process not heard from for so long is taken for dead, and the
# others end. JAX's own 100 s keep a pod idle for longer.
_HEARTBEAT_SECONDS = 30
_START_SECONDS = 300


@dataclasses.dataclass
class _Group:
    """Which process this is, of how many."""

    index: int = 0
    count: int = 1


_group = _Group()


def count() -> int:
    """How many processes run this command together."""
    return _group.count


def index() -> int:
    """Which of them this one is."""
    return _group.index


def is_first() -> bool:
    """Whether this is the one that writes and speaks."""
    return _group.index == 0


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    saves: bool = False,
) -> None:
    """Joins the other processes; without a coordinator this is the only one.

    Args:
        coordinator: HOST:PORT of the first process, or 'auto' to take all three from
            the environment of a TPU pod, Slurm, Kubernetes or MPI.
        num_processes: how many there are.
        process_id: which this one is, from 0 on.
        saves: whether the command listens for SIGTERM (`preemption`); if not, that
            ends it.

    Raises:
        InputError: if they do not fit together, the others cannot be reached, or
            they run another version of this code or of JAX.
    """
    given = [value is not None for value in (num_processes, process_id)]
    if coordinator is None:
        if any(given):
            raise errors.InputError(
                '--num_processes and --process_id want --coordinator=HOST:PORT too.'
            )
        return
    automatic = coordinator == 'auto'
    if any(given) == automatic or (any(given) and not all(given)):
        raise errors.InputError(
            f'--coordinator={coordinator} goes '
            + ('without' if automatic else 'with')
            + ' --num_processes and --process_id.'
        )
    # JAX takes a second or two to import, and one process need not.
    import jax

    address: dict[str, Any] = {}
    if not automatic:
        host, _, port = coordinator.rpartition(':')
        if not host or not port.isdecimal():
            raise errors.InputError(
                f'--coordinator={coordinator!r} is neither HOST:PORT nor auto.'
            )
        address = {
            'coordinator_address': coordinator,
            'num_processes': num_processes,
            'process_id': process_id,
            # Else a cluster's environment would be asked what is not given.
            'cluster_detection_method': 'deactivate',
        }
        # Else it listens on every interface of the machine.
        if host == 'localhost' or host.startswith('127.'):
            address['coordinator_bind_address'] = coordinator
    # It takes SIGTERM for itself, and leaves it to the command to ask.
    jax.config.update('jax_enable_preemption_service', saves)
    try:
        jax.distributed.initialize(
            **address,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            initialization_timeout=_START_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise errors.InputError(
            f'--coordinator={coordinator}: the processes could not find each other: '
            f'{str(error).splitlines()[0]}'
        ) from error
    _group.index, _group.count = jax.process_index(), jax.process_count()
    agree({'code': _code_digest(), 'jax': jax.__version__})


def agree(facts: Mapping[str, str]) -> None:
    """Compares what all processes must have in common.

    Args:
        facts: name -> text; the same names everywhere.

    Raises:
        InputError: on all processes, naming what differs and where.
    """
    if _group.count == 1:
        return
    from jax.experimental import multihost_utils
    import numpy as np

    digests = [hashlib.sha256(text.encode()).digest() for text in facts.values()]
    own = np.frombuffer(b''.join(digests), np.uint8).reshape(len(facts), -1)
    everyone = multihost_utils.process_allgather(own)  # [processes, facts, 32]
    for process, theirs in enumerate(everyone):
        differing = [
            name
            for name, same in zip(
                facts, (theirs == everyone[0]).all(axis=-1), strict=True
            )
            if not same
        ]
        if differing:
            raise errors.InputError(
                f'Process {process} has another {", ".join(differing)} than process '
                '0; all need the same command, files and versions.'
            )


def everywhere(holds: bool) -> bool:
    """Whether something holds for every process; all must ask."""
    if _group.count == 1:
        return holds
    from jax.experimental import multihost_utils
    import numpy as np

    return bool(multihost_utils.process_allgather(np.array(holds)).all())


def first_decides(decide: Callable[[], Value]) -> Value:
    """What the first process finds, on all of them.

    Args:
        decide: called on the first alone; returns what JSON can hold.

    Raises:
        InputError: on all of them, if it does on the first.
    """
    if _group.count == 1:
        return decide()
    found: dict[str, Any] = {}
    if is_first():
        try:
            found = {'value': decide()}
        except errors.InputError as error:
            found = {'error': str(error)}
    found = json.loads(_from_first(json.dumps(found).encode()))
    if 'error' in found:
        raise errors.InputError(found['error'])
    return found['value']


def _from_first(text: bytes) -> bytes:
    from jax.experimental import multihost_utils
    import numpy as np

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(size, np.uint8)
    if is_first():
        buffer[:] = np.frombuffer(text, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(buffer))


def fetch(x: Any) -> Any:
    """An array as NumPy, wherever its parts are; all processes must ask for it."""
    import numpy as np

    if _group.count == 1 or isinstance(x, np.ndarray):
        return np.asarray(x)
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


def leave(code: int) -> None:
    """Ends a process whose command failed, without waiting for the others.

    They may wait for this one inside a collective, and would do so for ever; they are
    told once it is gone. Does nothing where there is one process.
    """
    if _group.count == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        # The others end with it: time to say why themselves.
        time.sleep(2)
    os._exit(code)


def _code_digest() -> str:
    """Of the package's source files: versions need not say what was edited."""
    digest = hashlib.sha256()
    root = pathlib.Path(ppjax.__file__).parent
    for path in sorted(root.rglob('*.py')):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
