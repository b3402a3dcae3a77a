"""From logits to tokens, each row by a `Sampling` of its own.

What differs from row to row is data, so that any mix of requests runs the same compiled
code. A row's token depends on its own logits, settings and history alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.models import generation
from ppjax.serving import jobs

# NumPy's on the host, JAX's within a program.
Array = Any

# Of bias and DRY together, so many tokens of a row can have something added.
MOST_EXTRAS = 1024


class Settings(NamedTuple):
    """The settings of B rows, [B] each; see `sampling.Sampling`.

    Attributes:
        keys: [B, 2] uint32, from seed and choice; see `key_of`.
        slots: place of the token that is drawn in its row, which makes it another draw.
        top_k: 0 for all.
        extra_ids: [B, `MOST_EXTRAS`] tokens that have something added; V for none.
        extra_values: what is added.
    """

    keys: Array
    slots: Array
    temperature: Array
    min_p: Array
    top_k: Array
    top_p: Array
    repetition: Array
    frequency: Array
    presence: Array
    xtc_probability: Array
    xtc_threshold: Array
    extra_ids: Array
    extra_values: Array


class History(NamedTuple):
    """What rows have said, for their penalties.

    Attributes:
        prompted: bool [B, V], tokens of the prompt.
        counts: int32 [B, V], how often the answer has each.
    """

    prompted: jax.Array
    counts: jax.Array


class Chosen(NamedTuple):
    """What came of it.

    Attributes:
        tokens: int32 [B].
        logprobs: float32 [B], of these as the model has them.
        top_ids: int32 [B, `jobs.MOST_LOGPROBS`], the likeliest, descending.
        top_logprobs: theirs.
        enough: bool [B], whether as many candidates as were looked at decide; where
            not, the token is of no use.
    """

    tokens: jax.Array
    logprobs: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array
    enough: jax.Array


def key_of(seed: int, choice: int) -> np.ndarray:
    """The key [2] of a row's draws: that of `models.generation` for the same numbers."""
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    key = jax.random.key(np.uint32(low))
    if high:
        key = jax.random.fold_in(key, np.uint32(high))
    key = jax.random.fold_in(key, np.uint32(choice))
    return np.asarray(jax.random.key_data(key))


def greedy(logits: jax.Array) -> jax.Array:
    """The likeliest tokens of [B, V], int32 [B]."""
    return generation.likeliest(logits)


def choose(
    logits: jax.Array, settings: Settings, history: History, *, candidates: int
) -> Chosen:
    """Draws a token a row.

    Args:
        logits: float32 [B, V].
        settings: of the rows.
        history: of the rows.
        candidates: so many likeliest tokens are sorted, for `top_k`, `top_p` and
            `min_p`. With V of them every row has enough.
    """
    vocab = logits.shape[-1]
    count = min(candidates, vocab)
    scores = _penalised(logits, settings, history)
    likeliest = greedy(scores)
    is_greedy = settings.temperature == 0
    # As in `generation.draw`: relative to the largest, no temperature makes inf - inf.
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    tiny = float(jnp.finfo(jnp.float32).tiny)
    scores = scores / jnp.maximum(settings.temperature, tiny)[:, None]
    keys = jax.vmap(jax.random.fold_in)(
        jax.random.wrap_key_data(settings.keys), settings.slots
    )
    # Noise belongs to tokens, so how many candidates are looked at changes no draw.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab,), jnp.float32))(keys)
    excludes = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(
        keys
    )
    excludes = excludes < settings.xtc_probability

    free = _without_top_choices(scores, settings.xtc_threshold, excludes)
    drawn = jnp.argmax(free + noise, axis=-1).astype(jnp.int32)

    values, ids = jax.lax.top_k(scores, count)  # [B, K], descending
    whole = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    share = jnp.exp(values - whole)  # Of all tokens.
    likely = values >= jnp.log(settings.min_p)[:, None]
    among = jnp.where(settings.top_k == 0, vocab, settings.top_k)[:, None]
    inside = likely & (jnp.arange(count)[None] < among)
    # Of what is left by `min_p` and `top_k`, which are known whole where they cut here.
    is_cut = ~inside[:, -1]
    left = jnp.where(
        is_cut, jnp.sum(jnp.where(inside, share, 0.0), axis=-1), jnp.float32(1.0)
    )
    share = jnp.where(inside, share, 0.0) / left[:, None]
    before = jnp.cumsum(share, axis=-1) - share
    # Where all is wanted, rounding must not leave the last ones out.
    top_p = jnp.where(settings.top_p >= 1, jnp.inf, settings.top_p)
    kept = inside & (before < top_p[:, None])
    only_top_p = (settings.top_k == 0) & (settings.min_p == 0)
    enough = is_cut | (only_top_p & ~kept[:, -1]) | (count == vocab)
    kept_values = jnp.where(kept, values, -jnp.inf)
    kept_values = _without_top_choices(kept_values, settings.xtc_threshold, excludes)
    place = jnp.argmax(
        kept_values + jnp.take_along_axis(noise, ids, axis=-1), axis=-1, keepdims=True
    )
    cut = jnp.take_along_axis(ids, place, axis=-1)[:, 0].astype(jnp.int32)

    is_free = (settings.top_k == 0) & (settings.top_p >= 1) & (settings.min_p == 0)
    tokens = jnp.where(is_free, drawn, cut)
    tokens = jnp.where(is_greedy, likeliest, tokens)

    total = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - total
    most = min(jobs.MOST_LOGPROBS, vocab)
    top, top_ids = jax.lax.top_k(logits, most)
    return Chosen(
        tokens,
        own,
        top_ids.astype(jnp.int32),
        top - total[:, None],
        enough | is_free | is_greedy,
    )


def _penalised(logits: jax.Array, settings: Settings, history: History) -> jax.Array:
    """Bias, DRY and the three penalties, taken off logits [B, V]."""
    rows = jnp.arange(len(logits))[:, None]
    scores = logits.at[rows, settings.extra_ids].add(settings.extra_values, mode='drop')
    said = history.prompted | (history.counts > 0)
    by = jnp.where(said, settings.repetition[:, None], jnp.float32(1.0))
    scores = jnp.where(scores > 0, scores / by, scores * by)
    counts = history.counts.astype(jnp.float32)
    scores -= settings.frequency[:, None] * counts
    return scores - settings.presence[:, None] * (counts > 0)


def _without_top_choices(
    scores: jax.Array, threshold: jax.Array, excludes: jax.Array
) -> jax.Array:
    """XTC: scores [B, K] without the likely tokens but the least likely of them.

    Args:
        scores: logarithms; -inf of what is out already.
        threshold: [B], from which share on a token is likely.
        excludes: bool [B], whether it happens.
    """
    share = jax.nn.softmax(scores, axis=-1)
    above = share >= threshold[:, None]
    least = jnp.min(jnp.where(above, share, jnp.inf), axis=-1, keepdims=True)
    out = above & (share > least) & excludes[:, None]
    return jnp.where(out, -jnp.inf, scores)
