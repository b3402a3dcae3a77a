"""Batched generation with a key/value cache.

Prompts are padded on the right. One call fills the cache with them, then each
call of the decode step adds one token to every row; whatever a padded slot holds
is overwritten by the row's own next tokens before any of them may look there.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.models import attention, shared_prefix, unstacked
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import tokens as tokens_lib
from ppjax.parallel import execution, sharding

# An answer is long where steps multiply with more weights than this in all: programs that
# compile for seconds pay there. Blocks run one by one then, and the cache grows with the
# answer, from so many slots on, since a step looks at every slot there is.
_LONG = 16 << 30
_LEAST_SLOTS = 256
# Prompt and cache lengths are rounded up to multiples of this at least.
_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: draws from the likeliest tokens that together have this probability.
        top_k: draws from this many likeliest tokens, before `top_p`; None from all.

    Raises:
        InputError: if a value is out of range, or has no effect.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise errors.InputError(
                f'--temperature must be 0 or more, got {self.temperature}.'
            )
        if not 0 < self.top_p <= 1:
            raise errors.InputError(f'--top_p must be in (0, 1], got {self.top_p}.')
        if self.top_k is not None and self.top_k < 1:
            raise errors.InputError(f'--top_k must be at least 1, got {self.top_k}.')
        if self.temperature == 0 and (self.top_p != 1 or self.top_k is not None):
            raise errors.InputError(
                '--top_p and --top_k have no effect at --temperature=0, which takes '
                'the likeliest token; raise the temperature or leave them out.'
            )


GREEDY = Sampling()


def bucket(length: int) -> int:
    """`length` rounded up so that few different lengths are ever compiled.

    Four sizes an octave, and no steps below 64: at most 25% (or 63) too many.
    """
    step = max(_BUCKET, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def likeliest(logits: jax.Array) -> jax.Array:
    """The first of the largest, [..., V] -> [...] int32.

    As `jnp.argmax`, of which a CPU makes a slow loop over pairs of number and place.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    # The last, should none equal the largest, as where there is NaN.
    found = jnp.where(logits == largest, places, places[-1])
    return jnp.min(found, axis=-1)


def draw(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """Next tokens, [B, V] float32 logits and [B] keys -> [B] int32."""
    if sampling.temperature == 0:
        return likeliest(logits)
    # Relative to the largest, a tiny temperature gives 0 and -inf, never inf - inf;
    # below float32's smallest number it would be 0 itself.
    scores = logits - jnp.max(logits, axis=-1, keepdims=True)
    scores = scores / max(sampling.temperature, float(jnp.finfo(jnp.float32).tiny))
    vocab_size = logits.shape[-1]
    count = min(sampling.top_k or vocab_size, vocab_size)
    if count == vocab_size and sampling.top_p == 1:
        return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
    scores, ids = jax.lax.top_k(scores, count)  # [B, count], descending
    share = jax.nn.softmax(scores, axis=-1)
    likelier = jnp.cumsum(share, axis=-1) - share
    scores = jnp.where(likelier < sampling.top_p, scores, -jnp.inf)
    choice = jax.vmap(jax.random.categorical)(keys, scores)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _row_keys(keys: jax.Array, slots: jax.Array) -> jax.Array:
    """[B] keys for drawing the tokens of these slots [B], one stream a row.

    A row's draws depend neither on the other rows nor on the padding.
    """
    return jax.vmap(jax.random.fold_in)(keys, slots)


@functools.partial(jax.jit, static_argnames=('slots', 'sampling'))
def _prefill(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    tokens: jax.Array,
    lengths: jax.Array,
    prefix: shared_prefix.SharedPrefix | None,
    keys: jax.Array,
    *,
    slots: int,
    sampling: Sampling,
) -> tuple[attention.KVCache, jax.Array, jax.Array]:
    """Prompts [B, T] of lengths [B] -> (cache, first tokens [B], their slots [B]).

    The cache has S slots a row; the prefix, if any, comes first in every row.
    """
    batch, length = tokens.shape
    cache = shared_prefix.empty_cache(model, batch, slots)
    start, held = jnp.int32(0), 0
    if prefix is not None:
        start = prefix.length
        held = prefix.cache.k.shape[3]
        # What the prefix's unused slots hold is overwritten by the row's own tokens.
        cache = attention.KVCache(
            *(
                own.at[:, :, :, :held].set(shared)
                for own, shared in zip(cache, prefix.cache, strict=True)
            )
        )
    positions = jnp.broadcast_to(start + jnp.arange(length)[None], (batch, length))
    attend = attention.Prompt(positions, held, start)
    hidden, cache, _ = model(tokens, positions, masks, attend, cache=cache)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    logits = model.unembed(last)  # [B, V]
    following = start + lengths
    drawn = draw(logits, _row_keys(keys, following), sampling)
    return cache, execution.whole(drawn), following


@functools.partial(jax.jit, static_argnames=('sampling',), donate_argnames=('cache',))
def _step(
    model: unstacked.Steps,
    masks: masks_lib.Masks,
    cache: attention.KVCache,
    tokens: jax.Array,
    positions: jax.Array,
    keys: jax.Array,
    *,
    sampling: Sampling,
) -> tuple[attention.KVCache, jax.Array, jax.Array]:
    """Feeds tokens [B] into slots [B] -> (cache, next tokens, their slots)."""
    model = unstacked.module(model)
    at = positions[:, None]
    hidden, cache, _ = model(
        tokens[:, None], at, masks, attention.Cached(at), cache=cache
    )
    logits = model.unembed(hidden[:, 0])  # [B, V]
    positions = positions + 1
    drawn = draw(logits, _row_keys(keys, positions), sampling)
    return cache, execution.whole(drawn), positions


def _is_long(model: decoder_lib.Decoder, steps: int) -> bool:
    """Whether so many steps at most are worth programs of their own, on a CPU."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.blocks))
    return unstacked.is_on_one_cpu(model) and steps * weights > _LONG


def _slots_of_growing(filled: int) -> int:
    """Slots of a cache that grows, for so many tokens: two sizes an octave."""
    half = max(_LEAST_SLOTS, 1 << (filled - 1).bit_length()) // 4
    return max(_LEAST_SLOTS, -(-filled // half) * half)


@functools.partial(jax.jit, static_argnames=('slots',))
def _grown(cache: attention.KVCache, *, slots: int) -> attention.KVCache:
    """A cache with more slots a row, the new ones empty."""
    more = [(0, 0)] * 3 + [(0, slots - cache.k.shape[3]), (0, 0)]
    return attention.KVCache(*(jnp.pad(held, more) for held in cache))


def check_prompts(
    cfg: config_lib.ModelConfig, prompts: Sequence[Sequence[int]], *, shared: int = 0
) -> None:
    """Refuses prompts that are empty, too long or of tokens without an embedding.

    Args:
        cfg: of the model.
        prompts: token ids.
        shared: tokens that stand before each of them.

    Raises:
        InputError, ValueError: see `stream`.
    """
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f'prompt {number} is empty; wanted one token at least.')
        if shared + len(prompt) >= cfg.max_position:
            raise errors.InputError(
                f'A prompt of {shared + len(prompt)} tokens leaves no room for an answer: '
                f'the model has {cfg.max_position} positions.'
            )
        tokens_lib.refuse_unembedded(prompt, cfg.vocab_size)


def stream(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    sampling: Sampling = GREEDY,
    seed: int = 0,
    prefix: shared_prefix.SharedPrefix | None = None,
    streams: Sequence[int] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[np.ndarray]:
    """Answers to B prompts, one token of each at a time.

    A row ends with its stop token, after `max_new_tokens`, or where prompt and
    answer fill the model's positions. In float32 a row's greedy tokens do not
    depend on the other rows.

    Args:
        model: the decoder.
        masks: what of it is masked.
        prompts: B lists of token ids, of any lengths.
        max_new_tokens: at most this many tokens a row, the stop token included.
        stop_ids: the tokens that end a row; they are given out too.
        sampling: how tokens are drawn.
        seed: fixes the draws.
        prefix: what all prompts start with, computed under the same `masks`,
            of which then no row has its own; `prompts` are then what follows it.
        streams: a number below 2^32 a row, which with the seed fixes its draws;
            0, 1, ... by default.
        mesh: spreads the rows, a multiple of `sharding.row_shards`; the model lies on
            it, and the prefix is replicated.

    Returns:
        int32 [B] arrays: each row's next token, or -1 once the row has ended. The
        last array has at least one token.

    Raises:
        InputError: if a prompt fills the model's positions, or has tokens that the
            model does not embed.
        ValueError: if a prompt is empty or `max_new_tokens` is not positive.
        AssertionError: if a mask has another shape.
    """
    if max_new_tokens < 1:
        raise ValueError(f'max_new_tokens must be at least 1, got {max_new_tokens}.')
    shared = 0 if prefix is None else int(prefix.length)
    masks.check(model.cfg, rows=len(prompts))
    check_prompts(model.cfg, prompts, shared=shared)
    stops = np.fromiter(stop_ids, np.int32)

    def place(rows: Any) -> jax.Array:
        return jnp.asarray(rows) if mesh is None else sharding.shard_rows(rows, mesh)

    def drawn_tokens() -> Iterator[np.ndarray]:
        run = functools.partial(execution.call, mesh)
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        limits = np.minimum(max_new_tokens, model.cfg.max_position - shared - lengths)
        padded = np.zeros((len(prompts), bucket(int(lengths.max()))), np.int32)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt

        steps = int(limits.max())
        stepping: unstacked.Steps = model
        is_long = _is_long(model, steps)
        if is_long and unstacked.is_worth_it(model):
            stepping = unstacked.unstacked(model)
        held = 0 if prefix is None else prefix.cache.k.shape[3]
        longest = shared + int(lengths.max())
        most = shared + int((lengths + limits).max())
        slots = max(held, bucket(most))
        if is_long:
            slots = max(held, _slots_of_growing(longest + 1))
        numbers = range(len(prompts)) if streams is None else streams
        keys = place(
            jax.vmap(jax.random.fold_in, (None, 0))(
                jax.random.key(seed), np.asarray(numbers, np.uint32)
            )
        )
        cache, tokens, positions = run(
            _prefill,
            model,
            masks,
            place(padded),
            place(lengths),
            prefix,
            keys,
            slots=slots,
            sampling=sampling,
        )
        ended = np.zeros(len(prompts), bool)
        for count in range(1, steps + 1):
            now = tokens
            # The next step is under way while the host looks at this one's tokens. At
            # worst it was one too many.
            if count < steps:
                filled = min(longest + count, most)
                if is_long and filled > slots:
                    slots = _slots_of_growing(filled)
                    cache = _grown(cache, slots=slots)
                cache, tokens, positions = run(
                    _step,
                    stepping,
                    masks,
                    cache,
                    tokens,
                    positions,
                    keys,
                    sampling=sampling,
                )
            drawn = np.where(ended, -1, jax.device_get(now))
            yield drawn
            # Ended rows run on and are not looked at: nothing reads another row, and
            # writes past the end of the cache are dropped.
            ended |= np.isin(drawn, stops) | (count >= limits)
            if ended.all():
                return

    # Checked above at the call, not when the first token is asked for.
    return drawn_tokens() if prompts else iter(())


def generate(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    prompts: Sequence[Sequence[int]],
    **options: Any,
) -> list[list[int]]:
    """The answers of `stream`, whole: B lists, each with its stop token if any.

    Args:
        model: and all else: see `stream`.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for tokens in stream(model, masks, prompts, **options):
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if token >= 0:
                answer.append(token)
    return answers
