"""Where scores start. The paper does not say; ours are options to measure."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.models import decoder as decoder_lib
from ppjax.models import products

KINDS = ('activation', 'taylor', 'random')


def start_masks(start: str) -> list[str]:
    """The mask files that a start names; none where it is one of `KINDS`.

    Raises:
        InputError: if it is neither.
    """
    if start in KINDS:
        return []
    files = [part.strip() for part in start.split(',')]
    if not all(file.endswith('.pmask') for file in files):
        raise errors.InputError(
            f'--score_init must be {", ".join(KINDS)}, or .pmask files with commas '
            f'between them, got {start!r}.'
        )
    return files


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

    def tap(before: jax.Array, after: jax.Array, hidden: jax.Array) -> jax.Array:
        del before, after
        squares = jnp.square(hidden.astype(jnp.float32))
        return products.product('btf,bt->f', squares, weights)

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
    chex.assert_shape(w_down, (*square_sums.shape, None))
    rms = jnp.sqrt(square_sums / num_tokens)
    norm = jnp.linalg.norm(w_down.astype(jnp.float32), axis=-1)
    return _standardised(rms * norm)


def cosine_sum_tap(weights: jax.Array) -> decoder_lib.Tap:
    """A tap that sums the cosine of a block's input and output over tokens.

    Args:
        weights: as for `square_sum_tap`.

    Returns:
        A tap giving [] a layer.
    """

    def tap(before: jax.Array, after: jax.Array, hidden: jax.Array) -> jax.Array:
        del hidden
        x, y = before.astype(jnp.float32), after.astype(jnp.float32)
        norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
        # Padding may be zero vectors.
        cosine = jnp.sum(x * y, axis=-1) / jnp.maximum(norms, 1e-30)
        return jnp.sum(cosine * weights)

    return tap


def influence_scores(cosine_sums: jax.Array, num_tokens: jax.Array) -> jax.Array:
    """Scores of blocks from how much each turns the residual stream.

    a_l = 1 - mean_t cos(block input, block output); z is log a, standardised.

    Args:
        cosine_sums: [L] sums over calibration tokens.
        num_tokens: how many tokens were summed.

    Returns:
        z [1, L] with mean 0 and standard deviation 1, float32.

    Source: the block influence of ShortGPT, Men et al., arXiv:2403.03853.
    """
    return _standardised(jnp.maximum(1 - cosine_sums / num_tokens, 0)[None])


def taylor_scores(square_sums: jax.Array) -> jax.Array:
    """Scores from how much the loss would change without each channel or block.

    To first order, removing unit i changes the loss of a batch by its gradient with
    respect to mask bit i at the dense model; z is the log of that gradient's root
    mean square over batches, standardised per row.

    Args:
        square_sums: [R, U] sums over batches of the squared gradient.

    Returns:
        z [R, U] with mean 0 and standard deviation 1 a row, float32.

    Source: the first-order criterion of Molchanov et al., arXiv:1906.10771.
    """
    return _standardised(jnp.sqrt(square_sums))


def _standardised(importance: jax.Array) -> jax.Array:
    # A channel that never fires has importance 0: keep its logarithm finite.
    log_importance = jnp.log(importance + 1e-12)
    mean = jnp.mean(log_importance, axis=-1, keepdims=True)
    std = jnp.std(log_importance, axis=-1, keepdims=True)
    return (log_importance - mean) / jnp.maximum(std, 1e-6)


def mask_scores(votes: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """Scores from masks that were learned before, of other personas for instance.

    Channels are ranked by how many of the masks keep them, equals by their activation
    score, and get a standard normal's quantiles in that order: the first mask of a
    start from one mask is that mask, with its likeliest changes at the border.

    Args:
        votes: [M, L, F], one or more masks, or minus their ranks.
        activation: [L, F], from `activation_scores`.

    Returns:
        z [L, F] with mean 0 and standard deviation about 1 a layer, float32.
    """
    num_channels = activation.shape[-1]
    order = np.lexsort((activation, votes.sum(axis=0)), axis=-1)
    rank = np.argsort(order, axis=-1, kind='stable')
    quantile = (rank + 0.5) / num_channels
    return np.asarray(jax.scipy.stats.norm.ppf(quantile), np.float32)
