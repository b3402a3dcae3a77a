"""What is left of a decoder: channels, key/value heads and blocks, perhaps unevenly."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from ppjax.models import base_model, costs, loading, sliced, uneven
from ppjax.models import config as config_lib
from ppjax.models import masks as masks_lib


@dataclasses.dataclass(frozen=True)
class Structure:
    """What every block keeps.

    A group is a key/value head with the query heads that read it; without one of
    these the others could not be told which is theirs.

    Attributes:
        channels: bool [L, F].
        groups: bool [L, K].
        blocks: bool [L]; of a block that is gone the rows above say nothing.
    """

    channels: np.ndarray
    groups: np.ndarray
    blocks: np.ndarray

    @classmethod
    def dense(cls, cfg: config_lib.ModelConfig) -> 'Structure':
        """All of a model."""
        shapes = ((cfg.d_ff,), (cfg.num_kv_heads,), ())
        return cls(*(np.ones((cfg.num_layers, *shape), bool) for shape in shapes))

    @property
    def layers(self) -> list[int]:
        """The numbers of the blocks that are kept."""
        return np.flatnonzero(self.blocks).tolist()

    @property
    def sizes(self) -> list[costs.BlockSize]:
        """Of the blocks that are kept."""
        return [
            costs.BlockSize(int(self.channels[i].sum()), int(self.groups[i].sum()))
            for i in self.layers
        ]

    @property
    def is_uniform(self) -> bool:
        """Whether all of them are of one size, as stock checkpoints are."""
        return len(set(self.sizes)) == 1

    def masks(self, cfg: config_lib.ModelConfig) -> masks_lib.Masks:
        """What it masks of the dense decoder; of a kind that is whole, nothing."""
        wide = np.repeat(self.groups, _head_span(cfg), axis=1)
        given = {'channels': self.channels, 'blocks': self.blocks, 'attention': wide}
        return masks_lib.Masks(
            **{name: x.astype(np.float32) for name, x in given.items() if not x.all()}
        )

    def pruned(self, base: base_model.BaseModel) -> base_model.BaseModel:
        """The model of what it keeps; nothing is read yet.

        Checkpoints have one width: narrower blocks are filled up with zeros, in all the
        weights of a channel or head, so that a gradient leaves them at 0.

        Args:
            base: the dense model.

        Raises:
            ValueError: if the structure is of another model, or keeps no block.
        """
        cfg = base.config
        self._check(cfg)
        sizes = self.sizes
        width = max(1, *(size.channels for size in sizes))
        groups = max(1, *(size.groups for size in sizes))
        per_group = cfg.num_heads // cfg.num_kv_heads
        kept: dict[str, dict[int, np.ndarray]] = {}
        for layer in self.layers:
            heads = _padded(self.groups[layer], groups)
            for names, found in (
                (uneven.CHANNELS, _padded(self.channels[layer], width)),
                (uneven.KEYS, _spread(heads, cfg.head_dim)),
                (uneven.QUERIES, _spread(heads, cfg.head_dim * per_group)),
            ):
                for attribute in names:
                    kept.setdefault(attribute, {})[layer] = found
        changes: dict[str, Any] = {}
        if len(sizes) < cfg.num_layers:
            changes |= sliced.config_of_blocks(base.reader.hf_config, self.layers)
        if width != cfg.d_ff:
            changes['intermediate_size'] = width
        if groups != cfg.num_kv_heads:
            # Else it would be taken for D / N, of the heads that are left.
            changes |= {
                'num_key_value_heads': groups,
                'num_attention_heads': groups * per_group,
                'head_dim': cfg.head_dim,
            }
        return base_model.BaseModel(
            base.name,
            sliced.PartsReader(base.reader, self._parts(base, kept), changes),
            dataclasses.replace(
                cfg,
                num_layers=len(sizes),
                d_ff=width,
                num_kv_heads=groups,
                num_heads=groups * per_group,
            ),
        )

    def _parts(
        self, base: base_model.BaseModel, kept: dict[str, dict[int, np.ndarray]]
    ) -> dict[str, sliced.Part]:
        """Tensor name -> what of the dense model it is."""
        parts = {}
        number = {old: new for new, old in enumerate(self.layers)}
        axes = uneven.CHANNELS | uneven.KEYS | uneven.QUERIES
        attribute_of = {
            loading.BLOCK_WEIGHTS[name].hf_name.format(layer): (name, layer)
            for name in axes
            for layer in number
        }
        for name in base.reader.names():
            found = sliced.OF_A_BLOCK.fullmatch(name)
            if found is None:
                parts[name] = sliced.Part(name)
                continue
            if (layer := int(found[2])) not in number:
                continue
            part = sliced.Part(name)
            if name in attribute_of:
                attribute, _ = attribute_of[name]
                part = sliced.Part(name, kept[attribute][layer], axes[attribute])
            parts[f'{found[1]}{number[layer]}{found[3]}'] = part
        return parts

    def _check(self, cfg: config_lib.ModelConfig) -> None:
        wanted = Structure.dense(cfg)
        for field in dataclasses.fields(self):
            own, whole = getattr(self, field.name), getattr(wanted, field.name)
            if own.dtype != np.bool_ or own.shape != whole.shape:
                raise ValueError(
                    f'{field.name} must be bool {whole.shape}, got {own.dtype} '
                    f'{own.shape}.'
                )
        if not self.blocks.any():
            raise ValueError('a structure must keep a block.')


def uniform(
    cfg: config_lib.ModelConfig, *, layers: Sequence[int] | None = None
) -> Structure:
    """Whole blocks, some of them or all."""
    found = Structure.dense(cfg)
    if layers is None:
        return found
    return dataclasses.replace(
        found, blocks=np.isin(np.arange(cfg.num_layers), list(layers))
    )


def of_weights(model: base_model.BaseModel) -> Structure:
    """What of a model does something; narrower blocks of stock ones hold zeros beside.

    A channel does nothing if its entries of `w_down` are all zero, a group if those of
    `w_o` are, whatever else is theirs. Those two weights are read.
    """
    cfg = model.config
    found = Structure.dense(cfg)
    if cfg.out_width is not None:
        return found  # Rotated: all blocks are of one size.
    for kept, attribute, span in (
        (found.channels, 'w_down', 1),
        (found.groups, 'w_o', _head_span(cfg)),
    ):
        name = loading.BLOCK_WEIGHTS[attribute].hf_name
        for layer, row in enumerate(kept):
            entries = (model.reader.read(name.format(layer)) != 0).any(axis=0)
            row[:] = entries.reshape(-1, span).any(axis=1)
    return found


def _head_span(cfg: config_lib.ModelConfig) -> int:
    """Entries of a group among those of all query heads."""
    return cfg.num_heads // cfg.num_kv_heads * cfg.head_dim


def _padded(kept: np.ndarray, width: int) -> np.ndarray:
    """The places of what is kept, then -1 up to a width."""
    places = np.flatnonzero(kept)
    return np.concatenate([places, np.full(width - len(places), -1)])


def _spread(places: np.ndarray, span: int) -> np.ndarray:
    """Places of groups as those of their entries, -1 for each of a group that is -1."""
    entries = places[:, None] * span + np.arange(span)
    return np.where(places[:, None] < 0, -1, entries).reshape(-1)
