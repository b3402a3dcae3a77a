"""Loading a checkpoint: seconds and host memory, each loader in its own process."""

from collections.abc import Callable
import concurrent.futures
import gc
import math
import multiprocessing
import pathlib
import statistics
import tempfile
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import torch_model
from ppjax.evaluation import timing
from ppjax.models import base_model, loading, weights

_STATUS = pathlib.Path('/proc/self/status')
_EVERY_S = 0.002


def anonymous_bytes() -> int:
    """The process's own memory; pages of mapped files, which can be dropped, aside."""
    for line in _STATUS.read_text('ascii').splitlines():
        if line.startswith('RssAnon:'):
            return int(line.split()[1]) * 1024
    raise AssertionError(f'{_STATUS} has no RssAnon.')


def peak_bytes(act: Callable[[], None]) -> int:
    """The most anonymous memory that this process had while it did something."""
    gc.collect()
    peak, ended = anonymous_bytes(), threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(_EVERY_S):
            peak = max(peak, anonymous_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        act()
    finally:
        ended.set()
        thread.join()
    return max(peak, anonymous_bytes())


def _measured(load: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a load, and the memory that it adds at most."""
    gc.collect()
    before = anonymous_bytes()
    kept: list[Any] = []
    spent = 0.0

    def act() -> None:
        nonlocal spent
        began = time.perf_counter()
        kept.append(load())
        spent = time.perf_counter() - began

    peak = peak_bytes(act)
    return {'seconds': spent, 'peak_bytes': peak - before}


def check_memory_is_told() -> None:
    """Raises:
    InputError: if this system does not tell processes their memory.
    """
    if not _STATUS.exists():
        raise errors.InputError('bench load reads memory from /proc, as Linux has it.')


def _ours(name: str, dtype: str) -> dict[str, Any]:
    base = base_model.open_base_model(name)
    # Starting the backend is not loading.
    jnp.zeros(()).block_until_ready()
    return _measured(
        lambda: jax.block_until_ready(
            loading.load_decoder(base.reader, base.config, dtype=jnp.dtype(dtype))
        )
    )


def _theirs(folder: str, dtype: str) -> dict[str, Any]:
    import transformers

    return _measured(
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        )
    )


def alone(measure: Callable[..., dict[str, Any]], *args: str) -> dict[str, Any]:
    """In a process of its own: what another loader left must not count."""
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context('spawn')
    ) as pool:
        return pool.submit(measure, *args).result()


def compare(base: base_model.BaseModel, *, rounds: int, dtype: str) -> dict[str, Any]:
    """Loads the model again and again, ours and transformers' in turn.

    Both read the same safetensors file, which is of that dtype too.

    Args:
        base: the model.
        rounds: of each side.
        dtype: that the weights are loaded in.

    Returns:
        Seconds and peak memory of both, the parameters' bytes, the largest tensor's,
        and how much memory beyond the parameters a load takes, in largest tensors.
        transformers leaves weights in the mapped file, whose pages do not count.

    Raises:
        InputError: if PyTorch is not installed, or processes do not tell their memory.
    """
    check_memory_is_told()
    torch_model.check_installed()
    itemsize = jnp.dtype(dtype).itemsize
    leaves = jax.tree.leaves(weights.abstract(base.config))
    parameters = itemsize * sum(math.prod(leaf.shape) for leaf in leaves)
    # Of the checkpoint: what is stacked over layers are many there.
    largest = itemsize * max(
        math.prod(base.reader.shape(name)) for name in base.reader.names()
    )
    sides: dict[str, Any] = {'ppjax': _ours, 'pytorch': _theirs}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / 'dense'
        torch_model.write(base, target, dtype=dtype)
        for name in progress_lib.over([*sides] * rounds, 'Loads'):
            found[name].append(alone(sides[name], str(target), dtype))
    times = {
        name: statistics.median(x['seconds'] for x in runs)
        for name, runs in found.items()
    }
    peaks = {name: max(x['peak_bytes'] for x in runs) for name, runs in found.items()}
    return {
        name: {
            'seconds': timing.spread([x['seconds'] for x in runs]),
            'peak_bytes': timing.spread([x['peak_bytes'] for x in runs]),
            'beyond_parameters_in_largest_tensors': (peaks[name] - parameters)
            / largest,
        }
        for name, runs in found.items()
    } | {
        'parameter_bytes': parameters,
        'largest_tensor_bytes': largest,
        'ratio_to_reference': times['pytorch'] / times['ppjax'],
        'peak_to_reference': peaks['ppjax'] / peaks['pytorch'],
    }
