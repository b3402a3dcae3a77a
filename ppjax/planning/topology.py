"""Devices that a step is compiled for: a TPU slice that is not here, or those here."""

import importlib.util
import math
import os

import jax
from jax.experimental import topologies

from ppjax.base import errors

LOCAL = 'local'
_SLICES = {
    2: ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    3: ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
}


def _is_one_chip(name: str) -> bool:
    return set(name.partition(':')[2].split('x')) == {'1'}


def devices(name: str) -> list[jax.Device]:
    """The devices of a topology.

    Args:
        name: such as 'v5e:8x8', or 'local'.

    Raises:
        InputError: if libtpu, which compiles for TPUs, is not installed or does not
            know the topology.
    """
    if name == LOCAL:
        return jax.devices()
    if importlib.util.find_spec('libtpu') is None:
        raise errors.InputError(
            f'--topology={name} is compiled for by libtpu, which is not installed: '
            "pip install 'ppjax[tpu-plan]'"
        )
    # Else libtpu looks for the TPU of this machine, waits for a cloud's metadata and
    # complains of what it does not find; what it compiles for is the topology alone.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
    try:
        found = topologies.get_topology_desc(
            platform='tpu',
            topology_name=name,
            # Else a host is taken to have at least four chips.
            **({'chips_per_host_bounds': [1, 1, 1]} if _is_one_chip(name) else {}),
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise errors.InputError(
            f'--topology={name!r} is none that libtpu knows: '
            f'{str(error).splitlines()[0]}'
        ) from error
    return list(found.devices)


def larger(name: str) -> list[str]:
    """The next two larger slices of the same chips."""
    kind, _, shape = name.partition(':')
    sizes = [int(size) for size in shape.split('x')]
    known = _SLICES.get(len(sizes), ())
    found = [
        f'{kind}:{own}'
        for own in known
        if math.prod(map(int, own.split('x'))) > math.prod(sizes)
    ]
    return found[:2]


def spread_over_more(mesh: str | None) -> str:
    """A mesh of more devices, which share out the weights, else as it was."""
    kept = [
        part.strip()
        for part in (mesh or '').split(',')
        if part.strip() and not part.strip().startswith('fsdp:') and '-1' not in part
    ]
    return ','.join([*kept, 'fsdp:-1'])
