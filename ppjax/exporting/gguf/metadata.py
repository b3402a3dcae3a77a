"""What a GGUF file says of its model: constants, origin, persona."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import re
from typing import Any

import gguf

import ppjax
from ppjax.base import errors
from ppjax.exporting import hf_export, model_card
from ppjax.exporting.gguf import types
from ppjax.models import base_model, costs, gguf_names

IDENTITY = 'persona.identity'
ARCHITECTURE = 'general.architecture'
_TAGS = ('pruned', 'roleplay', 'persona', 'ppjax', 'text-generation')


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        base: the base model's name on the Hub, or a folder's or file's.
        persona: a short name, for files and people.
        license: front matter about it; see `model_card.inherited_license`.
        system_prompt: the persona prompt; '' if there is none.
        identity: what decides every weight.
        greeting: with which the character begins; '' if it does not.
    """

    base: str
    persona: str
    license: Mapping[str, Any]
    system_prompt: str
    identity: Mapping[str, str]
    greeting: str = ''

    @property
    def name(self) -> str:
        """Of files, without the type."""
        return '-'.join(filter(None, (slug(self.base.split('/')[-1]), self.persona)))

    def identity_of(self, kind: str, *, uneven: bool) -> str:
        """What decides a file of one type."""
        own = dict(self.identity) | {'type': kind, 'system_prompt': self.system_prompt}
        if uneven:
            own['widths'] = 'own'
        return json.dumps(own, sort_keys=True)


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r'[^\w.]+', '-', text, flags=re.ASCII).strip('-.')[:64]


def refuse_unwritable(model: base_model.BaseModel) -> None:
    """Raises:
    InputError: if llama.cpp has no architecture for the model.
    """
    cfg = model.config
    problem = None
    if cfg.out_width is not None:
        problem = 'a rotated stream (SliceGPT), which this package alone computes'
    elif cfg.family == 'qwen3' and cfg.qkv_bias:
        problem = 'attention biases in a qwen3 model'
    if problem is not None:
        raise errors.InputError(f'GGUF: llama.cpp does not load {problem}.')


def of_model(
    model: base_model.BaseModel,
    kind: gguf.GGMLQuantizationType,
    sizes: Sequence[costs.BlockSize] | None = None,
) -> dict[str, Any]:
    """The keys of the architecture and of the file.

    Args:
        model: its constants.
        kind: of the file.
        sizes: of its layers, where they differ; see `uneven.Trimmed`.
    """
    cfg = model.config
    arch = cfg.family if sizes is None else gguf_names.UNEVEN
    found: dict[str, Any] = {
        ARCHITECTURE: arch,
        'general.file_type': int(types.FILE_TYPES[kind]),
        'general.quantization_version': gguf.GGML_QUANT_VERSION,
        f'{arch}.block_count': cfg.num_layers,
        f'{arch}.context_length': cfg.max_position,
        f'{arch}.embedding_length': cfg.d_model,
        f'{arch}.feed_forward_length': cfg.d_ff,
        f'{arch}.attention.head_count': cfg.num_heads,
        f'{arch}.attention.head_count_kv': cfg.num_kv_heads,
        f'{arch}.attention.key_length': cfg.head_dim,
        f'{arch}.attention.value_length': cfg.head_dim,
        f'{arch}.attention.layer_norm_rms_epsilon': cfg.norm_eps,
        f'{arch}.rope.dimension_count': cfg.head_dim,
        f'{arch}.rope.freq_base': cfg.rope_theta,
        f'{arch}.vocab_size': cfg.vocab_size,
    }
    if sizes is not None:
        per_group = cfg.num_heads // cfg.num_kv_heads
        found |= {
            f'{arch}.feed_forward_length': [own.channels for own in sizes],
            f'{arch}.attention.head_count': [own.groups * per_group for own in sizes],
            f'{arch}.attention.head_count_kv': [own.groups for own in sizes],
        }
    if cfg.rope_scaling is not None:
        found[gguf_names.ROPE_PARAMETERS] = json.dumps(hf_export.rope_parameters(cfg))
    return found


def of_origin(
    origin: Origin, model: base_model.BaseModel, kind: str, *, uneven: bool = False
) -> dict[str, Any]:
    """The keys that people and frontends read, and our own."""
    hub_id = origin.base
    owner, _, name = hub_id.rpartition('/')
    found: dict[str, Any] = {
        'general.type': 'model',
        'general.name': origin.name,
        'general.size_label': gguf.size_label(
            hf_export.parameter_count(model), 0, 0, 0
        ),
        'general.base_model.count': 1,
        'general.base_model.0.name': name,
        'general.tags': list(_TAGS),
        'persona.tool_version': ppjax.__version__,
        IDENTITY: origin.identity_of(kind, uneven=uneven),
    }
    if owner:
        found['general.base_model.0.organization'] = owner
        found['general.base_model.0.repo_url'] = f'https://huggingface.co/{hub_id}'
    for key in ('license', 'license_name', 'license_link'):
        value = origin.license.get(key)
        if value:
            text = value if isinstance(value, str) else ', '.join(value)
            found[f'general.{key.replace("_", ".")}'] = text
    if origin.persona:
        found['persona.name'] = origin.persona
    if origin.system_prompt:
        found['persona.system_prompt'] = origin.system_prompt
    if origin.greeting:
        found['persona.greeting'] = origin.greeting
    return found


def base_name(model: base_model.BaseModel) -> str:
    """What a file says that its model was made of."""
    name = model_card.hub_id(model.name)
    return name.removesuffix('.gguf')
