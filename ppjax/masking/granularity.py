"""What a mask decides on: the FFN channels of every layer, or whole blocks.

A mask is bool [R, U]: U units in each of R rows, of which every row keeps k. Scores,
estimators, the optimizer and its checkpoints know no more than that.
"""

import abc

import numpy as np

from ppjax.masking import topk
from ppjax.models import base_model, sliced
from ppjax.models import masks as masks_lib


class Granularity(abc.ABC):
    """One kind of unit.

    Attributes:
        name: a key of `KINDS`.
    """

    name: str

    @abc.abstractmethod
    def shape(self, num_layers: int, d_ff: int) -> tuple[int, int]:
        """(R, U) of a model's masks."""

    @abc.abstractmethod
    def keep_size(
        self, num_layers: int, d_ff: int, *, sparsity: float, align: int
    ) -> int:
        """k, in [1, U].

        Raises:
            InputError: if no such k exists.
        """

    @abc.abstractmethod
    def pruned_size(self, num_layers: int, d_ff: int, keep: int) -> tuple[int, int]:
        """(layers, channels of each) of the model that k units make."""

    @abc.abstractmethod
    def decoder_masks(self, mask: masks_lib.Array | None) -> masks_lib.Masks:
        """What a mask [R, U] masks of a decoder; None is the dense model's."""

    @abc.abstractmethod
    def pruned(
        self, base: base_model.BaseModel, mask: np.ndarray
    ) -> base_model.BaseModel:
        """The model of what a bool mask [R, U] keeps; nothing is read yet.

        Raises:
            ValueError: if the mask is none of this model.
        """

    @abc.abstractmethod
    def text(self, num_layers: int, d_ff: int, keep: int) -> str:
        """What k means, such as '12 of 30 blocks'."""


class Channels(Granularity):
    """FFN channels: R = L, U = F (the paper's masks)."""

    name = 'channels'

    def shape(self, num_layers: int, d_ff: int) -> tuple[int, int]:
        return num_layers, d_ff

    def keep_size(
        self, num_layers: int, d_ff: int, *, sparsity: float, align: int
    ) -> int:
        del num_layers
        return topk.keep_size(d_ff, sparsity, align)

    def pruned_size(self, num_layers: int, d_ff: int, keep: int) -> tuple[int, int]:
        del d_ff
        return num_layers, keep

    def decoder_masks(self, mask: masks_lib.Array | None) -> masks_lib.Masks:
        return masks_lib.Masks(channels=mask)

    def pruned(
        self, base: base_model.BaseModel, mask: np.ndarray
    ) -> base_model.BaseModel:
        return sliced.sliced_model(base, mask)

    def text(self, num_layers: int, d_ff: int, keep: int) -> str:
        return f'{keep:,} of {d_ff:,} channels in each of {num_layers} layers'


class Blocks(Granularity):
    """Transformer blocks, attention and FFN together: R = 1, U = L.

    The paper's variant (arXiv:2606.14695, Table 15) picks blocks by the criterion of
    depth pruning on the persona's data; here their mask is learned, as channels' are.
    """

    name = 'blocks'

    def shape(self, num_layers: int, d_ff: int) -> tuple[int, int]:
        del d_ff
        return 1, num_layers

    def keep_size(
        self, num_layers: int, d_ff: int, *, sparsity: float, align: int
    ) -> int:
        """L (1 - sparsity), rounded, and at least 1; no kernel asks for alignment."""
        del d_ff, align
        return max(1, int(num_layers * (1 - sparsity) + 0.5))

    def pruned_size(self, num_layers: int, d_ff: int, keep: int) -> tuple[int, int]:
        del num_layers
        return keep, d_ff

    def decoder_masks(self, mask: masks_lib.Array | None) -> masks_lib.Masks:
        return masks_lib.Masks(blocks=None if mask is None else mask[0])

    def pruned(
        self, base: base_model.BaseModel, mask: np.ndarray
    ) -> base_model.BaseModel:
        wanted = self.shape(base.config.num_layers, base.config.d_ff)
        if mask.dtype != np.bool_ or mask.shape != wanted or not mask.any():
            raise ValueError(
                f'mask must be bool {wanted} and keep a block, got {mask.dtype} '
                f'{mask.shape} that keeps {int(mask.sum())}.'
            )
        return sliced.without_blocks(base, np.flatnonzero(mask[0]).tolist())

    def text(self, num_layers: int, d_ff: int, keep: int) -> str:
        del d_ff
        return f'{keep} of {num_layers} blocks'


CHANNELS, BLOCKS = Channels(), Blocks()
KINDS: dict[str, Granularity] = {kind.name: kind for kind in (CHANNELS, BLOCKS)}
