"""Writing a model, pruned or not, as an ordinary Hugging Face directory.

Nothing in it is ours: `transformers`, vLLM and llama.cpp's converter load it as a
Llama or Qwen with a smaller `intermediate_size`.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import math
import pathlib
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import transformers

from ppjax.base import atomic, errors, json_lines, processes, run_directory
from ppjax.data import stop_tokens
from ppjax.exporting import record
from ppjax.models import (
    base_model,
    checkpoint,
    loading,
    sliced,
)
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
# Nothing but this package loads it, and nothing mistakes it for something else.
_ROTATED = 'SliceGPTForCausalLM'
# Some licences oblige whoever passes weights on to pass these on with them.
_LEGAL_FILES = ('LICENSE*', 'NOTICE*', 'USE_POLICY*')
# What is read at a time: large enough for disks, small beside any model.
_PIECE_BYTES = 2**26


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


def parameter_count(model: base_model.BaseModel) -> int:
    """Parameters that an export of a model holds; a tied unembedding counts once."""
    return sum(math.prod(model.reader.shape(name)) for name in _names(model))


def export_pruned(
    base: base_model.BaseModel,
    mask: np.ndarray,
    target_dir: str | pathlib.Path,
    **options: Any,
) -> None:
    """Writes the channels that a mask keeps, and all else, as a directory.

    Args:
        base: the dense model, from safetensors or GGUF.
        mask: bool [L, F] with the same number of ones k in every layer.
        target_dir: and all else: see `export_model`.

    Raises:
        InputError: see `export_model`.
        ValueError: if the mask or the dtype is none.
    """
    model = sliced.sliced_model(base, mask)
    # What is missing is looked for before anything is sliced.
    loading.check_tensors(base.reader, base.config)
    export_model(model, target_dir, **options)


def export_model(
    model: base_model.BaseModel,
    target_dir: str | pathlib.Path,
    *,
    dtype: str,
    tokenizer: transformers.PreTrainedTokenizerBase,
    model_card: str,
    system_prompt: str,
    identity: Mapping[str, str] | None = None,
    shard_bytes: float = 5e9,
    check: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes what a model's reader gives as a directory.

    The directory is whole or absent; an older one of that name is replaced. The
    weights stream through in pieces of 64 MB, so memory does not grow with the
    model.

    Args:
        model: its weights, constants and where its other files are.
        target_dir: where to.
        dtype: of all weights; a key of `DTYPES`.
        tokenizer: saved with its chat template.
        model_card: text of README.md.
        system_prompt: the persona prompt, kept in `persona.json`.
        identity: what decides every weight, for a record (`exporting.record`); None
            for none.
        shard_bytes: weights beyond this go into several files, each at most this
            large unless one tensor is larger.
        check: called with the finished folder before it takes its name; what it
            raises leaves nothing behind.

    Raises:
        InputError: if the tensors do not fit the config, a weight is not finite in
            `dtype`, or the disk is full or cannot be written.
        ValueError: if the dtype is none.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype!r}.')
    loading.check_tensors(model.reader, model.config)
    with atomic.directory(target_dir) as folder:
        _write_json(folder / 'config.json', _config(model, dtype))
        _write_json(folder / 'persona.json', {'system_prompt': system_prompt})
        (folder / 'README.md').write_text(model_card, encoding='utf-8')
        _copy_legal_files(model.reader.path, folder)
        _save_tokenizer(tokenizer, folder)
        _write_json(
            folder / 'generation_config.json',
            stop_tokens.with_stop_ids(model.generation_config(), tokenizer),
        )
        _write_weights(model, folder, dtype=dtype, shard_bytes=shard_bytes)
        if check is not None:
            check(folder)
        if identity is not None and processes.is_first():
            target = pathlib.Path(target_dir)
            names = record.write(folder, identity)
            made = [f'{target.name}/{name}' for name in names]
            run_directory.adds(target.parent, made)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + '\n', encoding='utf-8')


def rope_parameters(cfg: config_lib.ModelConfig) -> dict[str, Any]:
    """The scaling of rotary positions, in transformers' words."""
    if cfg.rope_scaling is None:
        return {'rope_type': 'default'}
    return {
        'rope_type': 'llama3',
        'factor': cfg.rope_scaling.factor,
        'low_freq_factor': cfg.rope_scaling.low_freq_factor,
        'high_freq_factor': cfg.rope_scaling.high_freq_factor,
        'original_max_position_embeddings': cfg.rope_scaling.original_max_position,
    }


def _config(model: base_model.BaseModel, dtype: str) -> dict[str, Any]:
    """The config.json that a model came with, and what has changed since.

    The rotary base and the dtype stand in it twice. transformers 5 reads one
    spelling and what was built on 4 (vLLM among it) the other, where a missing
    `rope_theta` silently becomes 10000.
    """
    cfg = model.config
    rope = rope_parameters(cfg)
    config = model.reader.hf_config | {
        'architectures': [
            _ARCHITECTURES[cfg.family] if cfg.out_width is None else _ROTATED
        ],
        'intermediate_size': cfg.d_ff,
        # The file may hold another unembedding than it says.
        'tie_word_embeddings': cfg.tie_embeddings,
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
    config = json_lines.read_object(path)
    if config.get('tokenizer_class') == 'TokenizersBackend':
        config['tokenizer_class'] = 'PreTrainedTokenizerFast'
    if isinstance(config.get('extra_special_tokens'), list):
        config['additional_special_tokens'] = config.pop('extra_special_tokens')
    # How the base was opened here says nothing about the copy.
    for key in ('is_local', 'local_files_only', 'name_or_path'):
        config.pop(key, None)
    _write_json(path, config)


def _names(model: base_model.BaseModel) -> list[str]:
    """All that an export holds, in the order of the forward pass but for the top."""
    present = set(model.reader.names())
    if model.config.tie_embeddings:
        present.discard(loading.TOP_WEIGHTS['head'].hf_name)
    names = [weight.hf_name for weight in loading.TOP_WEIGHTS.values()]
    for layer in range(model.config.num_layers):
        names += [w.hf_name.format(layer) for w in loading.BLOCK_WEIGHTS.values()]
    return [name for name in names if name in present]


def _write_weights(
    model: base_model.BaseModel,
    folder: pathlib.Path,
    *,
    dtype: str,
    shard_bytes: float,
) -> None:
    width = DTYPES[dtype][0].itemsize
    shards: list[list[str]] = []
    filled = math.inf
    total = 0
    for name in _names(model):
        size = math.prod(model.reader.shape(name)) * width
        if filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
        total += size

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = 'model.safetensors'
        if len(shards) > 1:
            file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        _write_shard(folder / file, shard, model.reader, dtype=dtype)
        weight_map |= dict.fromkeys(shard, file)
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
    shard: list[str],
    reader: checkpoint.CheckpointReader,
    *,
    dtype: str,
) -> None:
    """One safetensors file.

    Written here and not by the safetensors package, which wants all of a file's
    tensors in memory, and reports a full disk as an error of its own kind.

    Source: the format's description in the README of huggingface/safetensors.
    """
    if not processes.is_first():
        # Its part in fetching what lies on its devices is all that is wanted of it.
        for name in shard:
            reader.read(name, slice(0, 1))
        return
    kind, label = DTYPES[dtype]
    # transformers refuses a file whose metadata do not name a framework.
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    end = 0
    for name in shard:
        shape = reader.shape(name)
        start, end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {
            'dtype': label,
            'shape': shape,
            'data_offsets': (start, end),
        }
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # The data start at a multiple of 8.
    with path.open('wb') as file:
        file.write(len(text).to_bytes(8, 'little'))
        file.write(text)
        for name in shard:
            for piece in _pieces(reader, name):
                # Overflow is reported below, with the tensor's name.
                with np.errstate(over='ignore'):
                    piece = np.ascontiguousarray(piece, kind)
                if not np.isfinite(piece).all():
                    raise errors.InputError(
                        f'{reader.path}: tensor {name!r} holds values that are '
                        f'not finite as {dtype}; export another --export_dtype.'
                    )
                file.write(piece.view(np.uint8).data)


def _pieces(reader: checkpoint.CheckpointReader, name: str) -> Iterator[np.ndarray]:
    """A tensor, some rows at a time."""
    shape = reader.shape(name)
    step = max(1, _PIECE_BYTES // (4 * math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield reader.read(name, slice(start, start + step))
