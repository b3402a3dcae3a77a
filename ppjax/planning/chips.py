"""What a chip has: memory that a program may use, and its peak of products.

Peaks are the vendors' stated dense bfloat16 rates; what of them a step reaches is
another matter, and stated with every estimate.
"""

import dataclasses

import jax

from ppjax.base import errors

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
        name: for people.
        memory: bytes; None where unknown.
        flops_per_s: stated peak of dense bfloat16 products; None where unknown.
    """

    name: str
    memory: int | None
    flops_per_s: float | None


# By what a topology's name begins with.
_TPUS = {
    'v4': Chip('TPU v4', 32 * _GIB, 275e12),
    'v5e': Chip('TPU v5e', 16 * _GIB, 197e12),
    'v5p': Chip('TPU v5p', 95 * _GIB, 459e12),
    'v6e': Chip('TPU v6e', 32 * _GIB, 918e12),
    'tpu7x': Chip('TPU7x', 192 * _GIB, 2307e12),
}
# By what the name of a local device holds.
_OTHERS = {
    'A100': Chip('A100', 80 * _GIB, 312e12),
    'H100': Chip('H100', 80 * _GIB, 989e12),
    'H200': Chip('H200', 141 * _GIB, 989e12),
    'B200': Chip('B200', 180 * _GIB, 2250e12),
    'v5 lite': _TPUS['v5e'],
    'v5p': _TPUS['v5p'],
    'v6 lite': _TPUS['v6e'],
    'v4': _TPUS['v4'],
}


def of_topology(topology: str) -> Chip:
    """The chips of a TPU slice, as 'v5e:8x8'.

    Raises:
        InputError: if there are no such chips.
    """
    kind = topology.partition(':')[0]
    if kind not in _TPUS:
        raise errors.InputError(
            f'--topology={topology!r}: known chips are {", ".join(_TPUS)}, as in '
            'v5e:8x8, or give local for the devices here.'
        )
    return _TPUS[kind]


def of_kind(kind: str) -> Chip:
    """A device by the name that it gives itself; of others nothing is known."""
    for name, chip in _OTHERS.items():
        if name in kind:
            return chip
    return Chip(kind, None, None)


def of_device(device: jax.Device) -> Chip:
    """A device that is here; a CPU's peak is not known, and its memory is shared.

    Its memory is what JAX lends a program of it, where the device tells.
    """
    chip = of_kind(device.device_kind)
    lent = (device.memory_stats() or {}).get('bytes_limit')
    return dataclasses.replace(chip, memory=lent) if lent else chip
