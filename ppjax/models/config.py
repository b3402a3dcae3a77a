"""The decoder's constants, read from a Hugging Face `config.json`."""

from collections.abc import Callable
import dataclasses
import sys
from typing import Any

import transformers

from ppjax.base import errors

FAMILIES = ('llama', 'qwen2', 'qwen3')
# What `model_type` is where a model of these is rotated and cut; what it was of, and
# its whole width, stand beside it. No stock loader takes it for something else.
ROTATED = 'slicegpt'
ROTATED_OF, WHOLE_WIDTH = 'sliced_model_type', 'sliced_hidden_size'

# Keys that change no logit of the architectures above. A key that is neither here, nor
# read by `from_hf_config`, nor a setting of generation is refused: it may change the
# maths unseen.
_HARMLESS = frozenset(
    [
        'architectures',
        'attention_dropout',
        'auto_map',
        'bos_token_id',
        'chunk_size_feed_forward',
        'cross_attention_hidden_size',
        'dtype',
        'eos_token_id',
        'finetuning_task',
        'id2label',
        'initializer_range',
        'is_decoder',
        'is_encoder_decoder',
        'is_llama_config',
        'label2id',
        'max_position_embeddings',
        'max_window_layers',
        'model_type',
        'pad_token_id',
        'prefix',
        'problem_type',
        'return_dict',
        'rope_scaling',
        'rope_theta',
        'sep_token_id',
        'task_specific_params',
        'tie_encoder_decoder',
        'tokenizer_class',
        'torch_dtype',
        'torchscript',
        'transformers_version',
        'transformers.js_config',
        'use_cache',
        # What trains or stores, and never enters the forward pass.
        'generation_config',
        'gradient_checkpointing',
        'ignore_index',
        'name_or_path',
        'neftune_noise_alpha',
        'pad_token',
        'bos_token',
        'eos_token',
        'unk_token',
        'unk_token_id',
        'tf_legacy_loss',
        'tokenizer_model_max_length',
        'tokenizer_padding_side',
        'use_bfloat16',
        # Hugging Face's own notes: where a model came from (_model_name_or_path if from
        # a GGUF file), and how it was loaded. A key is not harmless for its underscore:
        # _remove_final_layer_norm and _sliding_window_pattern are maths.
        '_auto_class',
        '_commit_hash',
        '_flash_attn_2_enabled',
        '_from_model_config',
        '_model_name_or_path',
        '_name_or_path',
        '_num_labels',
        '_original_object_hash',
        '_output_attentions',
        '_post_init_done',
        '_pre_quantization_dtype',
    ]
)
# Notes of tools, and which kernel computes the same attention.
_HARMLESS_STARTS = ('_attn_implementation', '_experts_implementation', 'unsloth_')

_CHECKED = frozenset({'layer_types', 'quantization_config', 'sliding_window'})

# Keys that are fine at one value only, since the other is not implemented.
_ONLY: dict[str, tuple[Any, ...]] = {
    'hidden_act': ('silu', 'swish'),
    'partial_rotary_factor': (1, 1.0, None),
    'pretraining_tp': (1, None),
    'use_sliding_window': (False, None),
    'pruned_heads': ({}, None),
    'add_cross_attention': (False, None),
    'rope_interleaved': (False, None),
    'use_mrope': (False, None),
}


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's frequency-dependent stretching of RoPE."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """All that fixes the decoder's parameters and its maths.

    No field has a default: every value comes from the checkpoint.

    Attributes:
        out_width: what the last block puts out and the unembedding reads, where the
            stream is rotated and narrower (SliceGPT); None where it is neither. A norm
            there divides by the root of sum x^2 / out_width + eps, which is that of
            d_model entries with the `norm_eps` here, times a weight in the checkpoint.
    """

    family: str
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    max_position: int
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_embeddings: bool
    out_width: int | None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise errors.InputError(
                f'Model config: {self.num_heads} query heads are not a multiple of '
                f'{self.num_kv_heads} key/value heads.'
            )
        if self.head_dim % 2:
            raise errors.InputError(
                f'Model config: head_dim must be even for RoPE, got {self.head_dim}.'
            )


def narrowed(
    cfg: ModelConfig, width: int, *, out_width: int | None = None
) -> ModelConfig:
    """Constants of a stream of `width` in the place of the whole one.

    Args:
        cfg: of the whole model.
        width: W, at most D.
        out_width: see `ModelConfig`.
    """
    return dataclasses.replace(
        cfg,
        d_model=width,
        norm_eps=cfg.norm_eps * cfg.d_model / width,
        tie_embeddings=False,
        out_width=out_width,
    )


def _checked(key: str, value: Any, right: bool, wanted: str) -> Any:
    if not right:
        raise errors.InputError(
            f'Model config: {key} must be {wanted}, got {short(value)}.'
        )
    return value


def _count(key: str, value: Any) -> int:
    # Larger ones could not be multiplied into a size of anything.
    right = type(value) is int and 1 <= value < 2**31
    return _checked(key, value, right, 'a positive integer')


def _positive(key: str, value: Any) -> float:
    right = type(value) in (int, float) and 0 < value <= sys.float_info.max
    return float(_checked(key, value, right, 'a positive number'))


def _switch(key: str, value: Any) -> bool:
    return _checked(key, value, isinstance(value, bool), 'true or false')


def short(value: Any) -> str:
    """A value from a file, on one line of bounded length."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _listed(keys: list[str]) -> str:
    shown = ', '.join(key[:60] for key in keys[:8])
    return shown if len(keys) <= 8 else f'{shown} and {len(keys) - 8} more'


def rope_of(hf: dict[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """RoPE's base and scaling from either spelling of the config.

    Until transformers 4 the base stands in `rope_theta` and the scaling in
    `rope_scaling`; from 5 on both stand in `rope_parameters`.

    Raises:
        InputError: if there is no base, or the scaling is none that is known.
    """
    params: dict[str, Any] = {}
    for key in ('rope_scaling', 'rope_parameters'):
        given = hf.get(key) or {}
        if not isinstance(given, dict):
            raise errors.InputError(
                f'Model config: {key} must be an object, got {short(given)}.'
            )
        params |= given
    theta = params.pop('rope_theta', hf.get('rope_theta'))
    if theta is None:
        raise errors.InputError(
            'Model config: no rope_theta, neither at top level nor in rope_parameters.'
        )
    theta = _positive('rope_theta', theta)
    kind = params.pop('rope_type', params.pop('type', 'default'))
    params.pop('type', None)
    if params.pop('partial_rotary_factor', 1.0) not in (1, 1.0, None):
        raise errors.InputError(
            'Model config: partial_rotary_factor other than 1 is not implemented.'
        )
    if kind == 'default':
        return theta, None
    if kind != 'llama3':
        raise errors.InputError(
            f'Model config: rope type {short(kind)} is not implemented; '
            "known are 'default' and 'llama3'."
        )
    wanted: dict[str, Callable[[str, Any], Any]] = {
        'factor': _positive,
        'low_freq_factor': _positive,
        'high_freq_factor': _positive,
        'original_max_position_embeddings': _count,
    }
    if missing := sorted(wanted.keys() - params.keys()):
        raise errors.InputError(
            f"Model config: rope type 'llama3' lacks {', '.join(missing)}."
        )
    if unknown := sorted(params.keys() - wanted.keys()):
        raise errors.InputError(
            f"Model config: rope type 'llama3' has unknown keys {_listed(unknown)}."
        )
    values = (check(key, params[key]) for key, check in wanted.items())
    return theta, Llama3Scaling(*values)


def _refuse_quantised(hf: dict[str, Any]) -> None:
    if (settings := hf.get('quantization_config')) is None:
        return
    method = settings.get('quant_method') if isinstance(settings, dict) else settings
    raise errors.InputError(
        f'Model config: the weights are quantised ({short(method)}, says '
        'quantization_config), which is not implemented; give the original in '
        'bfloat16, float16 or float32, or a GGUF file.'
    )


def _refuse_unknown(hf: dict[str, Any], read: set[str]) -> None:
    _refuse_quantised(hf)
    for key, allowed in _ONLY.items():
        if key in hf and hf[key] not in allowed:
            raise errors.InputError(
                f'Model config: {key}={short(hf[key])} is not implemented; '
                f'only {allowed[0]!r} is.'
            )
    layer_types = hf.get('layer_types')
    if layer_types and (
        not isinstance(layer_types, list)
        or any(kind != 'full_attention' for kind in layer_types)
    ):
        raise errors.InputError(
            'Model config: layer_types other than full_attention are not '
            f'implemented, got {short(layer_types)}.'
        )
    if hf.get('sliding_window') and hf.get('use_sliding_window', True):
        raise errors.InputError(
            f'Model config: sliding_window={short(hf["sliding_window"])} is not '
            'implemented.'
        )
    # Old configs hold settings of generation, of which no logit depends.
    generation = transformers.GenerationConfig().to_dict()
    known = _HARMLESS | generation.keys() | _ONLY.keys() | read | _CHECKED
    unknown = sorted(
        key for key in hf if key not in known and not key.startswith(_HARMLESS_STARTS)
    )
    if unknown:
        raise errors.InputError(
            f'Model config: unknown keys {_listed(unknown)}; they may change the '
            'maths, so this model is refused. Remove them from config.json if you '
            'know that they do not.'
        )


def from_hf_config(hf: dict[str, Any]) -> ModelConfig:
    """Reads a Hugging Face config.

    Args:
        hf: the parsed `config.json`.

    Returns:
        The decoder's constants.

    Raises:
        InputError: for another architecture, a missing key, or any key or value
            that would change the maths and is not implemented, by name.
    """
    family = hf.get('model_type')
    is_rotated = family == ROTATED
    if is_rotated:
        family = hf.get(ROTATED_OF)
    if family not in FAMILIES:
        raise errors.InputError(
            f'Model config: architecture {short(family)} is not implemented; '
            f'known are {", ".join(FAMILIES)}.'
        )
    read: set[str] = {'rope_parameters'}
    if is_rotated:
        read |= {ROTATED_OF, WHOLE_WIDTH}

    def get(key: str, *default: Any) -> Any:
        read.add(key)
        if hf.get(key) is not None:
            return hf[key]
        if not default:
            raise errors.InputError(f'Model config: key {key!r} is missing.')
        return default[0]

    theta, scaling = rope_of(hf)

    def count(key: str, *default: int) -> int:
        return _count(key, get(key, *default))

    def switch(key: str) -> bool:
        return _switch(key, get(key, False))

    num_heads = count('num_attention_heads')
    d_model = count('hidden_size')
    # Hugging Face's own defaults of each family, where a key may be left out.
    attention_bias = switch('attention_bias')
    config = ModelConfig(
        family=family,
        vocab_size=count('vocab_size'),
        d_model=d_model,
        num_layers=count('num_hidden_layers'),
        num_heads=num_heads,
        num_kv_heads=count('num_key_value_heads', num_heads),
        head_dim=count('head_dim', 128 if family == 'qwen3' else d_model // num_heads),
        d_ff=count('intermediate_size'),
        norm_eps=_positive('rms_norm_eps', get('rms_norm_eps')),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=count('max_position_embeddings', 2048),
        qkv_bias=family == 'qwen2' or attention_bias,
        out_bias=family != 'qwen2' and attention_bias,
        mlp_bias=switch('mlp_bias') if family == 'llama' else False,
        qk_norm=family == 'qwen3',
        tie_embeddings=switch('tie_word_embeddings'),
        out_width=count(WHOLE_WIDTH) if is_rotated else None,
    )
    _refuse_unknown(hf, read)
    return config
