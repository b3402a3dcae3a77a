"""Reading a base model from one GGUF file.

The `gguf` package maps the file and dequantises; this module gives its tensors
Hugging Face's names, row order and config, and refuses whatever would change the
model's output without appearing in that config.

Sources: the GGUF specification (ggml, docs/gguf.md) for keys and defaults, and
llama.cpp's convert_hf_to_gguf for the transforms that are undone here.
"""

from collections.abc import Iterable
import math
import pathlib
import re
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from ppjax.base import errors, reading
from ppjax.models import checkpoint, gguf_header, loading, rope
from ppjax.models import config as config_lib

_TensorType = gguf.GGMLQuantizationType

_ARCHITECTURES = {
    'llama': 'LlamaForCausalLM',
    'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
}

_PLAIN_TYPES: dict[gguf.GGMLQuantizationType, np.dtype] = {
    _TensorType.F32: np.dtype(np.float32),
    _TensorType.F16: np.dtype(np.float16),
    _TensorType.BF16: np.dtype(ml_dtypes.bfloat16),
}
_QUANTISED_TYPES = (
    _TensorType.Q8_0,
    _TensorType.Q4_0,
    _TensorType.Q4_1,
    _TensorType.Q5_0,
    _TensorType.Q5_1,
    _TensorType.Q2_K,
    _TensorType.Q3_K,
    _TensorType.Q4_K,
    _TensorType.Q5_K,
    _TensorType.Q6_K,
    _TensorType.IQ1_S,
    _TensorType.IQ2_XXS,
    _TensorType.IQ2_XS,
    _TensorType.IQ2_S,
    _TensorType.IQ3_XXS,
    _TensorType.IQ3_S,
    _TensorType.IQ4_NL,
    _TensorType.IQ4_XS,
)

# Keys that are harmless at these values and change the model at any other. A key that
# is neither here nor read is refused: nobody has checked what it does to the output.
_NEUTRAL_KEYS: dict[str, tuple[Any, ...]] = {
    'attention.causal': (True,),
    'expert_count': (0,),
    'expert_used_count': (0,),
    'rope.scale_linear': (1.0,),
    'rope.scaling.type': ('none', 'linear'),
    'rope.scaling.factor': (1.0,),
    'tensor_data_layout': ('Meta AI original pth',),
}

_ROPE_FREQS = 'rope_freqs.weight'
# GGUF stores the factors, Hugging Face what they came from. Published so far:
# Llama 3.1 and 3.3 (8) and Llama 3.2 (32), the other three numbers the same.
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3_SCALING = {
    'rope_type': 'llama3',
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}


class GgufReader(checkpoint.CheckpointReader):
    """One GGUF file of architecture llama, qwen2 or qwen3, under Hugging Face names.

    Opening reads the header and checks that every tensor the config calls for is
    there, in the right shape and a type we read, and that no other is.

    Attributes:
        path: the file.
        hf_config: the Hugging Face config that the metadata describes.

    Raises:
        InputError: if the file is not GGUF, is cut short, describes a model that
            Hugging Face's class of that architecture cannot express, or holds
            tensors that are missing, unknown, misshapen or of an unread type.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        source = self._open()
        # Plain values, so that gguf's header (1.5 KB a token) can be freed.
        self._metadata = {key: field.contents() for key, field in source.fields.items()}
        stored = {tensor.name: tensor for tensor in source.tensors}
        self._check_part_of_set()
        self._arch = self._architecture()
        self._read_keys: set[str] = set()
        blocks = self._number('block_count', int)
        if blocks > len(stored):  # Before a million names are made up.
            raise self.error(
                f'has {self._arch}.block_count {blocks} and {len(stored)} tensors in '
                'all; it is damaged, download it again.'
            )

        self.hf_config = self._config(stored)
        self._check_unread_keys()
        stored.pop(_ROPE_FREQS, None)
        self._tensors = self._renamed(stored)

    def metadata(self, key: str, default: Any = None) -> Any:
        """The value of a GGUF metadata key as a Python value, or `default`."""
        return self._metadata.get(key, default)

    def end_ids(self) -> list[int]:
        """The tokens that end a text, a turn or a message, as llama.cpp takes them."""
        keys = (f'tokenizer.ggml.{end}_token_id' for end in ('eos', 'eot', 'eom'))
        found = [self.metadata(key) for key in keys]
        return sorted({index for index in found if type(index) is int})

    def error(self, problem: str) -> errors.InputError:
        """An InputError that names this file; `problem` continues the sentence."""
        return errors.InputError(f'GGUF file {str(self.path)!r} {problem}')

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        # GGUF lists the fastest axis first.
        return tuple(int(n) for n in self._tensor(name).shape[::-1])

    def dtype(self, name: str) -> np.dtype:
        return _dtype(self._tensor(name))

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        tensor = self._tensor(name)
        if rows.step not in (None, 1):
            raise ValueError(f'rows must have step 1, got {rows}.')
        shape = self.shape(name)
        start, stop, _ = rows.indices(shape[0])
        if start >= stop:
            return np.empty((0, *shape[1:]), self.dtype(name))
        heads = self._permuted_heads(name)
        index = (
            slice(start, stop)
            if heads is None
            else _unpermuted_rows(shape[0], heads)[start:stop]
        )
        kind = tensor.tensor_type
        if kind in _PLAIN_TYPES:
            # bfloat16 arrives as bytes, the other two as what they are.
            values = np.array(tensor.data.view(_PLAIN_TYPES[kind])[index])
        else:
            with np.errstate(all='ignore'):  # What comes of it is looked at.
                values = gguf.quants.dequantize(np.array(tensor.data[index]), kind)
        return checkpoint.refuse_not_finite(self.path, name, values)

    def _tensor(self, name: str) -> gguf.ReaderTensor:
        if name not in self._tensors:
            raise self.error(f'holds no tensor for {name!r}.')
        return self._tensors[name]

    def _open(self) -> gguf.GGUFReader:
        head = reading.read_bytes(self.path, 'GGUF file', head=8)
        if head[:4] != b'GGUF':
            raise self.error(
                f'begins with {head[:4]!r} instead of the GGUF mark: it is of another '
                f'format, or damaged; give another file or download it again.'
            )
        version = int.from_bytes(head[4:], 'little')
        if version and version % (1 << 16) == 0:
            raise self.error('is big-endian; convert it with gguf-convert-endian.')
        try:
            gguf_header.check(self.path)
            return gguf.GGUFReader(self.path)
        except (ValueError, OSError, IndexError, KeyError, OverflowError) as e:
            detail = ' '.join(str(e).split())
            raise self.error(
                f'cannot be read ({detail}): it is cut short, damaged, or newer than '
                f'the installed gguf package; download it again.'
            ) from e

    def _check_part_of_set(self) -> None:
        parts = self.metadata('split.count', 1)
        if parts != 1:
            raise self.error(
                f'is one of {parts} parts; join them with '
                f'`llama-gguf-split --merge` and give the result.'
            )

    def _architecture(self) -> str:
        arch = self.metadata('general.architecture')
        if arch not in _ARCHITECTURES:
            raise self.error(
                f'has general.architecture {arch!r}; wanted one of '
                f'{", ".join(_ARCHITECTURES)}.'
            )
        return arch

    def _check_unread_keys(self) -> None:
        prefix = f'{self._arch}.'
        for key, value in self._metadata.items():
            suffix = key.removeprefix(prefix)
            if suffix == key or suffix in self._read_keys:
                continue
            if value not in _NEUTRAL_KEYS.get(suffix, ()):
                raise self.error(
                    f'sets {key} to {config_lib.short(value)}, which is not implemented; use '
                    f'a model without it.'
                )

    def _number(
        self, suffix: str, kind: type[int] | type[float], default: Any = None
    ) -> Any:
        """A positive `<architecture>.<suffix>`, required unless `default` is given."""
        self._read_keys.add(suffix)
        key = f'{self._arch}.{suffix}'
        value = self.metadata(key, default)
        if value is None:
            raise self.error(
                f'has no metadata key {key}; convert the original model again.'
            )
        if isinstance(value, list):
            raise self.error(
                f'sets {key} per layer ({config_lib.short(value)}); only models whose layers '
                f'are all alike are implemented.'
            )
        if type(value) is not kind or not 0 < value < math.inf:
            raise self.error(
                f'has {config_lib.short(value)} under {key}; wanted a positive {kind.__name__}.'
            )
        return value

    def _config(self, stored: dict[str, gguf.ReaderTensor]) -> dict[str, Any]:
        hidden = self._number('embedding_length', int)
        heads = self._number('attention.head_count', int)
        kinds = {_dtype(t).name for t in stored.values() if len(t.shape) == 2}
        embedding = self._stored(stored, 'token_embd.weight')
        config = {
            'architectures': [_ARCHITECTURES[self._arch]],
            'model_type': self._arch,
            'hidden_size': hidden,
            'intermediate_size': self._number('feed_forward_length', int),
            'num_hidden_layers': self._number('block_count', int),
            'num_attention_heads': heads,
            # The GGUF specification: absent means as many as query heads.
            'num_key_value_heads': self._number('attention.head_count_kv', int, heads),
            'head_dim': self._head_dim(hidden, heads),
            'hidden_act': 'silu',
            'rms_norm_eps': _shortest(
                self._number('attention.layer_norm_rms_epsilon', float)
            ),
            'max_position_embeddings': self._number('context_length', int),
            'vocab_size': self._number('vocab_size', int, int(embedding.shape[-1])),
            'tie_word_embeddings': 'output.weight' not in stored,
            # Explicit, since Hugging Face's defaults are Llama 2's ids.
            'bos_token_id': self.metadata('tokenizer.ggml.bos_token_id'),
            'eos_token_id': self.metadata('tokenizer.ggml.eos_token_id'),
            'pad_token_id': self.metadata('tokenizer.ggml.padding_token_id'),
            # Norms and biases are float32 in every GGUF; the matrices tell.
            'dtype': kinds.pop() if len(kinds) == 1 else 'float32',
        }
        config['rope_parameters'] = self._rope_parameters(stored, config['head_dim'])
        if self._arch == 'llama':
            config['attention_bias'] = _any_bias(stored, 'attn')
            config['mlp_bias'] = _any_bias(stored, 'ffn')
        else:
            config['use_sliding_window'] = False
        if self._arch == 'qwen3':
            config['attention_bias'] = False
        return config

    def _head_dim(self, hidden: int, heads: int) -> int:
        """H, checked against every key that states it."""
        default = self.metadata(f'{self._arch}.rope.dimension_count', hidden // heads)
        head_dim = self._number('attention.key_length', int, default)
        for suffix in ('attention.value_length', 'rope.dimension_count'):
            stated = self._number(suffix, int, head_dim)
            if stated != head_dim:
                raise self.error(
                    f'has {self._arch}.{suffix} {stated} and heads of {head_dim}; '
                    f'only models where they are equal are implemented.'
                )
        if head_dim % 2:
            raise self.error(f'has heads of {head_dim}; rotary needs an even number.')
        return head_dim

    def _rope_parameters(
        self, stored: dict[str, gguf.ReaderTensor], head_dim: int
    ) -> dict[str, Any]:
        """Rotary settings, with the scaling that `rope_freqs.weight` came from."""
        theta = _shortest(self._number('rope.freq_base', float))
        plain = {'rope_type': 'default', 'rope_theta': theta}
        if _ROPE_FREQS not in stored:
            return plain
        if self._arch != 'llama':
            raise self.error(f'holds {_ROPE_FREQS!r}, unknown for {self._arch}.')
        tensor = stored[_ROPE_FREQS]
        if tensor.tensor_type != _TensorType.F32 or tensor.data.shape != (
            head_dim // 2,
        ):
            raise self.error(
                f'holds {_ROPE_FREQS!r} as {tensor.tensor_type.name} '
                f'{list(tensor.data.shape)}; wanted F32 [{head_dim // 2}].'
            )
        factors = np.array(tensor.data)
        if np.allclose(factors, 1.0, rtol=1e-3, atol=0):
            return plain
        unscaled = rope.inverse_frequencies(head_dim, theta, None)
        for factor in _LLAMA3_FACTORS:
            parameters = {**plain, **_LLAMA3_SCALING, 'factor': factor}
            _, scaling = config_lib.rope_of({'rope_parameters': parameters})
            wanted = unscaled / rope.inverse_frequencies(head_dim, theta, scaling)
            if np.allclose(factors, wanted, rtol=1e-3, atol=0):
                return parameters
        raise self.error(
            f'scales its rotary frequencies ({_ROPE_FREQS}, up to '
            f'{factors.max():.4g}) unlike Llama 3.1 and 3.2; use the original '
            f'Hugging Face directory, whose config states the scaling.'
        )

    def _stored(
        self, stored: dict[str, gguf.ReaderTensor], name: str
    ) -> gguf.ReaderTensor:
        if name not in stored:
            raise self.error(f'lacks the tensor {name!r}; download it again.')
        return stored[name]

    def _renamed(
        self, stored: dict[str, gguf.ReaderTensor]
    ) -> dict[str, gguf.ReaderTensor]:
        """Hugging Face name -> tensor: all of the model's, of a type that we read."""
        cfg = config_lib.from_hf_config(self.hf_config)
        shapes = loading.tensor_shapes(cfg)
        names = _hf_names(cfg.num_layers)
        for name, tensor in stored.items():
            if names.get(name) not in shapes:
                raise self.error(
                    f'holds the tensor {name!r}, which is no part of a '
                    f'{self._arch} model with block_count {cfg.num_layers} as '
                    'implemented.'
                )
            kind = tensor.tensor_type
            if kind not in _PLAIN_TYPES and (
                kind not in _QUANTISED_TYPES or len(tensor.shape) != 2
            ):
                raise self.error(
                    f'holds the {len(tensor.shape)}-axis tensor {name!r} as '
                    f'{kind.name}; wanted '
                    f'{", ".join(t.name for t in _PLAIN_TYPES)} or, for matrices, '
                    f'{", ".join(t.name for t in _QUANTISED_TYPES)}: use another '
                    f'quantisation of this model.'
                )
        renamed = {
            hf_name: self._stored(stored, name)
            for name, hf_name in names.items()
            if hf_name in shapes
        }
        for hf_name, tensor in renamed.items():
            # GGUF lists the fastest axis first.
            shape = tuple(tensor.shape[::-1].tolist())
            if shape != shapes[hf_name]:
                raise self.error(
                    f'holds {tensor.name!r} of shape {list(shape)}; its metadata call '
                    f'for {list(shapes[hf_name])}.'
                )
        return renamed

    def _permuted_heads(self, name: str) -> int | None:
        """Heads in a tensor whose rows the converter reordered, else None."""
        heads = {'q_proj': 'num_attention_heads', 'k_proj': 'num_key_value_heads'}
        projection = name.split('.')[-2]
        if self._arch != 'llama' or projection not in heads:
            return None
        return self.hf_config[heads[projection]]


def _hf_names(layers: int) -> dict[str, str]:
    """GGUF's name of every tensor that we know -> Hugging Face's, layer by layer."""
    # Of one layer, and of the architecture that has all of them.
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 1)
    weights = (*loading.TOP_WEIGHTS.values(), *loading.BLOCK_WEIGHTS.values())
    known = [weight.hf_name for weight in weights]
    stored = [table.get_name(name.format(0), ('.weight', '.bias')) for name in known]
    return {
        name.replace('blk.0.', f'blk.{layer}.'): hf_name.format(layer)
        for layer in range(layers)
        for name, hf_name in zip(stored, known, strict=True)
        if name is not None  # A rotated model's own, of which GGUF knows nothing.
    }


def _unpermuted_rows(num_rows: int, heads: int) -> np.ndarray:
    """[rows]: which stored row is each Hugging Face row of a q or k projection.

    Hugging Face rotates row j of a head with row j + H/2, llama.cpp row 2j with
    row 2j + 1, so its converter interleaves the halves of every head.
    """
    halves = np.arange(num_rows).reshape(heads, num_rows // heads // 2, 2)
    return halves.swapaxes(1, 2).reshape(num_rows)


def _any_bias(names: Iterable[str], block: str) -> bool:
    return any(re.fullmatch(rf'blk\.\d+\.{block}_\w+\.bias', name) for name in names)


def _dtype(tensor: gguf.ReaderTensor) -> np.dtype:
    return _PLAIN_TYPES.get(tensor.tensor_type, np.dtype(np.float32))


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to this float32: 9.999999747e-06 -> 1e-05."""
    return float(str(np.float32(value)))
