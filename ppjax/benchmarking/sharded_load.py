"""Host memory of loading onto a mesh and of exporting from one, in a process alone.

The devices are a CPU's, simulated: their arrays are host memory too, so that whatever
comes on top of them is what loading or exporting takes.
"""

import hashlib
import math
import os
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config, memory
from ppjax.exporting import hf_export
from ppjax.models import (
    array_reader,
    base_model,
    checkpoint,
    loading,
    open_checkpoint,
    weights,
)
from ppjax.models import config as config_lib
from ppjax.parallel import sharding

_FILE_BYTES = 1e9


class _RandomReader(checkpoint.CheckpointReader):
    """Random tensors of a model's shapes; none exists before it is read."""

    def __init__(self, hf_config: dict[str, Any], dtype: str):
        self.path, self.hf_config = pathlib.Path('random'), hf_config
        self.cfg = config_lib.from_hf_config(hf_config)
        self._dtype = jnp.dtype(dtype)
        self._shapes = loading.tensor_shapes(self.cfg)

    def names(self) -> list[str]:
        return sorted(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self._dtype)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        shape = self._shapes[name]
        start, stop, _ = rows.indices(shape[0])
        seed = hashlib.sha256(f'{name} {start}'.encode()).digest()
        rng = np.random.default_rng(list(seed))
        drawn = rng.standard_normal((stop - start, *shape[1:]), dtype=np.float32)
        return (drawn * np.float32(0.02)).astype(self._dtype)


def _export(model: base_model.BaseModel, folder: pathlib.Path, dtype: str) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0}, unk_token='a'))
    hf_export.export_model(
        model,
        folder,
        dtype=dtype,
        tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=words),
        model_card='',
        system_prompt='',
        shard_bytes=_FILE_BYTES,
    )


def _there_and_back(folder: str, dtype: str, mesh: str, target: str) -> dict[str, Any]:
    base = base_model.open_base_model(folder)
    devices = sharding.make_mesh(mesh, jax.devices())
    jax.block_until_ready(jax.device_put(jnp.zeros(8), sharding.replicated(devices)))
    before = memory.anonymous_bytes()
    kept: list[Any] = []

    def read() -> None:
        decoder = loading.load_decoder(
            base.reader, base.config, dtype=jnp.dtype(dtype), mesh=devices
        )
        kept.append(jax.block_until_ready(decoder))

    def write() -> None:
        arrays = array_reader.ArrayReader(weights.weights_of(kept[0]), base.reader)
        model = base_model.BaseModel(folder, arrays, base.config)
        _export(model, pathlib.Path(target), dtype)

    found: dict[str, Any] = {
        'load': memory.measured(read, before),
        'export': memory.measured(write, before),
    }
    # Devices with the same part share it.
    held = {
        (shard.data.unsafe_buffer_pointer(), shard.data.nbytes)
        for leaf in jax.tree.leaves(kept[0])
        for shard in leaf.addressable_shards
    }
    arrays = sum(size for _, size in held)
    for own in found.values():
        own['peak_to_arrays'] = own['peak_bytes'] / arrays
    return found | {'array_bytes': arrays}


def measure(cfg: config.BenchConfig) -> dict[str, Any]:
    """Writes random weights to a folder, loads them onto a mesh, and exports them.

    Returns:
        Bytes of the parameters and of the arrays on the devices; of loading and of
        exporting seconds, the peak of the process beyond what it had before loading,
        and that peak in arrays.

    Raises:
        InputError: if the mesh is none.
    """
    mesh = str(cfg.mesh)
    sizes = [part.partition(':')[2].strip() for part in mesh.split(',')]
    if not all(map(str.isdecimal, sizes)):
        raise errors.InputError(f'--mesh={mesh!r} must give sizes, as in fsdp:8.')
    reader = _RandomReader(base_model.read_hf_config(cfg.base_model), cfg.dtype)
    with tempfile.TemporaryDirectory() as parent:
        source, target = (
            pathlib.Path(parent, 'random'),
            pathlib.Path(parent, 'exported'),
        )
        progress_lib.say(f'Writing random weights to {source} ...')
        _export(base_model.BaseModel('random', reader, reader.cfg), source, cfg.dtype)
        # Read by JAX where the other process starts.
        os.environ['JAX_NUM_CPU_DEVICES'] = str(math.prod(map(int, sizes)))
        os.environ['JAX_PLATFORMS'] = 'cpu'
        progress_lib.say(f'Loading onto {mesh} and exporting ...')
        found = memory.alone(_there_and_back, str(source), cfg.dtype, mesh, str(target))
        one, other = map(open_checkpoint.open_checkpoint, (source, target))
        same = all(
            one.read(name).tobytes() == other.read(name).tobytes()
            for name in one.names()
        )
    return found | {
        'parameter_bytes': jnp.dtype(cfg.dtype).itemsize
        * weights.num_parameters(reader.cfg),
        'same_weights': same,
    }
