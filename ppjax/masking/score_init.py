"""Where scores start. The paper does not say; ours are options to measure."""

import jax
import jax.numpy as jnp

from ppjax.models import decoder as decoder_lib

KINDS = ('activation', 'random')


def random_scores(key: jax.Array, num_layers: int, d_ff: int) -> jax.Array:
    """z [L, F] ~ N(0, 1), float32.

    Drawn, not constant: top-k breaks ties by index, so equal scores would remove
    the last channels of every layer.
    """
    return jax.random.normal(key, (num_layers, d_ff), jnp.float32)


def square_sum_tap(weights: jax.Array) -> decoder_lib.Tap:
    """A tap that sums squared FFN activations over tokens.

    Args:
        weights: [B, T], how much each token counts; 0 for padding.

    Returns:
        A tap giving [F] a layer.
    """

    def tap(x: jax.Array, hidden: jax.Array) -> jax.Array:
        del x
        squares = jnp.square(hidden.astype(jnp.float32))
        return jnp.einsum('btf,bt->f', squares, weights)

    return tap


def activation_scores(
    square_sums: jax.Array, num_tokens: jax.Array, w_down: jax.Array
) -> jax.Array:
    """Scores from how much each channel adds to the residual stream.

    a_i = rms_t(h_ti) * |W_down_i|, the root mean square over calibration tokens of
    channel i times the norm of its output row; z is log a, standardised per layer
    so that one learning rate suits every layer.

    Args:
        square_sums: [L, F] sums of h_ti^2.
        num_tokens: how many tokens were summed.
        w_down: [L, F, D].

    Returns:
        z [L, F] with mean 0 and standard deviation 1 a layer, float32.
    """
    rms = jnp.sqrt(square_sums / num_tokens)
    norm = jnp.linalg.norm(w_down.astype(jnp.float32), axis=-1)
    # A channel that never fires has importance 0: keep its logarithm finite.
    log_importance = jnp.log(rms * norm + 1e-12)
    mean = jnp.mean(log_importance, axis=-1, keepdims=True)
    std = jnp.std(log_importance, axis=-1, keepdims=True)
    return (log_importance - mean) / jnp.maximum(std, 1e-6)
