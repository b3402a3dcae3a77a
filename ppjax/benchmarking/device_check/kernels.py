"""Choices inside a step that only a device can decide, each way timed and compared."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.benchmarking import matrix_peak
from ppjax.benchmarking.device_check import shapes, steps
from ppjax.benchmarking.device_check import sizes as sizes_lib
from ppjax.evaluation import timing
from ppjax.models import attention, fused_attention

_REPEATS = 10
_CHUNK_STEP = 32


def _seconds(run: Callable[[], Any]) -> dict[str, float]:
    jax.block_until_ready(run())
    return timing.spread(
        [timing.timed(lambda: jax.block_until_ready(run()))[0] for _ in range(_REPEATS)]
    )


def _attention(sizes: sizes_lib.Sizes) -> dict[str, Any]:
    """The packed pattern of one layer of the 3B step, with its gradients."""
    cfg, step = sizes.shaped(shapes.LLAMA_3B).config, sizes.step(shapes.LLAMA_3B)
    chunk = -(-step.own // _CHUNK_STEP) * _CHUNK_STEP
    length = step.persona + chunk * step.batch
    places = np.arange(chunk * step.batch) % chunk
    segments = jnp.asarray((places < step.own).astype(np.int32))[None]

    def drawn(seed: int, heads: int) -> jax.Array:
        shape = (1, length, heads, cfg.head_dim)
        return jax.random.normal(jax.random.key(seed), shape).astype(sizes.dtype)

    n, kv = cfg.num_heads, cfg.num_kv_heads
    q, k, v, back = (drawn(i, heads) for i, heads in enumerate((n, kv, kv, n)))

    def of(fused: fused_attention.Implementation | None) -> Callable[..., Any]:
        pattern = attention.Packed(step.persona, chunk, segments, fused=fused)

        def run(q: jax.Array, k: jax.Array, v: jax.Array, back: jax.Array) -> Any:
            out, pull = jax.vjp(lambda *x: pattern(*x)[0], q, k, v)
            return out, pull(back)

        return jax.jit(run)

    plain = of(None)
    want = plain(q, k, v, back)
    found: dict[str, Any] = {
        'plain': {'seconds': _seconds(lambda: plain(q, k, v, back))}
    }
    try:
        steps.check_fused(cfg.head_dim, sizes.dtype)
        fused = of(fused_attention.CUDNN)
        got = fused(q, k, v, back)
        found['cudnn'] = {
            'seconds': _seconds(lambda: fused(q, k, v, back)),
            'largest_differences': [
                float(
                    np.abs(np.asarray(x, np.float32) - np.asarray(y, np.float32)).max()
                )
                for x, y in zip(
                    jax.tree.leaves(got), jax.tree.leaves(want), strict=True
                )
            ],
            'largest_values': [
                float(np.abs(np.asarray(y, np.float32)).max())
                for y in jax.tree.leaves(want)
            ],
        }
    except Exception as error:  # noqa: BLE001  A kernel's refusal has any type.
        found['cudnn'] = {'failed': errors.one_line(str(error))}
    return found


def _product(sizes: sizes_lib.Sizes) -> dict[str, Any]:
    """The FFN's product, rounded after it (as the package does) or in it."""
    cfg, step = sizes.shaped(shapes.LLAMA_3B).config, sizes.step(shapes.LLAMA_3B)
    tokens = step.persona + step.own * step.batch
    dims = (tokens, cfg.d_model, cfg.d_ff)
    return {
        name: {'seconds': _seconds(run), 'flops': 2 * tokens * cfg.d_model * cfg.d_ff}
        for name, run in matrix_peak.rounded_two_ways(dims, sizes.dtype).items()
    }


def measure(sizes: sizes_lib.Sizes, _: dict[str, Any]) -> dict[str, Any]:
    """Attention and a product, each way."""
    return {
        'dtype': sizes.dtype,
        'packed_attention_of_a_layer': _attention(sizes),
        'ffn_product': _product(sizes),
    }
