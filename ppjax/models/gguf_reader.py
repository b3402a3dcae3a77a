"""Reading a base model from a GGUF file, or from the parts of a split one.

This module gives its tensors Hugging Face's names, row order and config, and refuses
whatever would change the model's output without appearing in that config.

Sources: the GGUF specification (ggml, docs/gguf.md) for keys and defaults, and
llama.cpp's convert_hf_to_gguf for the transforms that are undone here.
"""

from collections.abc import Iterable
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from ppjax.base import errors, reading
from ppjax.models import (
    checkpoint,
    costs,
    gguf_blocks,
    gguf_header,
    gguf_names,
    loading,
    uneven,
)
from ppjax.models import config as config_lib

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
    """A GGUF model of architecture llama, qwen2 or qwen3, under Hugging Face names.

    Of architecture deci, whose blocks may differ in size, it is the Llama or Qwen2 of
    the widest blocks, with zeros for what the others lack.

    Opening reads the header and checks that every tensor the config calls for is
    there, in the right shape and a type we read, and that no other is.

    Attributes:
        path: the file; of a split one the first part.
        files: all parts.
        hf_config: the Hugging Face config that the metadata describes.

    Raises:
        InputError: if the file is not GGUF, is cut short, describes a model that
            Hugging Face's class of that architecture cannot express, or holds
            tensors that are missing, unknown, misshapen or of an unread type.
    """

    def __init__(self, path: str | pathlib.Path):
        self.files = gguf_header.parts(pathlib.Path(path))
        self.path = self.files[0]
        self._metadata, stored = self._open()
        self._arch = self._architecture()
        self._read_keys: set[str] = set()
        self._sizes: list[costs.BlockSize] = []
        blocks = self._number('block_count', int)
        if blocks > len(stored):  # Before a million names are made up.
            raise self.error(
                f'has {self._arch}.block_count {blocks} and {len(stored)} tensors in '
                'all; it is damaged, download it again.'
            )

        self.hf_config = self._config(stored)
        self._check_unread_keys()
        stored.pop(gguf_names.ROPE_FREQS, None)
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
        return _error(self.path, problem)

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        self._tensor(name)
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        return _dtype(self._tensor(name))

    @property
    def is_parallel(self) -> bool:
        return True

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        shape = self.shape(name)
        if rows.step not in (None, 1):
            raise ValueError(f'rows must have step 1, got {rows}.')
        start, stop, _ = rows.indices(shape[0])
        if start >= stop:
            return np.empty((0, *shape[1:]), self.dtype(name))
        values = self._stored_rows(name, start, stop)
        wanted = (stop - start, *shape[1:])
        if values.shape != wanted:  # What a narrower block lacks is zeros.
            whole = np.zeros(wanted, values.dtype)
            whole[tuple(map(slice, values.shape))] = values
            values = whole
        return checkpoint.refuse_not_finite(self.path, name, values)

    def _stored_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Those of some rows that the file holds, in Hugging Face's order."""
        tensor = self._tensor(name)
        heads = gguf_names.permuted_heads(
            self._arch,
            name,
            rows=tensor.shape[0],
            head_dim=self.hf_config['head_dim'],
        )
        index = (
            slice(start, stop)
            if heads is None
            else gguf_names.hf_rows(tensor.shape[0], heads)[start:stop]
        )
        if tensor.kind in gguf_blocks.PLAIN:
            return _plain(tensor)[index].copy()
        return gguf_blocks.dequantised(tensor.data[index], tensor.kind)

    def _tensor(self, name: str) -> gguf_header.Tensor:
        if name not in self._tensors:
            raise self.error(f'holds no tensor for {name!r}.')
        return self._tensors[name]

    def _open(self) -> tuple[dict[str, Any], dict[str, gguf_header.Tensor]]:
        """Metadata and tensors of all parts."""
        metadata, tensors = self._open_part(0)
        stored = {tensor.name: tensor for tensor in tensors}
        for number in range(1, len(self.files)):
            for tensor in self._open_part(number)[1]:
                if tensor.name in stored:
                    raise self.error(
                        f'has the tensor {tensor.name!r} in two parts; they are of '
                        'different models, or damaged.'
                    )
                stored[tensor.name] = tensor
        count = metadata.get('split.tensors.count', len(stored))
        if count != len(stored):
            raise self.error(
                f'has parts with {len(stored)} tensors in all and speaks of '
                f'{config_lib.short(count)}; download all of them again.'
            )
        return metadata, stored

    def _open_part(
        self, number: int
    ) -> tuple[dict[str, Any], list[gguf_header.Tensor]]:
        file = self.files[number]
        head = reading.read_bytes(file, 'GGUF file', head=8)
        if head[:4] != gguf_header.MAGIC:
            raise _error(
                file,
                f'begins with {head[:4]!r} instead of the GGUF mark: it is of another '
                f'format, or damaged; give another file or download it again.',
            )
        version = int.from_bytes(head[4:], 'little')
        if version and version % (1 << 16) == 0:
            raise _error(file, 'is big-endian; convert it with gguf-convert-endian.')
        try:
            metadata, tensors = gguf_header.read(file)
        except (ValueError, OSError, OverflowError) as e:
            detail = ' '.join(str(e).split())
            raise _error(
                file,
                f'cannot be read ({detail}): it is cut short, damaged, or newer than '
                f'the installed gguf package; download it again.',
            ) from e
        parts, own = metadata.get('split.count', 1), metadata.get('split.no', 0)
        if (parts or 1) != len(self.files) or own != number:
            raise _error(
                file,
                f'is part {config_lib.short(own)} of {config_lib.short(parts)} by what '
                f'it holds and {number} of {len(self.files)} by its name, counted from '
                '0; give the parts their names back (NAME-00001-of-00003.gguf).',
            )
        return metadata, tensors

    def _architecture(self) -> str:
        arch = self.metadata('general.architecture')
        known = (*gguf_names.ARCHITECTURES, gguf_names.UNEVEN)
        if arch not in known:
            raise self.error(
                f'has general.architecture {arch!r}; wanted one of {", ".join(known)}.'
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

    def _config(self, stored: dict[str, gguf_header.Tensor]) -> dict[str, Any]:
        hidden = self._number('embedding_length', int)
        family = self._family(stored)
        if self._arch == gguf_names.UNEVEN:
            channels, heads, kv_heads = self._uneven()
        else:
            channels = self._number('feed_forward_length', int)
            heads = self._number('attention.head_count', int)
            # The GGUF specification: absent means as many as query heads.
            kv_heads = self._number('attention.head_count_kv', int, heads)
        kinds = {_dtype(t).name for t in stored.values() if len(t.shape) == 2}
        embedding = self._stored(stored, 'token_embd.weight')
        config = {
            'architectures': [gguf_names.ARCHITECTURES[family]],
            'model_type': family,
            'hidden_size': hidden,
            'intermediate_size': channels,
            'num_hidden_layers': self._number('block_count', int),
            'num_attention_heads': heads,
            'num_key_value_heads': kv_heads,
            'head_dim': self._head_dim(hidden, heads),
            'hidden_act': 'silu',
            'rms_norm_eps': _shortest(
                self._number('attention.layer_norm_rms_epsilon', float)
            ),
            'max_position_embeddings': self._number('context_length', int),
            'vocab_size': self._number('vocab_size', int, embedding.shape[0]),
            'tie_word_embeddings': 'output.weight' not in stored,
            # Explicit, since Hugging Face's defaults are Llama 2's ids.
            'bos_token_id': self.metadata('tokenizer.ggml.bos_token_id'),
            'eos_token_id': self.metadata('tokenizer.ggml.eos_token_id'),
            'pad_token_id': self.metadata('tokenizer.ggml.padding_token_id'),
            # Norms and biases are float32 in every GGUF; the matrices tell.
            'dtype': kinds.pop() if len(kinds) == 1 else 'float32',
        }
        config['rope_parameters'] = self._rope_parameters(stored, config['head_dim'])
        if family == 'llama':
            config['attention_bias'] = _any_bias(stored, 'attn')
            config['mlp_bias'] = _any_bias(stored, 'ffn')
        else:
            config['use_sliding_window'] = False
        if family == 'qwen3':
            config['attention_bias'] = False
        return config

    def _family(self, stored: Iterable[str]) -> str:
        """The architecture that has the same parameters."""
        if self._arch != gguf_names.UNEVEN:
            return self._arch
        # Both store rows in Llama's order; Qwen2 has biases for three of four.
        has_output = 'blk.0.attn_output.bias' in stored
        return 'qwen2' if _any_bias(stored, 'attn') and not has_output else 'llama'

    def _uneven(self) -> tuple[int, int, int]:
        """(Channels, query heads, key/value heads) of the widest blocks.

        Raises:
            InputError: if a block lacks attention or an FFN, or its key/value heads
                are read by more query heads than those of others.
        """
        keys = (
            'feed_forward_length',
            'attention.head_count',
            'attention.head_count_kv',
        )
        blocks = self._number('block_count', int)
        listed = []
        for suffix in keys:
            self._read_keys.add(suffix)
            value = self.metadata(f'{self._arch}.{suffix}')
            values = value if isinstance(value, list) else [value] * blocks
            if len(values) != blocks or not all(
                type(own) is int and own > 0 for own in values
            ):
                raise self.error(
                    f'sets {self._arch}.{suffix} to {config_lib.short(value)}; only '
                    f'positive numbers for each of its {blocks} blocks are implemented.'
                )
            listed.append(values)
        channels, heads, kv_heads = listed
        per_group = {n / k for n, k in zip(heads, kv_heads, strict=True)}
        if len(per_group) != 1:
            raise self.error(
                f'has blocks with different numbers of query heads for a key/value '
                f'head ({config_lib.short(sorted(per_group))}), which is not implemented.'
            )
        sizes = zip(channels, kv_heads, strict=True)
        self._sizes = [costs.BlockSize(*own) for own in sizes]
        return max(channels), max(heads), max(kv_heads)

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
        self, stored: dict[str, gguf_header.Tensor], head_dim: int
    ) -> dict[str, Any]:
        """Rotary settings, with the scaling that `rope_freqs.weight` came from."""
        theta = _shortest(self._number('rope.freq_base', float))
        plain = {'rope_type': 'default', 'rope_theta': theta}
        if gguf_names.ROPE_FREQS not in stored:
            return plain
        if self._arch not in ('llama', gguf_names.UNEVEN):
            raise self.error(
                f'holds {gguf_names.ROPE_FREQS!r}, unknown for {self._arch}.'
            )
        tensor = stored[gguf_names.ROPE_FREQS]
        if tensor.kind != gguf_blocks.Type.F32 or tensor.shape != (head_dim // 2,):
            raise self.error(
                f'holds {gguf_names.ROPE_FREQS!r} as {tensor.kind.name} '
                f'{list(tensor.shape)}; wanted F32 [{head_dim // 2}].'
            )
        factors = _plain(tensor)
        if np.allclose(factors, 1.0, rtol=1e-3, atol=0):
            return plain
        candidates = [{**_LLAMA3_SCALING, 'factor': x} for x in _LLAMA3_FACTORS]
        for parameters in (*self._stated_scaling(), *candidates):
            parameters = {**plain, **parameters}
            try:
                _, scaling = config_lib.rope_of({'rope_parameters': parameters})
            except errors.InputError:
                continue  # Stated by nobody knows whom.
            if scaling is not None and np.allclose(
                factors,
                gguf_names.rope_factors(head_dim, theta, scaling),
                rtol=1e-3,
                atol=0,
            ):
                return parameters
        raise self.error(
            f'scales its rotary frequencies ({gguf_names.ROPE_FREQS}, up to '
            f'{factors.max():.4g}) unlike Llama 3.1 and 3.2; use the original '
            f'Hugging Face directory, whose config states the scaling.'
        )

    def _stated_scaling(self) -> list[dict[str, Any]]:
        """What files that we wrote say of it; the frequencies decide."""
        try:
            stated = json.loads(self.metadata(gguf_names.ROPE_PARAMETERS, ''))
        except (TypeError, ValueError, RecursionError):
            return []
        return [stated] if isinstance(stated, dict) else []

    def _stored(
        self, stored: dict[str, gguf_header.Tensor], name: str
    ) -> gguf_header.Tensor:
        if name not in stored:
            raise self.error(f'lacks the tensor {name!r}; download it again.')
        return stored[name]

    def _renamed(
        self, stored: dict[str, gguf_header.Tensor]
    ) -> dict[str, gguf_header.Tensor]:
        """Hugging Face name -> tensor: all of the model's, of a type that we read."""
        cfg = config_lib.from_hf_config(self.hf_config)
        shapes = self._shapes = loading.tensor_shapes(cfg)
        own = uneven.shapes(cfg, self._sizes)
        names = gguf_names.hf_names(cfg.num_layers)
        for name, tensor in stored.items():
            if names.get(name) not in shapes:
                raise self.error(
                    f'holds the tensor {name!r}, which is no part of a '
                    f'{self._arch} model with block_count {cfg.num_layers} as '
                    'implemented.'
                )
            kind = tensor.kind
            if kind not in gguf_blocks.PLAIN and (
                kind not in gguf_blocks.QUANTISED or len(tensor.shape) != 2
            ):
                raise self.error(
                    f'holds the {len(tensor.shape)}-axis tensor {name!r} as '
                    f'{kind.name}; wanted '
                    f'{", ".join(t.name for t in gguf_blocks.PLAIN)} or, for matrices, '
                    f'{", ".join(t.name for t in gguf_blocks.QUANTISED)}: use another '
                    f'quantisation of this model.'
                )
        renamed = {
            hf_name: self._stored(stored, name)
            for name, hf_name in names.items()
            if hf_name in shapes
        }
        for hf_name, tensor in renamed.items():
            if tensor.shape != own[hf_name]:
                raise self.error(
                    f'holds {tensor.name!r} of shape {list(tensor.shape)}; its '
                    f'metadata call for {list(own[hf_name])}.'
                )
        return renamed


def _error(file: pathlib.Path, problem: str) -> errors.InputError:
    return errors.InputError(f'GGUF file {str(file)!r} {problem}')


def _plain(tensor: gguf_header.Tensor) -> np.ndarray:
    return tensor.data.view(gguf_blocks.PLAIN[tensor.kind])


def _any_bias(names: Iterable[str], block: str) -> bool:
    return any(re.fullmatch(rf'blk\.\d+\.{block}_\w+\.bias', name) for name in names)


def _dtype(tensor: gguf_header.Tensor) -> np.dtype:
    return gguf_blocks.PLAIN.get(tensor.kind, np.dtype(np.float32))


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to this float32: 9.999999747e-06 -> 1e-05."""
    return float(str(np.float32(value)))
