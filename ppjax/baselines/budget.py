"""How much each rival must remove to be no smaller than a persona mask's model.

Rivals are set to the nearest size that is not below it (Persona-Pruner,
arXiv:2606.14695, section 4 and appendix E). What is compared are the parameters of
the blocks: embeddings are no method's to prune, and one of them unties theirs.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import NamedTuple

from ppjax.base import errors
from ppjax.models import config as config_lib
from ppjax.models import costs

# SliceGPT's widths are multiples of it.
SLICE_MULTIPLE = 8


class Range(NamedTuple):
    """Blocks that a rival may touch, from `start` up to `stop`."""

    start: int
    stop: int

    @classmethod
    def sparing(
        cls, cfg: config_lib.ModelConfig, first: int, last: int, method: str
    ) -> 'Range':
        """All but the first and last few.

        Raises:
            InputError: if none is left.
        """
        found = cls(first, cfg.num_layers - last)
        if found.start >= found.stop:
            raise errors.InputError(
                f'--method={method} leaves the first {first} and the last {last} blocks '
                f'alone, and the model has {cfg.num_layers}; lower --spare_first or '
                '--spare_last.'
            )
        return found


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much a rival removes, and what is left.

    Attributes:
        setting: its own knob.
        text: of the setting, for people.
        parameters: of what is left.
        prefill_flops: of a prompt of `tokens` tokens, see `costs.prefill_flops`.
    """

    setting: float
    text: str
    parameters: costs.Parameters
    prefill_flops: Callable[[float], float]


def of_sizes(
    cfg: config_lib.ModelConfig,
    setting: float,
    text: str,
    sizes: Sequence[costs.BlockSize],
) -> Amount:
    """The amount that leaves blocks of these sizes."""
    return Amount(
        setting,
        text,
        costs.parameters(cfg, sizes),
        lambda tokens: costs.prefill_flops(cfg, sizes, tokens),
    )


def persona_mask(cfg: config_lib.ModelConfig, keep: int) -> Amount:
    """A persona mask of `keep` channels in every layer."""
    sizes = costs.uniform(cfg, channels=keep)
    return of_sizes(cfg, keep, f'{keep:,} of {cfg.d_ff:,} channels', sizes)


def depth(cfg: config_lib.ModelConfig, removed: int) -> Amount:
    """Without so many blocks."""
    sizes = costs.uniform(cfg, layers=cfg.num_layers - removed)
    return of_sizes(cfg, removed, f'{removed} of {cfg.num_layers} blocks gone', sizes)


def narrow_block(
    cfg: config_lib.ModelConfig, ratio: float, *, heads: bool = True
) -> costs.BlockSize:
    """What LLM-Pruner's ratio leaves of a block, of its channels alone without `heads`.

    F - int(F (1 - r)) channels go, and as many whole groups as fit into the
    K H - int(K H (1 - r)) entries of keys that the same share is.

    Source: LLM-Pruner, arXiv:2305.11627, its released code.
    """
    entries = cfg.num_kv_heads * cfg.head_dim
    gone = (entries - int(entries * (1 - ratio))) // cfg.head_dim if heads else 0
    return costs.BlockSize(
        max(1, int(cfg.d_ff * (1 - ratio))), max(1, cfg.num_kv_heads - gone)
    )


def narrow(
    cfg: config_lib.ModelConfig, ratio: float, among: Range, *, heads: bool = True
) -> Amount:
    """Some blocks narrower by one ratio; see `narrow_block`."""
    whole, cut = costs.uniform(cfg)[0], narrow_block(cfg, ratio, heads=heads)
    sizes = [
        cut if among.start <= i < among.stop else whole for i in range(cfg.num_layers)
    ]
    text = (
        f'ratio {ratio:.3f} in {among.stop - among.start} blocks: {cut.channels:,} '
        f'channels, {cut.groups} of {cfg.num_kv_heads} key/value heads'
    )
    return of_sizes(cfg, ratio, text, sizes)


def slicegpt(cfg: config_lib.ModelConfig, width: int) -> Amount:
    """A residual stream of `width`, with a rotation after each half of a block.

    The last block's output has the whole width, as the unembedding is not cut; that
    is untied from the embedding, for they are rotated otherwise.

    Source: SliceGPT, arXiv:2401.15024, section 3.
    """
    own = config_lib.narrowed(cfg, width, out_width=cfg.d_model)
    text = f'width {width:,} of {cfg.d_model:,}'
    return of_sizes(own, width, text, costs.uniform(own))


def nearest(
    settings: Sequence[Amount], target: costs.Parameters, method: str
) -> Amount:
    """The smallest of some that is not below a target in its blocks.

    Raises:
        InputError: if all are below it.
    """
    fitting = [x for x in settings if x.parameters.blocks >= target.blocks]
    if not fitting:
        raise errors.InputError(
            f'--method={method} has no setting that leaves the {target.blocks:,} '
            'parameters of blocks that --match asks for.'
        )
    return min(fitting, key=lambda x: x.parameters.blocks)


def depth_settings(cfg: config_lib.ModelConfig, among: Range) -> list[Amount]:
    """All of depth pruning's: from no block up to all that may go."""
    most = min(among.stop - among.start, cfg.num_layers - 1)
    return [depth(cfg, removed) for removed in range(most + 1)]


def narrow_settings(
    cfg: config_lib.ModelConfig, among: Range, *, heads: bool = True
) -> list[Amount]:
    """LLM-Pruner's, in steps of a thousandth."""
    return [narrow(cfg, step / 1000, among, heads=heads) for step in range(1000)]


def slice_settings(cfg: config_lib.ModelConfig) -> list[Amount]:
    """SliceGPT's, whose widths are multiples of 8."""
    widths = range(SLICE_MULTIPLE, cfg.d_model + 1, SLICE_MULTIPLE)
    return [slicegpt(cfg, width) for width in widths]
