"""Compiled programs are kept on disk, so that the second start is a quick one."""

import os
import pathlib

import jax

_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
_DEFAULT = '~/.cache/ppjax/jax'
# What compiles faster than this is not worth a file.
_MIN_COMPILE_SECONDS = 0.5
_MIN_VARIABLE = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


def enable() -> None:
    """Turns on JAX's persistent compilation cache; verbs call it first.

    The directory is $JAX_COMPILATION_CACHE_DIR, else ~/.cache/ppjax/jax. Where it
    cannot be written the cache stays off: a program never fails for its sake.
    JAX's own variable for the shortest compilation that is kept is left alone.
    """
    name = os.environ.get(_VARIABLE) or _DEFAULT
    jax.config.update('jax_compilation_cache_dir', _writable(name))
    if _MIN_VARIABLE not in os.environ:
        jax.config.update(
            'jax_persistent_cache_min_compile_time_secs', _MIN_COMPILE_SECONDS
        )


def _writable(name: str) -> str | None:
    if '://' in name:  # A bucket: JAX itself opens it.
        return name
    try:
        path = pathlib.Path(name).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home.
        return None
    return str(path) if os.access(path, os.W_OK | os.X_OK) else None
