"""Writing a pruned model as an ordinary Hugging Face directory.

Nothing in it is ours: `transformers`, vLLM and llama.cpp's converter load it as a
Llama or Qwen with a smaller `intermediate_size`.
"""

from collections.abc import Callable, Iterator
import json
import math
import pathlib
import shutil
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import transformers

from ppjax import atomic, errors
from ppjax.models import base_model, checkpoint, loading, safetensors_reader
from ppjax.models import config as config_lib

# Name -> element type and its name in a safetensors header.
DTYPES: dict[str, tuple[np.dtype, str]] = {
    'float32': (np.dtype(np.float32), 'F32'),
    'bfloat16': (np.dtype(ml_dtypes.bfloat16), 'BF16'),
    'float16': (np.dtype(np.float16), 'F16'),
}

_ARCHITECTURES = {
    'llama': 'LlamaForCausalLM',
    'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
}
# Which axis of a block's weight, as the file holds it, runs over FFN channels.
_CHANNEL_AXES = {'w_gate': 0, 'w_up': 0, 'b_gate': 0, 'b_up': 0, 'w_down': 1}
# Some licences oblige whoever passes weights on to pass these on with them.
_LEGAL_FILES = ('LICENSE*', 'NOTICE*', 'USE_POLICY*')
# What is read at a time: large enough for disks, small beside any model.
_PIECE_BYTES = 2**26


class _Tensor(NamedTuple):
    """A tensor to write: its layer, and its channel axis if it has one."""

    name: str
    layer: int = 0
    axis: int | None = None


def default_dtype(reader: checkpoint.CheckpointReader) -> str:
    """The precision that an export has unless told otherwise; a key of `DTYPES`.

    It is what the base's matrices are stored in, if that is one float type we
    write. Float32 otherwise, in particular for a quantised GGUF: its dequantised
    weights are written as they are, since requantising what is left of a block
    of channels would change weights that the mask was learned with.
    """
    kinds = {
        reader.dtype(name).name
        for name in reader.names()
        if len(reader.shape(name)) == 2
    }
    if len(kinds) == 1 and kinds <= DTYPES.keys():
        return kinds.pop()
    return 'float32'


def parameter_counts(base: base_model.BaseModel, keep: int) -> tuple[int, int]:
    """(parameters of the dense model, of the model with k channels a layer).

    A tied unembedding counts once.
    """
    dense = pruned = 0
    for tensor in _tensors(base):
        shape = base.reader.shape(tensor.name)
        dense += math.prod(shape)
        pruned += math.prod(_pruned_shape(shape, tensor.axis, keep))
    return dense, pruned


def export_pruned(
    base: base_model.BaseModel,
    mask: np.ndarray,
    target_dir: str | pathlib.Path,
    *,
    dtype: str,
    tokenizer: transformers.PreTrainedTokenizerBase,
    model_card: str,
    system_prompt: str,
    shard_bytes: float = 5e9,
    check: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes the channels that a mask keeps, and all else, as a directory.

    The directory is whole or absent; an older one of that name is replaced. The
    weights stream through in pieces of 64 MB, so memory does not grow with the
    model.

    Args:
        base: the dense model, from safetensors or GGUF.
        mask: bool [L, F] with the same number of ones k in every layer.
        target_dir: where to.
        dtype: of all weights; a key of `DTYPES`.
        tokenizer: saved with its chat template.
        model_card: text of README.md.
        system_prompt: the persona prompt, kept in `persona.json`.
        shard_bytes: weights beyond this go into several files, each at most this
            large unless one tensor is larger.
        check: called with the finished folder before it takes its name; what it
            raises leaves nothing behind.

    Raises:
        InputError: if the base's tensors do not fit its config, a weight is not
            finite in `dtype`, or the disk is full or cannot be written.
        ValueError: if the mask or the dtype is none.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype!r}.')
    keep = _keep_of(mask, base.config)
    loading.check_tensors(base.reader, base.config)
    with atomic.directory(target_dir) as folder:
        _write_json(folder / 'config.json', _config(base, keep, dtype))
        _write_json(folder / 'generation_config.json', base.generation_config())
        _write_json(folder / 'persona.json', {'system_prompt': system_prompt})
        (folder / 'README.md').write_text(model_card, encoding='utf-8')
        _copy_legal_files(base.reader.path, folder)
        _save_tokenizer(tokenizer, folder)
        _write_weights(base, mask, folder, dtype=dtype, shard_bytes=shard_bytes)
        if check is not None:
            check(folder)


def _keep_of(mask: np.ndarray, cfg: config_lib.ModelConfig) -> int:
    wanted = (cfg.num_layers, cfg.d_ff)
    if mask.dtype != np.bool_ or mask.shape != wanted:
        raise ValueError(f'mask must be bool {wanted}, got {mask.dtype} {mask.shape}.')
    counts = set(mask.sum(axis=1).tolist())
    if len(counts) != 1 or not min(counts):
        raise ValueError(
            'every layer must keep the same number of channels, 1 or more, got '
            f'{sorted(counts)}.'
        )
    return int(counts.pop())


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + '\n', encoding='utf-8')


def _config(base: base_model.BaseModel, keep: int, dtype: str) -> dict[str, Any]:
    """The base's config.json with what pruning changes.

    The rotary base and the dtype stand in it twice. transformers 5 reads one
    spelling and what was built on 4 (vLLM among it) the other, where a missing
    `rope_theta` silently becomes 10000.
    """
    cfg = base.config
    rope: dict[str, Any] = {'rope_type': 'default'}
    if cfg.rope_scaling is not None:
        rope = {
            'rope_type': 'llama3',
            'factor': cfg.rope_scaling.factor,
            'low_freq_factor': cfg.rope_scaling.low_freq_factor,
            'high_freq_factor': cfg.rope_scaling.high_freq_factor,
            'original_max_position_embeddings': cfg.rope_scaling.original_max_position,
        }
    config = base.reader.hf_config | {
        'architectures': [_ARCHITECTURES[cfg.family]],
        'intermediate_size': keep,
        'dtype': dtype,
        'torch_dtype': dtype,
        'rope_theta': cfg.rope_theta,
        'rope_scaling': None if cfg.rope_scaling is None else rope,
        'rope_parameters': {'rope_theta': cfg.rope_theta} | rope,
    }
    # It names code files that the stock classes do without.
    config.pop('auto_map', None)
    return config


def _copy_legal_files(source: pathlib.Path, folder: pathlib.Path) -> None:
    for pattern in _LEGAL_FILES if source.is_dir() else ():
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def _save_tokenizer(
    tokenizer: transformers.PreTrainedTokenizerBase, folder: pathlib.Path
) -> None:
    """Saves a tokenizer so that transformers 4 loads it too.

    Version 5 saves a class name and a list of tokens that 4 fails on, though it
    reads 4's spelling of both.
    """
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # tokenizers' Rust core, whatever went wrong.
        raise errors.InputError(f'The tokenizer cannot be saved: {error}') from error
    path = folder / 'tokenizer_config.json'
    config = safetensors_reader.read_json(path)
    if config.get('tokenizer_class') == 'TokenizersBackend':
        config['tokenizer_class'] = 'PreTrainedTokenizerFast'
    if isinstance(config.get('extra_special_tokens'), list):
        config['additional_special_tokens'] = config.pop('extra_special_tokens')
    # How the base was opened here says nothing about the copy.
    for key in ('is_local', 'local_files_only', 'name_or_path'):
        config.pop(key, None)
    _write_json(path, config)


def _tensors(base: base_model.BaseModel) -> list[_Tensor]:
    """All that an export holds, in the order of the forward pass but for the top."""
    present = set(base.reader.names())
    if base.config.tie_embeddings:
        present.discard(loading.TOP_WEIGHTS['head'].hf_name)
    tensors = [_Tensor(weight.hf_name) for weight in loading.TOP_WEIGHTS.values()]
    for layer in range(base.config.num_layers):
        for attribute, weight in loading.BLOCK_WEIGHTS.items():
            name = weight.hf_name.format(layer)
            tensors.append(_Tensor(name, layer, _CHANNEL_AXES.get(attribute)))
    return [tensor for tensor in tensors if tensor.name in present]


def _pruned_shape(
    shape: tuple[int, ...], axis: int | None, keep: int
) -> tuple[int, ...]:
    return tuple(keep if i == axis else size for i, size in enumerate(shape))


def _write_weights(
    base: base_model.BaseModel,
    mask: np.ndarray,
    folder: pathlib.Path,
    *,
    dtype: str,
    shard_bytes: float,
) -> None:
    keep = int(mask[0].sum())
    width = DTYPES[dtype][0].itemsize
    shards: list[list[tuple[_Tensor, tuple[int, ...]]]] = []
    filled = math.inf
    total = 0
    for tensor in _tensors(base):
        shape = _pruned_shape(base.reader.shape(tensor.name), tensor.axis, keep)
        size = math.prod(shape) * width
        if filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((tensor, shape))
        filled += size
        total += size

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = 'model.safetensors'
        if len(shards) > 1:
            file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        _write_shard(folder / file, shard, base.reader, mask, dtype=dtype)
        weight_map |= {tensor.name: file for tensor, _ in shard}
    if len(shards) > 1:
        _write_json(
            folder / 'model.safetensors.index.json',
            {
                'metadata': {'total_size': total},
                'weight_map': dict(sorted(weight_map.items())),
            },
        )


def _write_shard(
    path: pathlib.Path,
    shard: list[tuple[_Tensor, tuple[int, ...]]],
    reader: checkpoint.CheckpointReader,
    mask: np.ndarray,
    *,
    dtype: str,
) -> None:
    """One safetensors file.

    Written here and not by the safetensors package, which wants all of a file's
    tensors in memory, and reports a full disk as an error of its own kind.

    Source: the format's description in the README of huggingface/safetensors.
    """
    kind, label = DTYPES[dtype]
    # transformers refuses a file whose metadata do not name a framework.
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    end = 0
    for tensor, shape in shard:
        start, end = end, end + math.prod(shape) * kind.itemsize
        header[tensor.name] = {
            'dtype': label,
            'shape': shape,
            'data_offsets': (start, end),
        }
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # The data start at a multiple of 8.
    with path.open('wb') as file:
        file.write(len(text).to_bytes(8, 'little'))
        file.write(text)
        for tensor, _ in shard:
            for piece in _pieces(reader, tensor, mask[tensor.layer]):
                # Overflow is reported below, with the tensor's name.
                with np.errstate(over='ignore'):
                    piece = np.ascontiguousarray(piece, kind)
                if not np.isfinite(piece).all():
                    raise errors.InputError(
                        f'{reader.path}: tensor {tensor.name!r} holds values that are '
                        f'not finite as {dtype}; export another --export_dtype.'
                    )
                file.write(piece.view(np.uint8).data)


def _pieces(
    reader: checkpoint.CheckpointReader, tensor: _Tensor, kept: np.ndarray
) -> Iterator[np.ndarray]:
    """The kept part of a tensor, some rows at a time; `kept` is bool [F]."""
    shape = reader.shape(tensor.name)
    step = max(1, _PIECE_BYTES // (4 * math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        value = reader.read(tensor.name, rows)
        if tensor.axis == 0:
            value = value[kept[rows]]
        elif tensor.axis == 1:
            value = value[:, kept]
        yield value
