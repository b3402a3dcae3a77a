"""Tiny models of transformers written as GGUF."""

from collections.abc import Mapping
import pathlib
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from ppjax.base import errors
from ppjax.models import gguf_reader

Type = gguf.GGMLQuantizationType


# No value is a default of any config class; 6 heads share 2 key/value heads.
TINY: dict[str, Any] = {
    'hidden_size': 24,
    'intermediate_size': 37,
    'num_hidden_layers': 2,
    'num_attention_heads': 6,
    'num_key_value_heads': 2,
    'head_dim': 10,
    'rms_norm_eps': 3e-3,
    'max_position_embeddings': 77,
    'vocab_size': 51,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0},
    'bos_token_id': 7,
    'eos_token_id': 9,
    'pad_token_id': 11,
    'tie_word_embeddings': False,
}


# Rows are whole blocks of 32, and of 256.
BLOCK_32 = {
    **TINY,
    'hidden_size': 96,
    'intermediate_size': 160,
    'num_attention_heads': 3,
    'num_key_value_heads': 1,
    'head_dim': 32,
}


BLOCK_256 = {
    **TINY,
    'hidden_size': 256,
    'intermediate_size': 512,
    'num_attention_heads': 8,
    'num_key_value_heads': 2,
    'head_dim': 32,
    'num_hidden_layers': 1,
}


ARCHS = {
    'llama': (transformers.LlamaConfig, gguf.MODEL_ARCH.LLAMA),
    'qwen2': (transformers.Qwen2Config, gguf.MODEL_ARCH.QWEN2),
    'qwen3': (transformers.Qwen3Config, gguf.MODEL_ARCH.QWEN3),
}


def config_of(arch: str, **changes: Any) -> transformers.PretrainedConfig:
    return ARCHS[arch][0](**{**TINY, **changes})


def model_of(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """Random everywhere, norms and biases too, so that no swap goes unseen."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def hf_weights(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    weights = {name: w.numpy() for name, w in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights['lm_head.weight']
    return weights


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does: rows j and j + H/2 of a head side by side."""
    stacked: list[np.ndarray] = []
    for head in np.split(rows, heads):
        first, second = np.split(head, 2)
        for pair in zip(first, second, strict=True):
            stacked += pair
    return np.stack(stacked)


def as_stored(arch: str, name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    if arch == 'llama' and '.q_proj.' in name:
        return interleaved(weight, config.num_attention_heads)
    if arch == 'llama' and '.k_proj.' in name:
        return interleaved(weight, config.num_key_value_heads)
    return weight


def metadata_of(arch: str, config: transformers.PretrainedConfig) -> dict[str, Any]:
    return {
        f'{arch}.block_count': config.num_hidden_layers,
        f'{arch}.context_length': config.max_position_embeddings,
        f'{arch}.embedding_length': config.hidden_size,
        f'{arch}.feed_forward_length': config.intermediate_size,
        f'{arch}.attention.head_count': config.num_attention_heads,
        f'{arch}.attention.head_count_kv': config.num_key_value_heads,
        f'{arch}.attention.key_length': config.head_dim,
        f'{arch}.attention.value_length': config.head_dim,
        f'{arch}.attention.layer_norm_rms_epsilon': config.rms_norm_eps,
        f'{arch}.rope.dimension_count': config.head_dim,
        f'{arch}.rope.freq_base': config.rope_parameters['rope_theta'],
        f'{arch}.vocab_size': config.vocab_size,
        'tokenizer.ggml.bos_token_id': config.bos_token_id,
        'tokenizer.ggml.eos_token_id': config.eos_token_id,
        'tokenizer.ggml.padding_token_id': config.pad_token_id,
    }


def gguf_name(arch: str, hf_name: str) -> str:
    """gguf's own table is the reference for names."""
    stem, part = hf_name.rsplit('.', 1)
    return f'{gguf.get_tensor_name_map(ARCHS[arch][1], 4).get_name(stem)}.{part}'


def write(
    path: pathlib.Path,
    arch: str,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    types: dict[str, Type] | None = None,
    *,
    endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> pathlib.Path:
    """Writes tensors under GGUF names; those in `types` are already raw bytes."""
    writer = gguf.GGUFWriter(path, arch, endianess=endianess)
    for key, value in metadata.items():
        match value:
            case None:
                continue
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(
    path: pathlib.Path,
    arch: str,
    model: transformers.PreTrainedModel,
    *,
    metadata: dict[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    types: dict[str, Type] | None = None,
) -> pathlib.Path:
    """A float32 GGUF of a model; `metadata` and `tensors` replace or, None, drop."""
    stored: dict[str, np.ndarray | None] = {
        gguf_name(arch, name): as_stored(arch, name, weight, model.config)
        for name, weight in hf_weights(model).items()
    }
    stored.update(tensors or {})
    return write(
        path,
        arch,
        metadata_of(arch, model.config) | (metadata or {}),
        {name: tensor for name, tensor in stored.items() if tensor is not None},
        types,
    )


def assert_refused(path: pathlib.Path, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        gguf_reader.GgufReader(path)
    message = str(caught.value)
    assert '\n' not in message
    for part in (str(path), *parts):
        assert part in message
