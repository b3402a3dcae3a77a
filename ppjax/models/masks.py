"""What of a decoder is masked."""

import hashlib
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ppjax.models import config as config_lib

Array = jax.Array | np.ndarray


class Masks(NamedTuple):
    """Zeros for what counts as deleted; None where all of its kind is kept.

    Other numbers scale: a channel's is its gain.

    A pytree, so that it is scanned, placed and differentiated as one. Whatever else
    of a decoder becomes maskable is a further field here.

    Attributes:
        channels: of the FFN, [L, F], or [L, B, F] for one mask a row.
        blocks: attention and FFN together, [L].
    """

    channels: Array | None = None
    blocks: Array | None = None

    def check(self, cfg: config_lib.ModelConfig, *, rows: int | None = None) -> None:
        """Refuses shapes that are none of a model's.

        Args:
            cfg: of the model.
            rows: B, where each row may have a mask of its own.

        Raises:
            AssertionError: naming the shape got and the one wanted.
        """
        if self.channels is not None:
            own = () if rows is None or self.channels.ndim == 2 else (rows,)
            chex.assert_shape(self.channels, (cfg.num_layers, *own, cfg.d_ff))
        if self.blocks is not None:
            chex.assert_shape(self.blocks, (cfg.num_layers,))

    def as_float32(self) -> 'Masks':
        """The same on the device, in the one precision that is compiled for."""
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self)

    def digest(self) -> str:
        """By content, so that what two masks make never passes for each other's.

        '' of the dense model.
        """
        given = [np.asarray(x, np.float32) for x in self if x is not None]
        content = b''.join(f'{x.shape}'.encode() + x.tobytes() for x in given)
        return hashlib.sha256(content).hexdigest() if given else ''


DENSE = Masks()
