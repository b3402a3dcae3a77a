"""What recovery trains: all weights, or adapters or gains beside frozen ones."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ppjax.models import array_reader, checkpoint, folded, weights
from ppjax.models import config as config_lib
from ppjax.models import masks as masks_lib
from ppjax.recovery import gains, lora

# Nested dicts of float32 arrays, the optimizer's parameters.
Trained = dict[str, Any]


class Method(Protocol):
    """Which arrays are trained, and what model they make."""

    def cast(self, trained: Trained) -> Trained:
        """The trained arrays in the precision that they are computed with."""

    def model(self, trained: Trained, frozen: weights.Weights) -> Any:
        """What is called like a `Decoder`, from cast arrays and the frozen ones."""

    def masks(self, trained: Trained) -> masks_lib.Masks:
        """What it is called with."""

    def merged(
        self, trained: Trained, start: checkpoint.CheckpointReader
    ) -> checkpoint.CheckpointReader:
        """The finished weights, in place of those that were started from."""


@dataclasses.dataclass(frozen=True)
class FullFinetuning:
    """All weights are trained, float32; nothing is frozen (paper, A.1).

    Attributes:
        cfg: of the model.
        dtype: of products and activations.
        kept: zeros for what is removed of it. Weights of that are zero, or reach
            nothing; without a gradient they stay so.
    """

    cfg: config_lib.ModelConfig
    dtype: str
    kept: masks_lib.Masks = masks_lib.DENSE

    def cast(self, trained: Trained) -> Trained:
        return jax.tree.map(lambda x: x.astype(jnp.dtype(self.dtype)), trained)

    def model(self, trained: Trained, frozen: weights.Weights) -> Any:
        del frozen  # There is nothing in it.
        return weights.decoder_of(self.cfg, trained)

    def masks(self, trained: Trained) -> masks_lib.Masks:
        del trained
        return self.kept

    def merged(
        self, trained: Trained, start: checkpoint.CheckpointReader
    ) -> checkpoint.CheckpointReader:
        return array_reader.ArrayReader(trained, start)


@dataclasses.dataclass(frozen=True)
class LoraFinetuning:
    """Adapters are trained, float32, beside frozen weights.

    Attributes:
        cfg: of the model.
        scale: alpha / r.
        kept: zeros for what is removed of it, which no adapter brings back.
    """

    cfg: config_lib.ModelConfig
    scale: float
    kept: masks_lib.Masks = masks_lib.DENSE

    def cast(self, trained: Trained) -> Trained:
        return {'adapters': lora.masked(trained['adapters'], self.kept)}

    def model(self, trained: Trained, frozen: weights.Weights) -> Any:
        decoder = weights.decoder_of(self.cfg, frozen)
        return lora.adapt(decoder, trained['adapters'], self.scale)

    def masks(self, trained: Trained) -> masks_lib.Masks:
        del trained
        return self.kept

    def merged(
        self, trained: Trained, start: checkpoint.CheckpointReader
    ) -> checkpoint.CheckpointReader:
        adapters = self.cast(trained)['adapters']
        return lora.MergedReader(start, adapters, self.scale)


@dataclasses.dataclass(frozen=True)
class GainFinetuning:
    """Gains are trained, float32, of frozen weights.

    Attributes:
        cfg: of the model.
    """

    cfg: config_lib.ModelConfig

    def cast(self, trained: Trained) -> Trained:
        return trained

    def model(self, trained: Trained, frozen: weights.Weights) -> Any:
        del trained
        return weights.decoder_of(self.cfg, frozen)

    def masks(self, trained: Trained) -> masks_lib.Masks:
        return masks_lib.Masks(**trained['gains'])

    def merged(
        self, trained: Trained, start: checkpoint.CheckpointReader
    ) -> checkpoint.CheckpointReader:
        return folded.folded_reader(start, gains.fetched(trained['gains']))
