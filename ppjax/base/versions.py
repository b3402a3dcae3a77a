"""Versions of what a result depends on."""

import importlib.metadata
import platform

import jax

_NAMES = ('ppjax', 'jax', 'jaxlib', 'flax', 'optax', 'transformers', 'numpy')


def versions() -> dict[str, str]:
    """Name -> version of Python and packages, and the devices."""
    found = {'python': platform.python_version()}
    for name in _NAMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found['device'] = f'{jax.devices()[0].device_kind} x {jax.device_count()}'
    return found
