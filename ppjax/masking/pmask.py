"""Persona mask files: a learned mask of a few KB with its base model's identity.

The first format holds bits alone; the second whatever else a mask may have, and is
written only where there is such.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

import ppjax
from ppjax.base import atomic, errors, reading
from ppjax.masking import budget as budget_lib
from ppjax.masking import card_masks
from ppjax.masking import gains as gains_lib
from ppjax.masking import granularity as granularity_lib
from ppjax.masking import ranking as ranking_lib
from ppjax.models import base_model as base_lib
from ppjax.models import folded
from ppjax.models import masks as masks_lib
from ppjax.personas import card_output

FORMAT, FORMAT_2 = 'ppjax.pmask.v1', 'ppjax.pmask.v2'
CHANNELS, BLOCKS = granularity_lib.CHANNELS.name, granularity_lib.BLOCKS.name
# A file of blocks has a format of its own: who knows channels only must refuse it.
_FORMATS = {CHANNELS: FORMAT, BLOCKS: 'ppjax.pmask.blocks.v1'}
_KINDS = {kind: name for name, kind in _FORMATS.items()} | {FORMAT_2: CHANNELS}
_SECOND = {'mask', 'gains', 'ranks'}
_REQUIRED = (
    'base_model',
    'base_fingerprint',
    'num_layers',
    'keep',
    'persona_sha256',
    'tool_version',
)


@dataclasses.dataclass(frozen=True)
class PersonaMask:
    """One persona's mask over the FFN channels, or the blocks, of one base model.

    Attributes:
        mask: bool [L, F] with exactly `keep` ones a layer; [1, L] over blocks.
        base_model: what the user called the base model; for people, not checked.
        base_fingerprint: `loading.fingerprint` of the base model; checked.
        persona_sha256: of the system prompt's UTF-8 bytes.
        system_prompt: the persona prompt that the mask was learned under, so that
            a mask can be talked to without further files; may be empty.
        granularity: what it masks, a key of `granularity.KINDS`.
        gains: float16 [L, k], in the order of `indices`: what each kept channel is
            multiplied by; None is 1.
        ranking: where the mask is one of many that it gives; see `at_keep`.
        kept: bool [L, F], the channels that are kept, where layers keep different
            numbers of them. The mask then has more, whose gains are 0, so that all
            layers have k of them; see `of_widths`.
    """

    mask: np.ndarray
    base_model: str
    base_fingerprint: str
    persona_sha256: str
    system_prompt: str = ''
    granularity: str = CHANNELS
    gains: np.ndarray | None = None
    ranking: ranking_lib.Ranking | None = None
    kept: np.ndarray | None = None

    @classmethod
    def of_widths(
        cls, kept: np.ndarray, gains: np.ndarray | None = None, **identity: Any
    ) -> 'PersonaMask':
        """A mask of layers that keep different numbers of channels.

        Args:
            kept: bool [L, F], what they keep.
            gains: float16 [L, F], or None for 1.
            **identity: the other attributes.
        """
        mask, padded = budget_lib.padded(kept, gains)
        return cls(mask, gains=padded, kept=kept, **identity)

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise ValueError(
                f'mask must be bool [L, F], got {self.mask.dtype} {self.mask.shape}.'
            )
        counts = np.unique(self.mask.sum(axis=1))
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(
                f'every layer must keep the same number of channels, got {counts}.'
            )
        if self.granularity == BLOCKS and len(self.mask) != 1:
            raise ValueError(f'mask of blocks must be [1, L], got {self.mask.shape}.')
        if self.granularity != CHANNELS and self.is_second:
            raise ValueError(f'a mask of {self.granularity} has no gains or ranks.')
        if self.gains is not None:
            gains_lib.check(self.gains, (len(self.mask), self.keep))
        if self.ranking is not None and (
            not np.array_equal(self.ranking.ranks < self.keep, self.mask)
            or (self.ranking.gains is None) != (self.gains is None)
        ):
            raise ValueError('mask and gains must be those of the ranks.')
        if self.kept is not None and self.scaled()[~self.kept].any():
            raise ValueError('a channel that is not kept has a gain that is not 0.')

    @property
    def keep(self) -> int:
        """k, the channels kept in every layer, or the blocks kept.

        The largest number, where layers keep different ones.
        """
        return int(self.mask[0].sum())

    @property
    def chosen(self) -> np.ndarray:
        """What is kept, bool [R, U]."""
        return self.mask if self.kept is None else self.kept

    @property
    def total(self) -> int:
        """How many channels of all layers, or blocks, are kept."""
        return int(self.chosen.sum())

    @property
    def has_gains(self) -> bool:
        """Whether gains other than 1 are of what is kept."""
        if self.kept is None:
            return self.gains is not None
        return bool((self.scaled()[self.kept] != 1).any())

    @property
    def kind(self) -> granularity_lib.Granularity:
        """What it masks."""
        return granularity_lib.KINDS[self.granularity]

    def indices(self) -> np.ndarray:
        """The kept channels, int [L, k], or blocks [1, k], ascending in each row."""
        return np.nonzero(self.mask)[1].reshape(len(self.mask), self.keep)

    @property
    def is_second(self) -> bool:
        """Whether it has what the first format cannot hold."""
        return self.gains is not None or self.ranking is not None

    def at_sparsity(self, sparsity: float) -> 'PersonaMask':
        """The mask of another sparsity, from the same ranks.

        Raises:
            InputError: if it has none, or they were not learned for it.
        """
        return self.at_keep(self._ranks().keep_size(sparsity))

    def at_keep(self, keep: int) -> 'PersonaMask':
        """The mask of another k, from the same ranks.

        Raises:
            InputError: if it has none, or they were not learned for it.
        """
        ranks = self._ranks()
        mask = ranks.mask(keep)
        return dataclasses.replace(self, mask=mask, gains=ranks.gains_of(mask))

    def _ranks(self) -> ranking_lib.Ranking:
        if self.ranking is None:
            whole = self.mask.shape[1]
            raise errors.InputError(
                f'This mask keeps {self.keep} of {whole} {self.granularity} and no '
                'other number: it has no ranks. Masks learned with --nested have some.'
            )
        return self.ranking

    def known_gains(self) -> tuple[np.ndarray, np.ndarray]:
        """(The channels that gains are known of, bool [L, F]; the gains, float32).

        Of a mask without gains those are the kept ones, and they are 1.
        """
        if self.ranking is not None and self.ranking.gains is not None:
            every = self.ranking.gains
            return np.ones(every.shape, bool), every.astype(np.float32)
        return self.chosen, self.scaled()

    def scaled(self) -> np.ndarray:
        """The mask times its gains, float32 [L, F]."""
        scaled = self.mask.astype(np.float32)
        if self.gains is not None:
            scaled[self.mask] = self.gains.reshape(-1)
        return scaled

    def decoder_masks(self) -> masks_lib.Masks:
        """What it masks of a decoder: bool, or float32 where there are gains."""
        if self.gains is None:
            return self.kind.decoder_masks(jnp.asarray(self.mask))
        return self.kind.decoder_masks(jnp.asarray(self.scaled()))

    def pruned(self, base: base_lib.BaseModel) -> base_lib.BaseModel:
        """The model of what it keeps, gains folded in; nothing is read yet."""
        kept = self.kind.pruned(base, self.mask)
        if self.gains is None:
            return kept
        return folded.folded_model(kept, masks_lib.Masks(channels=self.gains))

    def gain_bytes(self) -> bytes:
        """What an identity holds beside the mask's bits; none without gains."""
        return b'' if self.gains is None else self.gains.tobytes()

    def check_base(self, fingerprint: str, num_layers: int, d_ff: int) -> None:
        """Refuses a base model that the mask was not learned on.

        Raises:
            InputError: if shapes or fingerprints differ.
        """
        if self.granularity == BLOCKS and self.mask.shape[1] != num_layers:
            raise errors.InputError(
                f'This mask is for {self.mask.shape[1]} blocks ({self.base_model}); '
                f'the base model has {num_layers}.'
            )
        if self.granularity == CHANNELS and self.mask.shape != (num_layers, d_ff):
            raise errors.InputError(
                f'This mask is for {self.mask.shape[0]} layers of '
                f'{self.mask.shape[1]} channels ({self.base_model}); the base model '
                f'has {num_layers} layers of {d_ff}.'
            )
        if self.base_fingerprint != fingerprint:
            raise errors.InputError(
                f'This mask was learned on {self.base_model} with fingerprint '
                f'{self.base_fingerprint[:12]}; the base model given has '
                f'{fingerprint[:12]}: other weights, or another precision.'
            )


def load_for(
    path: str | pathlib.Path,
    base: base_lib.BaseModel,
    *,
    sparsity: float | None = None,
) -> PersonaMask:
    """Reads a mask file that must be of a base model.

    Args:
        path: of the file.
        base: the model.
        sparsity: at which it is wanted; None for the one it names.

    Raises:
        InputError: see `load`, `PersonaMask.check_base` and `at_sparsity`.
    """
    found = load(path)
    found.check_base(base.fingerprint(), base.config.num_layers, base.config.d_ff)
    return found if sparsity is None else found.at_sparsity(sparsity)


def save(path: str | pathlib.Path, persona_mask: PersonaMask) -> None:
    """Writes a mask file atomically."""
    with atomic.file(path) as temporary:
        # Not save_file, which makes files that only their owner may read.
        temporary.write_bytes(to_bytes(persona_mask))


def in_card(persona_mask: PersonaMask) -> card_output.Addition:
    """A mask as a character card carries it."""
    rows, units = persona_mask.mask.shape
    of_blocks = persona_mask.granularity == BLOCKS
    return card_masks.addition(
        to_bytes(persona_mask),
        base_model=persona_mask.base_model,
        base_fingerprint=persona_mask.base_fingerprint,
        keep=persona_mask.keep,
        shape=(units, 0) if of_blocks else (rows, units),
        system_prompt=persona_mask.system_prompt,
    )


def to_bytes(persona_mask: PersonaMask) -> bytes:
    """A mask file: bits packed little-endian within a byte."""
    packed = np.packbits(persona_mask.chosen, axis=-1, bitorder='little')
    rows, units = persona_mask.mask.shape
    sizes = {'num_layers': str(rows), 'd_ff': str(units)}
    if persona_mask.granularity == BLOCKS:
        sizes = {'num_layers': str(units)}
    tensors = {'mask': packed}
    if persona_mask.kept is not None:
        widths = persona_mask.kept.sum(axis=1).tolist()
        sizes['widths'] = ','.join(map(str, widths))
        if persona_mask.has_gains:
            own = persona_mask.scaled()[persona_mask.kept]
            tensors['gains'] = own.astype(gains_lib.DTYPE)
    elif persona_mask.gains is not None:
        tensors['gains'] = persona_mask.gains
    kind = _FORMATS[persona_mask.granularity]
    if persona_mask.is_second:
        kind = FORMAT_2
    if (ranking := persona_mask.ranking) is not None:
        tensors = ranking.tensors()
        sizes['keeps'] = ':'.join(map(str, ranking.keeps))
    metadata = sizes | {
        'format': kind,
        'base_model': persona_mask.base_model,
        'base_fingerprint': persona_mask.base_fingerprint,
        'keep': str(persona_mask.keep),
        'persona_sha256': persona_mask.persona_sha256,
        'tool_version': ppjax.__version__,
        'system_prompt': persona_mask.system_prompt,
    }
    return in_order(safetensors_numpy.save(tensors, metadata=metadata))


def in_order(content: bytes) -> bytes:
    """A safetensors file with sorted metadata: the same mask has the same bytes."""
    size = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # The data start at a multiple of 8.
    return len(text).to_bytes(8, 'little') + text + content[8 + size :]


def load(path: str | pathlib.Path) -> PersonaMask:
    """Reads a mask file, or the mask that a character card carries.

    Raises:
        InputError: if the file is absent, damaged, of another format, or its bits
            and metadata disagree.
    """
    reading.require_file(path, 'Mask file')
    try:
        metadata, every = _of_bytes(
            card_masks.content(path)
            if card_masks.is_card(path)
            # Not mapped: one that is written anew meanwhile would end the process.
            else reading.read_bytes(path, 'Mask file')
        )
    # safetensors raises KeyError for a dtype that NumPy lacks.
    except (safetensors.SafetensorError, KeyError) as error:
        raise errors.InputError(f'{path} is no readable mask file ({error}).') from None
    names = set(every) if metadata.get('format') == FORMAT_2 else {'mask'}
    tensors = {name: every[name] for name in names & _SECOND & every.keys()}
    granularity = _KINDS.get(metadata.get('format', ''))
    if granularity is None:
        raise errors.InputError(
            f'{path} has format {metadata.get("format")!r}, wanted '
            f'{" or ".join(map(repr, _KINDS))}.'
        )
    if unknown := sorted(names - _SECOND):
        raise errors.InputError(
            f'{path} holds {unknown[0]!r}, of which nothing is known here: it is of a '
            'later version.'
        )
    sized = ('d_ff',) if granularity == CHANNELS else ()
    if missing := [key for key in (*_REQUIRED, *sized) if key not in metadata]:
        raise errors.InputError(f'{path} lacks metadata {", ".join(missing)}.')
    try:
        num_layers, keep, *d_ff = (
            int(metadata[key]) for key in ('num_layers', 'keep', *sized)
        )
    except ValueError as error:
        raise errors.InputError(f'{path} has damaged metadata ({error}).') from None
    shape = (num_layers, d_ff[0]) if d_ff else (1, num_layers)
    ranking = None
    try:
        if 'widths' in metadata and d_ff:
            return _of_widths(metadata, tensors, shape)
        if 'ranks' in tensors:
            keeps = metadata.get('keeps', '')
            ranking = ranking_lib.of_tensors(tensors, shape, keeps)
            mask = ranking.mask(keep)
            gains = ranking.gains_of(mask)
        else:
            mask = _unpacked(tensors.get('mask'), shape, granularity)
            if not len(mask) or keep < 1 or (mask.sum(axis=1) != keep).any():
                raise ValueError(
                    f'layers do not all keep {keep} channels.'
                    if d_ff
                    else f'it does not keep {keep} blocks.'
                )
            gains = tensors.get('gains')
        return PersonaMask(
            mask=mask,
            base_model=metadata['base_model'],
            base_fingerprint=metadata['base_fingerprint'],
            persona_sha256=metadata['persona_sha256'],
            system_prompt=metadata.get('system_prompt', ''),
            granularity=granularity,
            gains=gains,
            ranking=ranking,
        )
    except (ValueError, errors.InputError) as error:
        raise errors.InputError(f'{path} is damaged: {error}') from None


def _of_bytes(content: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a mask file in memory.

    Raises:
        SafetensorError: if it is none.
    """
    tensors = safetensors_numpy.load(content)
    size = int.from_bytes(content[:8], 'little')
    return json.loads(content[8 : 8 + size]).get('__metadata__', {}), tensors


def _of_widths(
    metadata: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    shape: tuple[int, int],
) -> PersonaMask:
    """A mask whose layers keep different numbers, from what a file holds.

    Raises:
        ValueError: if it is damaged.
    """
    kept = _unpacked(tensors.get('mask'), shape, CHANNELS)
    widths = list(map(int, metadata['widths'].split(',')))
    if kept.sum(axis=1).tolist() != widths or min(widths) < 1:
        raise ValueError('layers do not keep the numbers of channels that it names.')
    gains = None
    if (own := tensors.get('gains')) is not None:
        if own.shape != (kept.sum(),):
            raise ValueError(f'{own.shape} gains are not of its {kept.sum()} channels.')
        gains = np.zeros(shape, own.dtype)
        gains[kept] = own
    names = ('base_model', 'base_fingerprint', 'persona_sha256')
    return PersonaMask.of_widths(
        kept,
        gains,
        system_prompt=metadata.get('system_prompt', ''),
        **{name: metadata[name] for name in names},
    )


def _unpacked(
    packed: np.ndarray | None, shape: tuple[int, int], granularity: str
) -> np.ndarray:
    """The mask of its bits.

    Raises:
        ValueError: if they are damaged.
    """
    rows, units = shape
    of_blocks = granularity == BLOCKS
    if packed is None:
        raise ValueError('it has neither mask nor ranks.')
    if packed.dtype != np.uint8 or packed.shape != (rows, -(-units // 8)):
        size = f'{units} blocks' if of_blocks else f'{rows} layers of {units} channels'
        raise ValueError(
            f'mask is {packed.dtype} {packed.shape}, metadata says {size}.'
        )
    return np.unpackbits(packed, axis=-1, bitorder='little')[:, :units].astype(bool)
