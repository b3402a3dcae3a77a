"""From a checkpoint's tensors to a `Decoder`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import cores, errors
from ppjax.base import progress as progress_lib
from ppjax.models import checkpoint
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import matrix as matrix_lib
from ppjax.models import weights as weights_lib
from ppjax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of a block or of the decoder, and where it comes from.

    Attributes:
        hf_name: Hugging Face's name; `{}` stands for the layer.
        transpose: whether the file holds [out, in] and we hold [in, out].
    """

    hf_name: str
    transpose: bool = False


_LAYER = 'model.layers.{}.'
BLOCK_WEIGHTS = {
    'attn_norm': Weight(_LAYER + 'input_layernorm.weight'),
    'w_q': Weight(_LAYER + 'self_attn.q_proj.weight', transpose=True),
    'w_k': Weight(_LAYER + 'self_attn.k_proj.weight', transpose=True),
    'w_v': Weight(_LAYER + 'self_attn.v_proj.weight', transpose=True),
    'w_o': Weight(_LAYER + 'self_attn.o_proj.weight', transpose=True),
    'b_q': Weight(_LAYER + 'self_attn.q_proj.bias'),
    'b_k': Weight(_LAYER + 'self_attn.k_proj.bias'),
    'b_v': Weight(_LAYER + 'self_attn.v_proj.bias'),
    'b_o': Weight(_LAYER + 'self_attn.o_proj.bias'),
    'q_norm': Weight(_LAYER + 'self_attn.q_norm.weight'),
    'k_norm': Weight(_LAYER + 'self_attn.k_norm.weight'),
    'ffn_norm': Weight(_LAYER + 'post_attention_layernorm.weight'),
    'w_gate': Weight(_LAYER + 'mlp.gate_proj.weight', transpose=True),
    'w_up': Weight(_LAYER + 'mlp.up_proj.weight', transpose=True),
    'w_down': Weight(_LAYER + 'mlp.down_proj.weight', transpose=True),
    'b_gate': Weight(_LAYER + 'mlp.gate_proj.bias'),
    'b_up': Weight(_LAYER + 'mlp.up_proj.bias'),
    'b_down': Weight(_LAYER + 'mlp.down_proj.bias'),
    # SliceGPT's alone.
    'turn_attention': Weight(_LAYER + 'attn_shortcut.weight', transpose=True),
    'turn_ffn': Weight(_LAYER + 'mlp_shortcut.weight', transpose=True),
}
TOP_WEIGHTS = {
    'embedding': Weight('model.embed_tokens.weight'),
    'final_norm': Weight('model.norm.weight'),
    'head': Weight('lm_head.weight'),
    'last_turn': Weight('model.last_shortcut.weight', transpose=True),
    'last_down': Weight('model.last_down_proj.weight', transpose=True),
    'last_bias': Weight('model.last_down_proj.bias'),
}

_ALIGNMENT = 64
# Entries of a tensor that are read at a time, 16 MB of float32; by each of several
# threads, 1 MB.
_READ_ENTRIES = 1 << 22
_THREAD_ENTRIES = 1 << 18

# Old checkpoints carry RoPE's frequencies as a buffer; ours come from the config.
_DERIVED = ('rotary_emb.inv_freq',)


def parameters(
    weights: weights_lib.Weights,
) -> Iterator[tuple[weights_lib.Weights, str, Weight, list[tuple[str, int | None]]]]:
    """All parameters of a decoder, and which tensors of a file they are made of.

    Args:
        weights: see `models.weights`; some may be missing.

    Yields:
        The dict that holds the parameter, its name there, where it comes from, and
        (Hugging Face's name, layer) of each tensor; None is the layer of the only one.
    """
    blocks = weights.get('blocks', {})
    for table, owner in ((TOP_WEIGHTS, weights), (BLOCK_WEIGHTS, blocks)):
        for name, weight in table.items():
            if name in owner:
                layers: Iterable[int | None] = (
                    [None] if owner is weights else range(owner[name].shape[0])
                )
                tensors = [(weight.hf_name.format(layer), layer) for layer in layers]
                yield owner, name, weight, tensors


def tensor_shapes(cfg: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the decoder needs, with its shape in the file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for owner, name, weight, tensors in parameters(weights_lib.abstract(cfg)):
        for hf_name, layer in tensors:
            shape = owner[name].shape[0 if layer is None else 1 :]
            shapes[hf_name] = shape[::-1] if weight.transpose else shape
    return shapes


def check_tensors(
    reader: checkpoint.CheckpointReader, cfg: config_lib.ModelConfig
) -> None:
    """Compares a checkpoint's headers with its config, reading no weights.

    Raises:
        InputError: naming the first missing, misshapen, non-float or unknown
            tensor and how many there are.
    """
    present = set(reader.names())
    if cfg.num_layers > len(present):  # Before a million names are made up.
        raise errors.InputError(
            f'{reader.path}: config.json asks for {cfg.num_layers} layers '
            f'(num_hidden_layers), and the weights are {len(present)} tensors in all; '
            "the download is incomplete or config.json is another model's."
        )
    expected = tensor_shapes(cfg)
    missing = sorted(expected.keys() - present)
    if missing == [TOP_WEIGHTS['head'].hf_name]:
        raise errors.InputError(
            f'{reader.path}: the unembedding {missing[0]!r} is missing, and config.json '
            'does not say that the embedding serves as such; if it does in this model, '
            'set tie_word_embeddings to true there, else download the weights again.'
        )
    if missing:
        raise errors.InputError(
            f'{reader.path}: tensor {missing[0]!r} is missing ({len(missing)} of '
            f'{len(expected)} are); the download is incomplete or config.json is '
            "another model's."
        )
    ignored = {'lm_head.weight'} if cfg.tie_embeddings else set()
    unknown = sorted(
        name
        for name in present - expected.keys() - ignored
        if not name.endswith(_DERIVED)
    )
    if unknown:
        raise errors.InputError(
            f'{reader.path}: tensor {unknown[0]!r} ({len(unknown)} such) has no place '
            f'in the {cfg.family} architecture of config.json.'
        )
    for name, shape in expected.items():
        if reader.shape(name) != shape:
            raise errors.InputError(
                f'{reader.path}: tensor {name!r} has shape {reader.shape(name)}, '
                f'config.json wants {shape}.'
            )
        if not jnp.issubdtype(reader.dtype(name), jnp.floating):
            raise errors.InputError(
                f'{reader.path}: tensor {name!r} has dtype {reader.dtype(name)}; '
                'quantised checkpoints are read from GGUF only.'
            )


def config_of(reader: checkpoint.CheckpointReader) -> config_lib.ModelConfig:
    """The constants of a checkpoint, as its config says and its tensors bear out.

    Where the config ties the unembedding to the embedding and the file holds another
    unembedding, that one is used: so do transformers and vLLM.

    Raises:
        InputError: see `config.from_hf_config` and `check_tensors`.
    """
    cfg = config_lib.from_hf_config(reader.hf_config)
    check_tensors(reader, cfg)
    if cfg.tie_embeddings and _has_own_head(reader):
        cfg = dataclasses.replace(cfg, tie_embeddings=False)
        check_tensors(reader, cfg)
        _say_once(
            f'{reader.path}: config.json ties the unembedding to the embedding, but the '
            'weights hold another lm_head.weight; it is used, as transformers does.'
        )
    return cfg


_say_once = functools.cache(progress_lib.say)


def _has_own_head(reader: checkpoint.CheckpointReader) -> bool:
    names = [TOP_WEIGHTS[key].hf_name for key in ('embedding', 'head')]
    if not set(names) <= set(reader.names()):
        return False
    shapes = [reader.shape(name) for name in names]
    if shapes[0] != shapes[1]:
        return True
    rows, width = shapes[0]
    step = max(1, _READ_ENTRIES // width)
    for start in range(0, rows, step):
        embedding, head = (
            reader.read(name, slice(start, start + step)).astype(np.float32)
            for name in names
        )
        if not np.array_equal(embedding, head):
            return True
    return False


def load_decoder(
    reader: checkpoint.CheckpointReader,
    cfg: config_lib.ModelConfig,
    *,
    dtype: jax.typing.DTypeLike,
    int8_matrices: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> decoder_lib.Decoder:
    """Reads a checkpoint tensor by tensor into stacked parameters.

    On a CPU, peak host memory is little more than the parameters in `dtype`; elsewhere
    it is that of the largest parameter, stacked over layers, of which a process with a
    mesh holds its own devices' parts only.

    Args:
        reader: the open checkpoint.
        cfg: from its config.
        dtype: of all parameters.
        int8_matrices: whether the blocks' matrices are rounded to int8 instead.
        mesh: the devices, over which weights lie as `parallel.sharding` says; None
            for JAX's default device.
        progress: called with (tensors read, tensors in all).

    Raises:
        InputError: if `check_tensors` does, a tensor's bytes are not there, or a
            weight cannot be split over the mesh.
    """
    check_tensors(reader, cfg)
    like = weights_lib.abstract(cfg, dtype, int8_matrices)
    found = load_weights(reader, like, mesh=mesh, progress=progress)
    return weights_lib.decoder_of(cfg, found)


def load_weights(
    reader: checkpoint.CheckpointReader,
    like: weights_lib.Weights,
    *,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> weights_lib.Weights:
    """Reads some parameters of a checkpoint, whose tensors are checked.

    Args:
        reader: the open checkpoint.
        like: the shapes of those to read, under their names; see `weights.abstract`.
        mesh: see `load_decoder`.
        progress: see `load_decoder`.

    Raises:
        InputError: if a tensor's bytes are not there, or a weight cannot be split
            over the mesh.
    """
    found = like | {name: dict(x) for name, x in like.items() if isinstance(x, dict)}
    total = sum(len(tensors) for _, _, _, tensors in parameters(found))
    done = 0
    for owner, name, weight, tensors in parameters(found):
        path = name if owner is found else f'blocks/{name}'
        parts = _Parts(owner[name], path, mesh)
        scale = found.get('scales', {}).get(name)
        scales = None if scale is None else _Parts(scale, f'scales/{name}', mesh)
        work = [
            _reads(
                reader,
                hf_name,
                parts.of_tensor(layer, weight.transpose),
                None if scales is None else scales.of_tensor(layer, False),
                at_once=weight.transpose,
            )
            for hf_name, layer in tensors
        ]
        for _ in _done(work, reader.is_parallel):
            done += 1
            progress(done, total)
        owner[name] = parts.assembled()
        if scales is not None:
            found['scales'][name] = scales.assembled()
    return found


class _Block(NamedTuple):
    """A rectangle of a tensor as the file holds it.

    Attributes:
        values: to be filled.
        start: where it begins along each of the tensor's axes.
    """

    values: np.ndarray
    start: tuple[int, ...]


class _Parts:
    """What this process holds of one parameter, on the host until it is filled."""

    def __init__(
        self,
        like: jax.ShapeDtypeStruct,
        path: str,
        mesh: jax.sharding.Mesh | None,
    ):
        shape = self._shape = like.shape
        self._sharding: jax.sharding.NamedSharding | None = None
        whole = tuple((0, size) for size in shape)
        self._of_device: dict[jax.Device, tuple[tuple[int, int], ...]] = {}
        if mesh is not None:
            spec = sharding.spec_of(path, shape, mesh)
            self._sharding = jax.sharding.NamedSharding(mesh, spec)
            indices = self._sharding.addressable_devices_indices_map(shape)
            for device, index in indices.items():
                self._of_device[device] = tuple(
                    own.indices(size)[:2]
                    for own, size in zip(index or (), shape, strict=True)
                )
        # Devices that hold the same part share it.
        self._values = {
            bounds: _aligned_empty([stop - start for start, stop in bounds], like.dtype)
            for bounds in set(self._of_device.values()) or {whole}
        }

    def of_tensor(self, layer: int | None, transpose: bool) -> list[_Block]:
        """The rectangles to fill from the tensor of one layer, or from the only one."""
        found = []
        for bounds, values in self._values.items():
            start = tuple(start for start, _ in bounds)
            if layer is not None:  # Layers are never shared out.
                start, values = start[1:], values[layer]
            if transpose:
                start, values = start[::-1], values.T
            found.append(_Block(values, start))
        return found

    def assembled(self) -> jax.Array:
        """The parameter, on its devices; the host's parts are given up."""
        values, self._values = self._values, {}
        if self._sharding is None:
            [whole] = values.values()
            return jax.device_put(whole)
        return jax.make_array_from_single_device_arrays(
            self._shape,
            self._sharding,
            [
                jax.device_put(values[bounds], device)
                for device, bounds in self._of_device.items()
            ],
        )


def _aligned_empty(shape: Sequence[int], dtype: jax.typing.DTypeLike) -> np.ndarray:
    """An array that a CPU's `device_put` takes over as it is.

    It does so with what begins at a multiple of 64 bytes; anything else it copies.
    """
    size = math.prod(shape) * jnp.dtype(dtype).itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(jnp.dtype(dtype)).reshape(shape)


def _reads(
    reader: checkpoint.CheckpointReader,
    name: str,
    blocks: Sequence[_Block],
    scales: Sequence[_Block] | None,
    *,
    at_once: bool,
) -> list[Callable[[], None]]:
    """What fills blocks from a tensor, a few rows at a time, converted to their dtype.

    Rows that no block holds are not read; of the others all columns are, for files
    are read in pages that are longer than most parts of a row.

    Args:
        reader: of the checkpoint.
        name: of the tensor.
        blocks: of the tensor; int8 where there are scales.
        scales: of its rows, the output channels, or None.
        at_once: whether all rows are one piece of work. Rows that become columns lie
            in the same pages, which the system would clear for each thread.

    Returns:
        Pieces of work that may be done in any order, or at the same time.
    """
    rows, *width = reader.shape(name)
    entries = _THREAD_ENTRIES if reader.is_parallel else _READ_ENTRIES
    step = max(1, entries // max(math.prod(width), 1))

    def fill(start: int) -> None:
        stop = min(start + step, rows)
        touched = [
            block
            for block in (*blocks, *(scales or ()))
            if block.start[0] < stop and start < block.start[0] + len(block.values)
        ]
        if not touched:
            return
        piece = reader.read(name, slice(start, stop))
        if scales is not None:
            piece, of_rows = matrix_lib.quantise_rows(piece)
            for block in scales:
                _copy_rows(of_rows, start, block)
        for block in blocks:
            _copy_rows(piece, start, block)

    def fill_all() -> None:
        for start in range(0, rows, step):
            fill(start)

    if at_once:
        return [fill_all]
    return [functools.partial(fill, start) for start in range(0, rows, step)]


def _done(
    work: Sequence[Sequence[Callable[[], None]]], is_parallel: bool
) -> Iterator[None]:
    """Does pieces of work, and yields when all of one list are done, in order."""
    if not is_parallel:
        for pieces in work:
            for piece in pieces:
                piece()
            yield
        return
    futures = [[_threads().submit(piece) for piece in pieces] for pieces in work]
    try:
        for own in futures:
            for future in own:
                future.result()
            yield
    finally:  # Of what failed or was interrupted, no more than what runs now.
        for own in futures:
            for future in own:
                future.cancel()


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(
        cores.threads(), thread_name_prefix='loading'
    )


def _copy_rows(piece: np.ndarray, start: int, block: _Block) -> None:
    """Copies what a block holds of some rows, `start` and following."""
    values, (row, *columns) = block
    first, last = max(start, row), min(start + len(piece), row + len(values))
    if first >= last:
        return
    own = piece[first - start : last - start]
    if columns:
        [column] = columns
        own = own[:, column : column + values.shape[1]]
    values[first - row : last - row] = own


def fingerprint(
    reader: checkpoint.CheckpointReader, cfg: config_lib.ModelConfig
) -> str:
    """Identity of a base model: sha256 over its constants and sampled weights.

    Three rows of every tensor are hashed as float32, so the same weights have the
    same fingerprint in one file or in shards, in bfloat16 or widened to float32,
    and any finetuning or requantisation gives another.
    """
    digest = hashlib.sha256()
    constants = dataclasses.asdict(cfg)
    # How far the model was meant to run changes no weight and no logit.
    constants.pop('max_position')
    if constants['out_width'] is None:  # As it was before there were such models.
        constants.pop('out_width')
    digest.update(json.dumps(constants, sort_keys=True).encode())
    for name, rows in _sampled_rows(cfg):
        digest.update(name.encode())
        for row in rows:
            value = reader.read(name, slice(row, row + 1))
            digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def _sampled_rows(
    cfg: config_lib.ModelConfig,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in sorted(tensor_shapes(cfg).items()):
        last = shape[0] - 1
        yield name, tuple(sorted({0, last // 2, last}))
