"""Low-rank adapters (LoRA): y = x W + (alpha / r) (x A) B, with W frozen.

Source: Hu et al., arXiv:2106.09685.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors, processes, settings
from ppjax.models import checkpoint, loading, weights
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

# Name of a module, as PEFT and Hugging Face call it -> our weight.
TARGETS = {
    weight.hf_name.split('.')[-2]: attribute
    for attribute, weight in loading.BLOCK_WEIGHTS.items()
    # Rotations of a stream are no modules of a stock model.
    if weight.transpose and attribute.startswith('w_')
}

# Weight -> {'a': [L, in, r], 'b': [L, r, out]}, float32.
Adapters = dict[str, dict[str, jax.Array]]


def parse_targets(text: str) -> tuple[str, ...]:
    """The modules that `--lora_targets` names, each once.

    Raises:
        InputError: for a name that no module has, or none at all.
    """
    return settings.names(text, 'lora_targets', TARGETS)


def widths(cfg: config_lib.ModelConfig) -> dict[str, tuple[int, int]]:
    """Weight -> (in, out), of all weights that can be adapted."""
    shapes = {name: x.shape for name, x in weights.abstract(cfg)['blocks'].items()}
    return {name: (shapes[name][1], shapes[name][2]) for name in TARGETS.values()}


def init_adapters(
    cfg: config_lib.ModelConfig, targets: Sequence[str], rank: int, key: jax.Array
) -> Adapters:
    """Adapters that change nothing yet: A Kaiming-uniform, B zero.

    Args:
        cfg: of the model to adapt.
        targets: names in `TARGETS`.
        rank: r.
        key: fixes A.

    Raises:
        InputError: if the rank exceeds a target's smaller side.
    """
    adapters: Adapters = {}
    sides = widths(cfg)
    for target, one in zip(targets, jax.random.split(key, len(targets)), strict=True):
        rows, columns = sides[TARGETS[target]]
        if rank > min(rows, columns):
            raise errors.InputError(
                f'--lora_rank={rank} is more than {target} has: its weight is '
                f'{rows} x {columns}, so the rank must be in [1, {min(rows, columns)}].'
            )
        # torch's kaiming_uniform_ with a = sqrt(5), as PEFT starts.
        bound = 1 / math.sqrt(rows)
        shape = (cfg.num_layers, rows, rank)
        adapters[TARGETS[target]] = {
            'a': jax.random.uniform(one, shape, jnp.float32, -bound, bound),
            'b': jnp.zeros((cfg.num_layers, rank, columns), jnp.float32),
        }
    return adapters


def masked(adapters: Adapters, masks: masks_lib.Masks) -> Adapters:
    """Adapters without what they would add to columns of masked units.

    Rows of A are all that there is to clear: what nothing reads has no gradient, and B
    starts at zero.

    Args:
        adapters: of all layers.
        masks: of channels and of what the heads found; others say nothing here.
    """
    found = dict(adapters)
    for attribute, mask in (('w_down', masks.channels), ('w_o', masks.attention)):
        if mask is not None and attribute in found:
            pair = found[attribute]
            found[attribute] = pair | {'a': pair['a'] * mask[:, :, None]}
    return found


class AdaptedDecoder(NamedTuple):
    """A decoder with its adapters, called like the decoder itself.

    Attributes:
        decoder: frozen.
        adapters: see `decoder.Adapters`, the scale alpha / r in `b`.
    """

    decoder: decoder_lib.Decoder
    adapters: dict[str, tuple[jax.Array, jax.Array]]

    def __call__(self, *args: Any, **options: Any) -> tuple[jax.Array, Any, Any]:
        """See `Decoder.__call__`."""
        return self.decoder(*args, adapters=self.adapters, **options)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """See `Decoder.unembed`."""
        return self.decoder.unembed(hidden)


def adapt(
    decoder: decoder_lib.Decoder, adapters: Adapters, scale: float
) -> AdaptedDecoder:
    """A decoder with adapters, none of its weights copied."""
    pairs = {name: (pair['a'], pair['b'] * scale) for name, pair in adapters.items()}
    return AdaptedDecoder(decoder, pairs)


class MergedReader(checkpoint.CheckpointReader):
    """A checkpoint's tensors with adapters added: W + (alpha / r) A B, float32."""

    def __init__(
        self, reader: checkpoint.CheckpointReader, adapters: Adapters, scale: float
    ):
        self._reader = reader
        self.path, self.hf_config = reader.path, reader.hf_config
        self._adapters: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for attribute, pair in jax.tree.map(processes.fetch, adapters).items():
            name = loading.BLOCK_WEIGHTS[attribute].hf_name
            for layer, (a, b) in enumerate(zip(pair['a'], pair['b'], strict=True)):
                self._adapters[name.format(layer)] = (a, b * np.float32(scale))

    def names(self) -> list[str]:
        return self._reader.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._reader.shape(name)

    def dtype(self, name: str) -> np.dtype:
        adapted = name in self._adapters
        return np.dtype(np.float32) if adapted else self._reader.dtype(name)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        value = self._reader.read(name, rows)
        if name not in self._adapters:
            return value
        a, b = self._adapters[name]
        # The file holds [out, in].
        return value.astype(np.float32) + b[:, rows].T @ a.T
