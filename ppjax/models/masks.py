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

    Other numbers are gains: they multiply what goes through.

    A pytree, so that it is scanned, placed and differentiated as one. Whatever else
    of a decoder becomes maskable is a further field here.

    Each but `blocks` may be one a row, with B before its last axis.

    Attributes:
        channels: of the FFN, before `w_down`, [L, F].
        blocks: attention and FFN together, [L].
        attention: what the heads found, before `w_o`, [L, N*H].
        attn_norm: of what attention reads, beside its norm's weight, [L, D].
        ffn_norm: of what the FFN reads, the same.
        final_norm: of what the unembedding reads, the same, [D].
    """

    channels: Array | None = None
    blocks: Array | None = None
    attention: Array | None = None
    attn_norm: Array | None = None
    ffn_norm: Array | None = None
    final_norm: Array | None = None

    def check(self, cfg: config_lib.ModelConfig, *, rows: int | None = None) -> None:
        """Refuses shapes that are none of a model's.

        Args:
            cfg: of the model.
            rows: B, where each row may have a mask of its own.

        Raises:
            AssertionError: naming the shape got and the one wanted.
        """
        wanted = shapes(cfg)
        for name, value in self.given().items():
            shape = wanted[name]
            if rows is not None and name != 'blocks' and value.ndim > len(shape):
                shape = (*shape[:-1], rows, shape[-1])
            chex.assert_shape(value, shape)

    def given(self) -> dict[str, Array]:
        """Those that are there, by name."""
        return {name: x for name, x in self._asdict().items() if x is not None}

    def of_layers(self) -> 'Masks':
        """Those with an axis of layers."""
        return self._replace(final_norm=None)

    def as_float32(self) -> 'Masks':
        """The same on the device, in the one precision that is compiled for."""
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self)

    def digest(self) -> str:
        """By content, so that what two masks make never passes for each other's.

        '' of the dense model.
        """
        content = b''
        for name, value in self.given().items():
            own = np.asarray(value, np.float32)
            # The first two are told by their shapes, as ever.
            kind = '' if name in ('channels', 'blocks') else name
            content += f'{kind}{own.shape}'.encode() + own.tobytes()
        return hashlib.sha256(content).hexdigest() if content else ''


def shapes(cfg: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of each of the masks of a model, for all rows together."""
    layers, width = cfg.num_layers, cfg.d_model
    return {
        'channels': (layers, cfg.d_ff),
        'blocks': (layers,),
        'attention': (layers, cfg.num_heads * cfg.head_dim),
        'attn_norm': (layers, width),
        'ffn_norm': (layers, width),
        'final_norm': (width if cfg.out_width is None else cfg.out_width,),
    }


DENSE = Masks()
