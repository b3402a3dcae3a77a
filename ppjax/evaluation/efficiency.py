"""Sizes and FLOPs of the dense and the pruned model side by side.

What counts, and how, is `models.costs`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp

from ppjax.base import errors
from ppjax.models import config as config_lib
from ppjax.models import costs
from ppjax.pages import formats

CONVENTION = (
    'A multiply-add is 2 FLOPs. Weights and attention count; norms, RoPE, softmax '
    'and biases do not. Attention counts every pair of a prompt, not only the causal '
    "half. The paper's Table 11 leaves the unembedding out."
)


@dataclasses.dataclass(frozen=True)
class Figures:
    """Sizes and FLOPs of one model with k channels a layer.

    Attributes:
        keep: k, the FFN channels of every layer.
        layers: its blocks.
        parameters: every parameter once; tied embeddings count once.
        parameters_untied: with an unembedding of its own, even if it is tied.
        parameters_blocks: of the L blocks alone, norms and biases included.
        bytes: of `parameters`.
        decode_weight_bytes: of the weights that one decoded token reads: all but an
            embedding table that serves no unembedding.
        kv_bytes_per_token: keys and values that one token leaves in the cache.
        prefill_flops: of the prompt, unembedding left out as in the paper.
        prefill_flops_with_head: with the unembedding of the last position.
        decode_flops: of the first token after the prompt, unembedding included; it
            attends to the prompt and to itself.
        total_flops: of a whole answer: the prompt with the unembedding of its last
            position, which gives the first token, and a decode step for each other.
    """

    keep: int
    layers: int
    parameters: int
    parameters_untied: int
    parameters_blocks: int
    bytes: int
    decode_weight_bytes: int
    kv_bytes_per_token: int
    prefill_flops: float
    prefill_flops_with_head: float
    decode_flops: float
    total_flops: float


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Dense and pruned side by side.

    Attributes:
        d_ff: F, the channels of a dense layer.
        num_layers: L.
        dtype: of weights and of the cache.
        prompt_length: S, tokens of the prompt.
        answer_length: T, tokens of the answer.
        dense: with all F channels.
        pruned: with k, or with fewer layers.
    """

    d_ff: int
    num_layers: int
    dtype: str
    prompt_length: float
    answer_length: int
    dense: Figures
    pruned: Figures


def _figures(
    cfg: config_lib.ModelConfig,
    sizes: Sequence[costs.BlockSize],
    itemsize: int,
    prompt: float,
    answer: int,
) -> Figures:
    head = costs.head_entries(cfg)
    count = costs.parameters(cfg, sizes)
    cached = 2 * cfg.head_dim * sum(size.groups for size in sizes)
    prefill = costs.prefill_flops(cfg, sizes, prompt)
    # The decoded tokens 2 to T attend to S + 1 .. S + T - 1 tokens, a mean of S + T/2.
    decoded = (answer - 1) * costs.decode_flops(cfg, sizes, prompt + answer / 2)
    return Figures(
        keep=max(size.channels for size in sizes),
        layers=len(sizes),
        parameters=count.unique,
        parameters_untied=count.untied,
        parameters_blocks=count.blocks,
        bytes=count.unique * itemsize,
        decode_weight_bytes=(count.untied - costs.embedding_entries(cfg)) * itemsize,
        kv_bytes_per_token=cached * itemsize,
        prefill_flops=prefill,
        prefill_flops_with_head=prefill + 2 * head,
        decode_flops=costs.decode_flops(cfg, sizes, prompt + 1),
        total_flops=prefill + 2 * head + decoded,
    )


def measure(
    cfg: config_lib.ModelConfig,
    keep: int,
    *,
    dtype: str,
    prompt_length: float,
    answer_length: int,
    layers: int | None = None,
    pruned: config_lib.ModelConfig | None = None,
    sizes: Sequence[costs.BlockSize] | None = None,
) -> Efficiency:
    """The dense model and the one with `keep` channels in each of `layers` layers.

    Args:
        cfg: of the dense model.
        keep: k in [1, F].
        dtype: of weights and of the cache, a NumPy or `ml_dtypes` name.
        prompt_length: S, positive.
        answer_length: T, at least 1.
        layers: of the pruned model, in [1, L]; by default all L.
        pruned: its constants, where more than channels and blocks may be gone.
        sizes: of its blocks, where they differ; by default all have k channels.

    Raises:
        InputError: if k, `layers` or a length is out of range.
    """
    layers = cfg.num_layers if layers is None else layers
    if not 1 <= layers <= cfg.num_layers:
        raise errors.InputError(
            f'layers must be in [1, {cfg.num_layers}], got {layers}.'
        )
    if not 1 <= keep <= cfg.d_ff:
        raise errors.InputError(f'keep must be in [1, {cfg.d_ff}], got {keep}.')
    if not prompt_length > 0:
        raise errors.InputError(f'prompt_length must be positive, got {prompt_length}.')
    if answer_length < 1:
        raise errors.InputError(
            f'answer_length must be at least 1, got {answer_length}.'
        )
    itemsize = jnp.dtype(dtype).itemsize
    other = pruned or cfg
    whole, left = (
        _figures(own, sizes, itemsize, prompt_length, answer_length)
        for own, sizes in (
            (cfg, costs.uniform(cfg)),
            (other, sizes or costs.uniform(other, channels=keep, layers=layers)),
        )
    )
    return Efficiency(
        d_ff=cfg.d_ff,
        num_layers=cfg.num_layers,
        dtype=dtype,
        prompt_length=prompt_length,
        answer_length=answer_length,
        dense=whole,
        pruned=left,
    )


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One figure for people to read.

    Attributes:
        label: what it is, with its unit where the figures carry none.
        dense: of the dense model.
        pruned: of the pruned one.
        ratio: pruned to dense.
        drawn: whether it belongs in a small chart.
    """

    label: str
    dense: str
    pruned: str
    ratio: float
    drawn: bool


def table(stored: Mapping[str, Any]) -> list[TableRow]:
    """An `Efficiency` as rows for people.

    Args:
        stored: as `dataclasses.asdict` gives it and JSON keeps it; figures that it
            lacks have no row.
    """
    dense, pruned = (
        figures if isinstance(figures := stored.get(side), dict) else {}
        for side in ('dense', 'pruned')
    )
    prompt, answer = stored.get('prompt_length'), stored.get('answer_length')
    rows = []
    for name, label, unit, drawn in (
        ('layers', 'Transformer blocks', None, True),
        ('keep', 'FFN channels of a layer', None, True),
        ('parameters', 'Parameters', '', True),
        ('parameters_blocks', 'Parameters of the blocks', '', True),
        ('parameters_untied', 'Parameters with an untied head', '', False),
        ('bytes', f'Weights in {stored.get("dtype")}', 'B', False),
        ('decode_weight_bytes', 'Weights read for each decoded token', 'B', False),
        ('kv_bytes_per_token', 'KV cache for each token', 'B', False),
        ('prefill_flops', f'Prefill of {prompt} tokens', 'FLOP', True),
        (
            'prefill_flops_with_head',
            f'Prefill of {prompt} tokens, last unembedding included',
            'FLOP',
            False,
        ),
        ('decode_flops', 'Decoding the next token', 'FLOP', True),
        ('total_flops', f'Prefill {prompt} + answer {answer}', 'FLOP', True),
    ):
        before, after = (formats.number(x.get(name)) for x in (dense, pruned))
        if not before or after is None:
            continue
        if name == 'layers' and before == after:  # Only channels were removed.
            continue

        def show(value: float, unit: str | None = unit) -> str:
            return f'{value:.0f}' if unit is None else formats.quantity(value, unit)

        rows.append(TableRow(label, show(before), show(after), after / before, drawn))
    return rows
