"""Sizes and FLOPs of a decoder, pruned or not, in closed form from its config.

A multiply-add is two FLOPs. Products of weights or attention with activations
count; norms, RoPE, softmax, biases and element-wise products do not. Attention
counts all S x S pairs of a prompt, not the causal half, as the paper's Table 11
does.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ppjax.models import config as config_lib


class BlockSize(NamedTuple):
    """What one block holds.

    Attributes:
        channels: of its FFN.
        groups: key/value heads, each with its query heads.
    """

    channels: int
    groups: int


class Parameters(NamedTuple):
    """One model's, counted in the three ways that papers do.

    Attributes:
        unique: every parameter once; tied embeddings count once.
        untied: with an unembedding of its own, even if it is tied.
        blocks: of the blocks alone, norms and biases included.
    """

    unique: int
    untied: int
    blocks: int


def uniform(
    cfg: config_lib.ModelConfig,
    *,
    channels: int | None = None,
    layers: int | None = None,
) -> list[BlockSize]:
    """Blocks of one size.

    Args:
        cfg: of the dense model.
        channels: of each block; by default all F.
        layers: how many blocks; by default all L.
    """
    count = cfg.num_layers if layers is None else layers
    width = cfg.d_ff if channels is None else channels
    return [BlockSize(width, cfg.num_kv_heads)] * count


def _query_heads(cfg: config_lib.ModelConfig, size: BlockSize) -> int:
    return size.groups * (cfg.num_heads // cfg.num_kv_heads)


def block_weights(cfg: config_lib.ModelConfig, size: BlockSize) -> int:
    """Entries of one block's matrices, which is its multiply-adds a token."""
    d_q, d_kv = _query_heads(cfg, size) * cfg.head_dim, size.groups * cfg.head_dim
    found = cfg.d_model * (2 * d_q + 2 * d_kv + 3 * size.channels)
    # A rotation past either half.
    return found if cfg.out_width is None else found + 2 * cfg.d_model**2


def block_vectors(cfg: config_lib.ModelConfig, size: BlockSize) -> int:
    """Entries of one block's norms and biases."""
    d_q, d_kv = _query_heads(cfg, size) * cfg.head_dim, size.groups * cfg.head_dim
    entries = 2 * cfg.d_model
    if cfg.qkv_bias:
        entries += d_q + 2 * d_kv
    if cfg.out_bias:
        entries += cfg.d_model
    if cfg.mlp_bias:
        entries += 2 * size.channels + cfg.d_model
    if cfg.qk_norm:
        entries += 2 * cfg.head_dim
    return entries


def _matrices(cfg: config_lib.ModelConfig, sizes: Sequence[BlockSize]) -> int:
    """Entries of all blocks' matrices, what the last puts out beyond its width too."""
    found = sum(block_weights(cfg, size) for size in sizes)
    beyond = _out_width(cfg) - cfg.d_model
    return found + beyond * (cfg.d_model + sizes[-1].channels if beyond else 0)


def _out_width(cfg: config_lib.ModelConfig) -> int:
    return cfg.d_model if cfg.out_width is None else cfg.out_width


def embedding_entries(cfg: config_lib.ModelConfig) -> int:
    """V times the width of the stream."""
    return cfg.vocab_size * cfg.d_model


def head_entries(cfg: config_lib.ModelConfig) -> int:
    """V times the width of what is unembedded, which is the multiply-adds of a token."""
    return cfg.vocab_size * _out_width(cfg)


def parameters(cfg: config_lib.ModelConfig, sizes: Sequence[BlockSize]) -> Parameters:
    """Of a model of blocks of these sizes."""
    blocks = _matrices(cfg, sizes) + sum(block_vectors(cfg, x) for x in sizes)
    if cfg.mlp_bias:
        blocks += _out_width(cfg) - cfg.d_model
    untied = blocks + embedding_entries(cfg) + head_entries(cfg) + _out_width(cfg)
    return Parameters(
        unique=untied - head_entries(cfg) if cfg.tie_embeddings else untied,
        untied=untied,
        blocks=blocks,
    )


def _attention(
    cfg: config_lib.ModelConfig, sizes: Sequence[BlockSize], pairs: float
) -> float:
    """4 t N H a block: scores and weighted values of so many pairs of tokens."""
    return 4 * pairs * cfg.head_dim * sum(_query_heads(cfg, x) for x in sizes)


def prefill_flops(
    cfg: config_lib.ModelConfig, sizes: Sequence[BlockSize], tokens: float
) -> float:
    """2 S N_block + 4 S^2 N H a block: a prompt, the unembedding left out.

    Args:
        cfg: of the dense model.
        sizes: of the blocks.
        tokens: S; a mean over prompts need not be whole.

    Source: Persona-Pruner, arXiv:2606.14695, Table 11.
    """
    return 2 * tokens * _matrices(cfg, sizes) + _attention(cfg, sizes, tokens**2)


def decode_flops(
    cfg: config_lib.ModelConfig, sizes: Sequence[BlockSize], context: float
) -> float:
    """2 N_block + 4 t N H a block + 2 V D: one token, unembedding included.

    Args:
        cfg: of the dense model.
        sizes: of the blocks.
        context: t, the tokens that it attends to, itself included.
    """
    weights = _matrices(cfg, sizes) + head_entries(cfg)
    return 2 * weights + _attention(cfg, sizes, context)
