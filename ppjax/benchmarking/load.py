"""Loading a checkpoint: seconds and host memory, each loader in its own process."""

from collections.abc import Callable
import functools
import math
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config, memory, sharded_load, torch_model
from ppjax.evaluation import timing
from ppjax.models import base_model, loading, weights


def _ours(name: str, dtype: str) -> dict[str, Any]:
    base = base_model.open_base_model(name)
    # Starting the backend is not loading.
    jnp.zeros(()).block_until_ready()
    return memory.measured(
        lambda: jax.block_until_ready(
            loading.load_decoder(base.reader, base.config, dtype=jnp.dtype(dtype))
        )
    )


def _theirs(folder: str, dtype: str) -> dict[str, Any]:
    import transformers

    return memory.measured(
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        )
    )


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Loads the model again and again, ours and transformers' in turn.

    Both read the same safetensors file, which is of that dtype too.

    Returns:
        Seconds and peak memory of both, the parameters' bytes, the largest tensor's,
        and how much memory beyond the parameters a load takes, in largest tensors.
        transformers leaves weights in the mapped file, whose pages do not count. With
        `--mesh` see `sharded_load.measure`.

    Raises:
        InputError: if PyTorch is not installed, or processes do not tell their memory.
    """
    memory.check_is_told()
    if cfg.mesh:
        return sharded_load.measure(cfg)
    base = base_model.open_base_model(cfg.base_model)
    torch_model.check_installed()
    itemsize = jnp.dtype(cfg.dtype).itemsize
    parameters = itemsize * weights.num_parameters(base.config)
    # Of the checkpoint: what is stacked over layers are many there.
    largest = itemsize * max(
        math.prod(base.reader.shape(name)) for name in base.reader.names()
    )
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / 'dense'
        torch_model.write(base, target, dtype=cfg.dtype)

        def load(side: Callable[..., dict[str, Any]], _: int) -> dict[str, Any]:
            return memory.alone(side, str(target), cfg.dtype)

        runs = timing.in_turn(
            {
                'ppjax': functools.partial(load, _ours),
                'pytorch': functools.partial(load, _theirs),
            },
            range(cfg.rounds),
            progress_lib.counter('Loads'),
        )
    found: dict[str, Any] = {}
    for name, own in runs.items():
        seconds, peak = (
            timing.spread([measured[key] for _, measured in own])
            for key in ('seconds', 'peak_bytes')
        )
        found[name] = {
            'seconds': seconds,
            'peak_bytes': peak,
            'beyond_parameters_in_largest_tensors': (peak['max'] - parameters)
            / largest,
        }
    ours, theirs = found['ppjax'], found['pytorch']
    return found | {
        'parameter_bytes': parameters,
        'largest_tensor_bytes': largest,
        'ratio_to_reference': theirs['seconds']['median'] / ours['seconds']['median'],
        'peak_to_reference': ours['peak_bytes']['max'] / theirs['peak_bytes']['max'],
    }
