"""What the machine is: device, memory, driver, versions, and what it multiplies."""

import importlib.metadata
import os
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp

from ppjax.base import versions
from ppjax.benchmarking import matrix_peak
from ppjax.benchmarking.device_check import sizes as sizes_lib
from ppjax.planning import chips

_ASK_SECONDS = 20
_QUERY = 'name,memory.total,driver_version,power.limit,clocks.max.sm'
# Of which a speed on a GPU depends; those of CUDA have its version in their names.
_TOLD = ('jax-cuda', 'nvidia-', 'torch', 'triton')
_TINY_MATRIX = 256


def device() -> dict[str, Any]:
    """What every part says of where it ran."""
    first = jax.devices()[0]
    return {
        'platform': first.platform,
        'kind': first.device_kind,
        'is_gpu': first.platform == 'gpu',
    }


def memory() -> dict[str, int | None]:
    """Bytes in use, at most so far, and that a program may use; None if not told."""
    told = jax.devices()[0].memory_stats() or {}
    return {
        name: told.get(key)
        for name, key in (
            ('in_use', 'bytes_in_use'),
            ('peak', 'peak_bytes_in_use'),
            ('limit', 'bytes_limit'),
        )
    }


def _driver() -> list[str] | str:
    """What the driver's own tool says, a line a GPU; or why there is nothing."""
    tool = shutil.which('nvidia-smi')
    if tool is None:
        return 'nvidia-smi is not installed'
    try:
        asked = subprocess.run(
            [tool, f'--query-gpu={_QUERY}', '--format=csv'],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f'nvidia-smi: {error}'
    return asked.stdout.splitlines() or asked.stderr.strip()


def _packages() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata['Name'] or '').lower()
        if name.startswith(_TOLD):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def measure(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    """The machine, and the rate of a large matrix product on it."""
    first = jax.devices()[0]
    chip = chips.of_device(first)
    side = _TINY_MATRIX if sizes.is_tiny else matrix_peak.best_size()
    rate = matrix_peak.flops_per_s(jnp.dtype(sizes.dtype), size=side)
    return {
        'devices': len(jax.devices()),
        'backend': first.client.platform_version.splitlines(),
        'driver': _driver(),
        'versions': versions.versions() | _packages(),
        'processors': os.cpu_count(),
        'host_memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
        'memory_bytes': memory(),
        'stated_peak': {'of': chip.name, 'flops_per_s': chip.flops_per_s},
        'matrix_product': {'side': side, 'dtype': sizes.dtype, 'flops_per_s': rate},
    }
