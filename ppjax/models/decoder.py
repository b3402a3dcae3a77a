"""The decoder of Llama and Qwen: a frozen function of tokens and masks.

Axis letters: B batch rows, T tokens, D model width, N query heads, K kv heads,
H head dim, F FFN channels, L layers, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from ppjax.models import attention, products
from ppjax.models import config as config_lib
from ppjax.models import masks as masks_lib
from ppjax.models import matrix as matrix_lib
from ppjax.models import rope as rope_lib
from ppjax.parallel import execution

# Given a block's input and output [B, T, D] and its FFN activations before the mask
# [B, T, F], returns what to keep of them; the results are stacked over layers.
Tap = Callable[[jax.Array, jax.Array, jax.Array], Any]

# Name of a block's weight [in, out] -> (a [in, r], b [r, out]) in float32, whose
# product is added to it.
Adapters = Mapping[str, tuple[jax.Array, jax.Array]]

# What is recomputed in the backward pass: nothing; all but the products with
# weights (attention and element-wise parts, cheap to redo and large to keep); or
# each whole block.
REMAT = ('none', 'dots', 'full')
_PRODUCT = 'product with a weight'


def rms_norm(
    x: jax.Array, weight: jax.Array, eps: float, gain: masks_lib.Array | None = None
) -> jax.Array:
    """x / rms(x) * weight over the last axis, in float32; keeps x's dtype.

    A gain [D], or [B, D] for x [B, T, D], multiplies the weight.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    scale = jnp.expand_dims(weight, range(x.ndim - 1))
    if gain is not None:
        scale = scale.astype(jnp.float32) * _per_row(gain)
    return products.scaled(y.astype(x.dtype), scale)


def _per_row(mask: masks_lib.Array) -> jax.Array:
    """A mask [F], or [B, F] for one a row, as [1 or B, 1, F]."""
    return jnp.atleast_2d(mask)[:, None, :]


class Inside(NamedTuple):
    """What a block has computed on its way.

    Attributes:
        middle: the stream between attention and FFN, [B, T, D].
        hidden: FFN activations before the mask, [B, T, F].
    """

    middle: jax.Array
    hidden: jax.Array


class DecoderBlock(nnx.Module):
    """Pre-norm attention and SwiGLU. Holds parameters only; never mutated.

    Where the model's stream is rotated (`ModelConfig.out_width`), `turn_attention` and
    `turn_ffn` [D, D] multiply it on its way past each half.
    """

    def __init__(
        self,
        cfg: config_lib.ModelConfig,
        *,
        dtype: jax.typing.DTypeLike,
        key: Any,
        int8_matrices: bool = False,
    ):
        """Random weights; see `Decoder`."""
        keys = iter(jax.random.split(key, 16))
        d, f, h = cfg.d_model, cfg.d_ff, cfg.head_dim
        n, kv = cfg.num_heads, cfg.num_kv_heads

        def matrix(*shape: int) -> matrix_lib.Matrix:
            noise = jax.random.normal(next(keys), shape, jnp.float32)
            return matrix_lib.Matrix(
                noise * shape[0] ** -0.5, dtype=dtype, int8=int8_matrices
            )

        def bias(used: bool, *shape: int) -> nnx.Param | None:
            return nnx.Param(jnp.zeros(shape, dtype)) if used else None

        def scale(used: bool, *shape: int) -> nnx.Param | None:
            return nnx.Param(jnp.ones(shape, dtype)) if used else None

        self.cfg = cfg
        self.attn_norm = nnx.Param(jnp.ones((d,), dtype))
        self.w_q = matrix(d, n * h)
        self.w_k = matrix(d, kv * h)
        self.w_v = matrix(d, kv * h)
        self.w_o = matrix(n * h, d)
        self.b_q = bias(cfg.qkv_bias, n * h)
        self.b_k = bias(cfg.qkv_bias, kv * h)
        self.b_v = bias(cfg.qkv_bias, kv * h)
        self.b_o = bias(cfg.out_bias, d)
        self.q_norm = scale(cfg.qk_norm, h)
        self.k_norm = scale(cfg.qk_norm, h)
        self.ffn_norm = nnx.Param(jnp.ones((d,), dtype))
        self.w_gate = matrix(d, f)
        self.w_up = matrix(d, f)
        self.w_down = matrix(f, d)
        self.b_gate = bias(cfg.mlp_bias, f)
        self.b_up = bias(cfg.mlp_bias, f)
        self.b_down = bias(cfg.mlp_bias, d)
        is_turned = cfg.out_width is not None
        self.turn_attention = matrix(d, d) if is_turned else None
        self.turn_ffn = matrix(d, d) if is_turned else None

    def __call__(
        self,
        x: jax.Array,
        masks: masks_lib.Masks,
        rope: tuple[jax.Array, jax.Array],
        attend: attention.Attend,
        cache: Any,
        adapters: Adapters | None = None,
    ) -> tuple[jax.Array, Inside, Any]:
        """x [B, T, D] -> (x [B, T, D], what is inside, cache).

        The masks are those of this layer, without an axis for it.
        """
        eps = self.cfg.norm_eps
        adapters = adapters or {}
        normed = rms_norm(x, self.attn_norm[...], eps, masks.attn_norm)
        attended, cache = self.attention(
            normed, rope, attend, cache, adapters, masks.attention
        )
        middle = _past(x, self.turn_attention) + attended
        normed = rms_norm(middle, self.ffn_norm[...], eps, masks.ffn_norm)
        y, hidden = self.ffn(normed, masks.channels, adapters)
        return _past(middle, self.turn_ffn) + y, Inside(middle, hidden), cache

    def heads(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        attend: attention.Attend,
        cache: Any,
        adapters: Adapters,
    ) -> tuple[jax.Array, Any]:
        """What the heads find, before `w_o`: x [B, T, D] -> ([B, T, N*H], cache)."""
        cfg = self.cfg

        def projected(name: str, b: nnx.Param | None, count: int) -> jax.Array:
            y = self._linear(name, x, b, adapters)
            return y.reshape((*x.shape[:2], count, cfg.head_dim))

        q = projected('w_q', self.b_q, cfg.num_heads)
        k = projected('w_k', self.b_k, cfg.num_kv_heads)
        v = projected('w_v', self.b_v, cfg.num_kv_heads)
        # Qwen3: each head is normalised before the rotation.
        if self.q_norm is not None and self.k_norm is not None:
            q = rms_norm(q, self.q_norm[...], cfg.norm_eps)
            k = rms_norm(k, self.k_norm[...], cfg.norm_eps)
        out, cache = attend(
            rope_lib.rotate(q, rope), rope_lib.rotate(k, rope), v, cache
        )
        return out.reshape((*x.shape[:2], -1)), cache

    def attention(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        attend: attention.Attend,
        cache: Any,
        adapters: Adapters,
        mask: masks_lib.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Grouped-query attention, x [B, T, D] -> ([B, T, D], cache).

        What the heads found is masked by [N*H], or [B, N*H] for one mask a row.
        """
        found, cache = self.heads(x, rope, attend, cache, adapters)
        if mask is not None:
            found = products.scaled(found, _per_row(mask))
        return self._linear('w_o', found, self.b_o, adapters), cache

    def ffn(
        self, x: jax.Array, channels: masks_lib.Array | None, adapters: Adapters
    ) -> tuple[jax.Array, jax.Array]:
        """SwiGLU with masked channels (paper, Eq. 4).

        A zero in the mask equals deleting that channel from all three weights.

        Args:
            x: [B, T, D].
            channels: their mask [F], [B, F] for one a row, or None for all.
            adapters: of any of the three weights.

        Returns:
            (y [B, T, D], the activations before the mask [B, T, F]).
        """
        gate = self._linear('w_gate', x, self.b_gate, adapters)
        up = self._linear('w_up', x, self.b_up, adapters)
        hidden = jax.nn.silu(gate) * up
        kept = hidden
        if channels is not None:
            kept = products.scaled(hidden, _per_row(channels))
        return self._linear('w_down', kept, self.b_down, adapters), hidden

    def _linear(
        self, name: str, x: jax.Array, b: nnx.Param | None, adapters: Adapters
    ) -> jax.Array:
        y = checkpoint_name(getattr(self, name).product(x), _PRODUCT)
        if name in adapters:
            down, up = adapters[name]
            narrow = products.product('btd,dr->btr', x.astype(down.dtype), down)
            y = (y + products.product('btr,rf->btf', narrow, up)).astype(y.dtype)
        return y if b is None else products.shifted(y, b[...][None, None, :])


def _past(x: jax.Array, turn: matrix_lib.Matrix | None) -> jax.Array:
    """The stream on its way past one half of a block."""
    return x if turn is None else turn.product(x)


def _blend(x: jax.Array, y: jax.Array, share: jax.Array) -> jax.Array:
    """x + share (y - x), exactly x at 0 and y at 1; keeps x's dtype.

    In float32: the gradient of `share` is a sum over all of x.
    """
    mixed = share * y.astype(jnp.float32) + (1 - share) * x.astype(jnp.float32)
    return mixed.astype(x.dtype)


def rematerialised(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """A layer of a scan, of which the backward pass recomputes what `REMAT` says.

    Raises:
        ValueError: if `remat` is none of it.
    """
    if remat == 'none':
        return layer
    if remat == 'full':
        return jax.checkpoint(layer)
    if remat == 'dots':
        # By name: the products themselves may be wider than what is made of them.
        keep = jax.checkpoint_policies.save_only_these_names(_PRODUCT)
        return jax.checkpoint(layer, policy=keep)
    raise ValueError(f'remat must be one of {REMAT}, got {remat!r}.')


def _over_layers(layer: Callable[..., Any], start: Any, scanned: Any) -> Any:
    """`jax.lax.scan`, or the same layer by layer where blocks are not stacked.

    Args:
        layer: takes what goes from layer to layer, and what is its own.
        start: what goes into the first.
        scanned: (numbers [L], blocks, whatever else has an axis of layers).
    """
    numbers, blocks, *others = scanned
    if not isinstance(blocks, nnx.List):
        return jax.lax.scan(layer, start, scanned)
    carry, kept = start, []
    for number, block in enumerate(blocks):
        own = jax.tree.map(lambda x, at=number: x[at], (numbers, *others))
        carry, found = layer(carry, (own[0], block, *own[1:]))
        kept.append(found)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)


class Decoder(nnx.Module):
    """Embedding, L stacked blocks, final norm and unembedding.

    Used as a plain pytree: every leaf of `blocks` has a leading [L] axis, so one
    compiled block serves all layers; but see `models.unstacked`.
    """

    def __init__(
        self,
        cfg: config_lib.ModelConfig,
        *,
        dtype: jax.typing.DTypeLike,
        key: jax.Array,
        int8_matrices: bool = False,
    ):
        """Random weights; `models.loading` fills in a checkpoint's.

        Args:
            cfg: the constants.
            dtype: of weights and activations.
            key: of the draw.
            int8_matrices: whether the blocks' matrices are int8 (`models.matrix`).
        """
        embed_key, head_key, block_key = jax.random.split(key, 3)

        out = cfg.d_model if cfg.out_width is None else cfg.out_width

        def table(key: jax.Array, width: int) -> nnx.Param:
            noise = jax.random.normal(key, (cfg.vocab_size, width), jnp.float32)
            return nnx.Param((noise * width**-0.5).astype(dtype))

        def rest(used: bool, size: int) -> nnx.Param | None:
            shape = (size, out - cfg.d_model)
            return nnx.Param(jnp.zeros(shape, dtype)) if used else None

        self.cfg = cfg
        self.embedding = table(embed_key, cfg.d_model)

        def block(key: jax.Array) -> DecoderBlock:
            return DecoderBlock(cfg, dtype=dtype, key=key, int8_matrices=int8_matrices)

        self.blocks = jax.vmap(block)(jax.random.split(block_key, cfg.num_layers))
        self.final_norm = nnx.Param(jnp.ones((out,), dtype))
        self.head = None if cfg.tie_embeddings else table(head_key, out)
        # In place of either, where answers are all that is wanted; see `int8_head`.
        self.int8_head: matrix_lib.Table | None = None
        # What the last block adds beyond its width, from its middle and its channels.
        is_wider = out > cfg.d_model
        self.last_turn = rest(is_wider, cfg.d_model)
        self.last_down = rest(is_wider, cfg.d_ff)
        self.last_bias = (
            nnx.Param(jnp.zeros((out - cfg.d_model,), dtype))
            if is_wider and cfg.mlp_bias
            else None
        )

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        masks: masks_lib.Masks,
        attend: attention.Attend,
        *,
        cache: attention.KVCache | None = None,
        remat: str = 'none',
        tap: Tap | None = None,
        adapters: Adapters | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """Runs all blocks.

        Args:
            tokens: [B, T] token ids.
            positions: [B, T] RoPE positions.
            masks: what counts as deleted; `masks.DENSE` for the dense model.
            attend: the attention pattern.
            cache: of the patterns that have one, or None.
            remat: what the backward pass recomputes; one of `REMAT`.
            tap: what to keep of every block; see `Tap`.
            adapters: with a leading [L] axis, or None; see `Adapters`.

        Returns:
            (hidden states after the final norm [B, T, D], cache, what `tap` kept
            with a leading [L] axis).
        """
        cfg = self.cfg
        chex.assert_equal_shape([tokens, positions])
        masks.check(cfg, rows=len(tokens))
        rope = rope_lib.rotation(
            positions,
            rope_lib.inverse_frequencies(
                cfg.head_dim, cfg.rope_theta, cfg.rope_scaling
            ),
        )
        x = execution.spread_looked_up(products.looked_up(self.embedding[...], tokens))

        def layer(carry: Any, scanned: Any) -> tuple[Any, Any]:
            x, cache, inside = carry
            number, block, own_masks, low_rank = scanned
            own = None if cache is None else attention.LayerCache(cache, number)
            y, found, own = block(x, own_masks, rope, attend, own, low_rank)
            if own_masks.blocks is not None:
                y = _blend(x, y, own_masks.blocks)
            y = execution.spread_rows(y)
            cache = None if own is None else own.whole
            # The last block's is all that is wanted, and that of a wider output alone.
            inside = None if inside is None else found
            return (y, cache, inside), None if tap is None else tap(x, y, found.hidden)

        body = rematerialised(layer, remat)
        numbers = jnp.arange(cfg.num_layers)
        scanned = (numbers, self.blocks, masks.of_layers(), adapters)
        start = None if self.last_turn is None else self._nothing_inside(x)
        (x, cache, inside), taps = _over_layers(body, (x, cache, start), scanned)
        eps = cfg.norm_eps
        if cfg.out_width is not None:
            # That of the blocks is of their width; see `ModelConfig.out_width`.
            eps *= cfg.d_model / cfg.out_width
        if inside is not None:
            x = jnp.concatenate([x, self._beyond(inside, masks.channels)], axis=-1)
        x = rms_norm(x, self.final_norm[...], eps, masks.final_norm)
        return x, cache, taps

    def _nothing_inside(self, x: jax.Array) -> Inside:
        return Inside(
            jnp.zeros_like(x), jnp.zeros((*x.shape[:2], self.cfg.d_ff), x.dtype)
        )

    def _beyond(self, inside: Inside, channels: masks_lib.Array | None) -> jax.Array:
        """What the last block puts out beyond the width of the stream, [B, T, ...]."""
        assert self.last_turn is not None and self.last_down is not None
        kept = inside.hidden
        if channels is not None:
            kept = products.scaled(kept, _per_row(channels[-1]))
        past = products.product('btd,de->bte', inside.middle, self.last_turn[...])
        found = past + products.product('btf,fe->bte', kept, self.last_down[...])
        if self.last_bias is None:
            return found
        return products.shifted(found, self.last_bias[...][None, None, :])

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., V]."""
        flat = execution.spread_rows(hidden.reshape(-1, hidden.shape[-1]))
        if self.int8_head is None:
            table = self.embedding if self.head is None else self.head
            logits = products.product('td,vd->tv', flat, table[...], jnp.float32)
        else:
            logits = self.int8_head.product(flat)
        return logits.reshape(*hidden.shape[:-1], -1)
