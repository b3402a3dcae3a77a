"""Neeko's blocks: one LoRA whose rank is cut up, a block for each persona.

    y = x W + (alpha / r) sum_p g_p (x A_p) B_p

A_p [in, r] and B_p [r, out] are persona p's block. Laid side by side the blocks are one
LoRA of rank P r. The gate g (`gate`) is one 1 and zeros, or a softmax; in training it is
the 1 of the persona whose rows a step has.

A file holds them all: safetensors, with `gate` float32 [P, D] and for every adapted
module, as in `q_proj`, `q_proj.a` float32 [P, L, in, r] and `q_proj.b` float32
[P, L, r, out]; metadata, all of it text: `format` "ppjax.neeko.v1", `personas` (JSON
list of the P persona prompts), `conversations` (JSON list of how many each learned
from), `lora_alpha`, `base_model`, `base_fingerprint`, `identity` (of the run),
`settings` (its flags) and `tool_version`.

Source: Yu et al., EMNLP 2024, arXiv:2402.13717. There a gate of each layer, linear in
an encoder's (DeBERTa-v3-large) sentence vector, is learned with the blocks, and for a
description the profile that a sentence encoder finds nearest is taken in its place; 32
ranks are cut into 8 blocks, of LLaMA-2-7B, with a rate of 2e-4 that falls as a cosine,
one pass. Here the gate is one for all layers and not learned: in training the persona is
known, so a block learns from its own persona's rows alone, and afterwards the vectors are
those of the model itself, so that no other model is needed. The scale is the same,
alpha / r with the rank r of one block.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

import ppjax
from ppjax.base import atomic, errors, tensor_files
from ppjax.data import chat
from ppjax.masking import pmask
from ppjax.models import base_model as base_lib
from ppjax.recovery import lora

FORMAT = 'ppjax.neeko.v1'
FILE = 'neeko.safetensors'
_GATE = 'gate'
# Beyond it the scale is no number that a float32 holds.
_MAX_ALPHA = 10**9
_TEXTS = ('base_model', 'base_fingerprint', 'identity', 'settings')
_MODULES = {attribute: module for module, attribute in lora.TARGETS.items()}

# Weight -> {'a': [P, L, in, r], 'b': [P, L, r, out]}, float32, on the host.
Stacked = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class PersonaBlocks:
    """Several personas' blocks of one model, which may be pruned.

    Attributes:
        gate: float32 [P, D], the gate vectors.
        adapters: all blocks, see `Stacked`.
        prompts: the P persona prompts.
        conversations: how many each learned from.
        alpha: the scale is alpha / r.
        base_model: what the user called the model; for people, not checked.
        base_fingerprint: `loading.fingerprint` of the model; checked.
        identity: of the run that made the last of them.
        settings: its flags, for people.
    """

    gate: np.ndarray
    adapters: Stacked
    prompts: tuple[str, ...]
    conversations: tuple[int, ...]
    alpha: int
    base_model: str
    base_fingerprint: str
    identity: str = ''
    settings: str = ''

    def __post_init__(self) -> None:
        count = len(self.prompts)
        if not count or len(set(self.prompts)) != count:
            raise ValueError('personas are none, or two of them are the same.')
        if len(self.conversations) != count:
            raise ValueError(f'conversations must be {count} numbers.')
        if not 1 <= self.alpha <= _MAX_ALPHA:
            raise ValueError(f'lora_alpha must be in [1, {_MAX_ALPHA}].')
        if self.gate.ndim != 2 or len(self.gate) != count:
            raise ValueError(f'gate must be [{count}, D], got {self.gate.shape}.')
        if not np.linalg.norm(self.gate, axis=1).all():
            raise ValueError('a gate vector of zeros has no direction.')
        if not self.adapters:
            raise ValueError('there are no adapters.')
        layers = next(iter(self.adapters.values()))['a'].shape[1]
        for name, pair in self.adapters.items():
            a, b = pair['a'].shape, pair['b'].shape
            own = (count, layers, self.rank)
            if (len(a), len(b)) != (4, 4) or not (
                (a[0], a[1], a[3]) == (b[0], b[1], b[2]) == own
            ):
                raise ValueError(f'{_MODULES[name]} has blocks of {a} and {b}.')
        for name, value in _tensors(self).items():
            if value.dtype != np.float32:
                raise ValueError(f'{name} must be float32, got {value.dtype}.')
            if bad := int((~np.isfinite(value)).sum()):
                raise ValueError(
                    f'{bad} of {value.size} values of {name} are not finite.'
                )

    @property
    def rank(self) -> int:
        """Of one block."""
        return int(next(iter(self.adapters.values()))['a'].shape[-1])

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    @property
    def targets(self) -> tuple[str, ...]:
        """The modules that have blocks, as PEFT calls them."""
        return tuple(_MODULES[name] for name in self.adapters)

    @property
    def digests(self) -> tuple[str, ...]:
        """What folders and figures call the personas; see `chat.persona_digest`."""
        return tuple(map(chat.persona_digest, self.prompts))

    def block(self, number: int) -> dict[str, dict[str, Any]]:
        """One persona's adapters."""
        return {
            name: {side: value[number] for side, value in pair.items()}
            for name, pair in self.adapters.items()
        }

    def mixed(self, shares: np.ndarray) -> dict[str, dict[str, Any]]:
        """The blocks that have shares, as one LoRA at the same scale.

        Args:
            shares: [P] of the gate. One alone, of 1, is that block as it is.
        """
        own = np.flatnonzero(shares)
        weights = shares[own].astype(np.float32)[:, None, None, None]
        return {
            name: {
                'a': np.concatenate(pair['a'][own], axis=-1),
                'b': np.concatenate(pair['b'][own] * weights, axis=-2),
            }
            for name, pair in self.adapters.items()
        }

    def with_more(self, others: 'PersonaBlocks') -> 'PersonaBlocks':
        """These blocks as they are, and others after them (Neeko's expansion).

        Raises:
            InputError: see `check_same_kind`.
        """
        self.check_same_kind(others.rank, others.alpha, others.targets)
        return dataclasses.replace(
            others,
            gate=np.concatenate([self.gate, others.gate]),
            adapters={
                name: {
                    side: np.concatenate([value, others.adapters[name][side]])
                    for side, value in pair.items()
                }
                for name, pair in self.adapters.items()
            },
            prompts=self.prompts + others.prompts,
            conversations=self.conversations + others.conversations,
        )

    def check_same_kind(self, rank: int, alpha: int, targets: Sequence[str]) -> None:
        """Raises:
        InputError: if blocks of this kind cannot be added to these.
        """
        own = (self.rank, self.alpha, set(self.targets))
        if own != (rank, alpha, set(targets)):
            raise errors.InputError(
                f'The blocks of --neeko_start are of --lora_rank={self.rank} '
                f'--lora_alpha={self.alpha} --lora_targets={",".join(self.targets)}; '
                'new ones beside them must be too.'
            )

    def check_base(self, base: base_lib.BaseModel) -> None:
        """Refuses a model that the blocks were not learned on.

        Raises:
            InputError: if widths or fingerprints differ.
        """
        widths = lora.widths(base.config)
        for name, pair in self.adapters.items():
            own = (pair['a'].shape[1:3], pair['b'].shape[3])
            wanted = ((base.config.num_layers, widths[name][0]), widths[name][1])
            if own != wanted:
                raise errors.InputError(
                    f'These blocks are for {self.base_model}: its {_MODULES[name]} has '
                    f'{own[0][0]} layers of {own[0][1]} x {own[1]}, that of the model '
                    f'given {wanted[0][0]} of {wanted[0][1]} x {wanted[1]}.'
                )
        if self.base_fingerprint != (found := base.fingerprint()):
            raise errors.InputError(
                f'These blocks were learned on {self.base_model} with fingerprint '
                f'{self.base_fingerprint[:12]}; the model given has {found[:12]}: '
                'other weights, or another precision.'
            )

    def added(self, base: base_lib.BaseModel, shares: np.ndarray) -> base_lib.BaseModel:
        """Their model with what the gate chose merged in; nothing is read yet."""
        reader = lora.MergedReader(base.reader, self.mixed(shares), self.scale)
        return dataclasses.replace(base, reader=reader)


def _tensors(blocks: PersonaBlocks) -> dict[str, np.ndarray]:
    return {_GATE: blocks.gate} | {
        f'{_MODULES[name]}.{side}': value
        for name, pair in blocks.adapters.items()
        for side, value in pair.items()
    }


def save(path: str | pathlib.Path, blocks: PersonaBlocks) -> None:
    """Writes a file of blocks atomically.

    Raises:
        DiskError: if it cannot.
    """
    metadata = {name: getattr(blocks, name) for name in _TEXTS} | {
        'format': FORMAT,
        'personas': json.dumps(blocks.prompts, ensure_ascii=False),
        'conversations': json.dumps(blocks.conversations),
        'lora_alpha': str(blocks.alpha),
        'tool_version': ppjax.__version__,
    }
    tensors = {k: np.ascontiguousarray(x) for k, x in _tensors(blocks).items()}
    content = pmask.in_order(safetensors_numpy.save(tensors, metadata=metadata))
    with atomic.file(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | pathlib.Path) -> PersonaBlocks:
    """Reads a file of blocks.

    Raises:
        InputError: if the file is absent, damaged or of another format.
    """
    metadata, tensors = tensor_files.read(
        path,
        what='file of blocks',
        wanted=FORMAT,
        keys=(*_TEXTS, 'personas', 'conversations', 'lora_alpha'),
    )
    try:
        return _of_parts(metadata, tensors)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise errors.InputError(f'{path} is damaged: {error}') from None


def _of_parts(
    metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> PersonaBlocks:
    adapters: dict[str, dict[str, np.ndarray]] = {}
    # In the order of `TARGETS`, as a run makes them.
    for module, attribute in lora.TARGETS.items():
        pair = {side: tensors.get(f'{module}.{side}') for side in ('a', 'b')}
        if any(x is not None for x in pair.values()):
            adapters[attribute] = {
                side: tensors[f'{module}.{side}'] for side in ('a', 'b')
            }
    known = {_GATE} | {f'{_MODULES[k]}.{side}' for k in adapters for side in ('a', 'b')}
    if unknown := sorted(tensors.keys() - known):
        raise ValueError(f'it holds {", ".join(unknown)}, which no module has.')
    prompts = json.loads(metadata['personas'])
    counts = json.loads(metadata['conversations'])
    if not isinstance(prompts, list) or not all(isinstance(x, str) for x in prompts):
        raise ValueError('personas are no list of texts.')
    if not isinstance(counts, list) or not all(isinstance(x, int) for x in counts):
        raise ValueError('conversations are no list of numbers.')
    return PersonaBlocks(
        tensors[_GATE],
        adapters,
        tuple(prompts),
        tuple(counts),
        int(metadata['lora_alpha']),
        **{name: metadata[name] for name in _TEXTS},
    )


def load_for(path: str | pathlib.Path, base: base_lib.BaseModel) -> PersonaBlocks:
    """Reads a file of blocks that must be of a model.

    Raises:
        InputError: see `load` and `PersonaBlocks.check_base`.
    """
    found = load(path)
    found.check_base(base)
    return found
