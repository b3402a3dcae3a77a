"""The compiled programs of a lane, one for each shape, all made before the port opens.

A lane is a decoder with rows of its own. Few shapes serve all loads: a step is compiled
for widths of 1, 2, 4, ... rows and for spans of the cache that grow by two, reading for
two lengths of chunks and the same spans.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import cores
from ppjax.models import attention, shared_prefix, unstacked
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.parallel import execution, sharding
from ppjax.serving import choosing

# Tokens of a block of a known prefix, and of the shorter chunk that is read: a short
# question behind a known prefix should not cost a long chunk.
BLOCK = 32
CHUNKS = (BLOCK, 4 * BLOCK)
_LEAST_SPAN = 512
_CANDIDATES = 256
# Longest span whose steps run blocks one by one: what that saves is the same for all,
# and a smaller part of longer ones, while each such program takes seconds to compile.
_MOST_APART = 1024


class State(NamedTuple):
    """What a lane keeps on the device.

    Attributes:
        cache: [L, B, K, S, H] each.
        scale: what rows' channels are multiplied by, float16 [L, B, F].
        history: what rows have said, for penalties.
    """

    cache: attention.KVCache
    scale: jax.Array
    history: choosing.History


def widths(slots: int) -> list[int]:
    """Numbers of rows that steps are compiled for, ascending; the last is `slots`."""
    return [*(1 << power for power in range((slots - 1).bit_length())), slots]


def spans(max_context: int) -> list[int]:
    """Parts of the cache that steps are compiled for, ascending; the last is all."""
    found = []
    span = _LEAST_SPAN
    while span < max_context:
        found.append(span)
        span *= 2
    return [*found, max_context]


def at_least(sizes: list[int], wanted: int) -> int:
    """The smallest of ascending sizes that is no less than a number."""
    return next(size for size in sizes if size >= wanted)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a lane.

    Attributes:
        slots: B, rows.
        max_context: S, tokens a row may have.
    """

    slots: int
    max_context: int


def _step(
    model: unstacked.Steps,
    state: State,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    span: int,
) -> tuple[State, jax.Array]:
    """Feeds tokens [W] into the first W rows -> (state, logits [W, V]).

    A row whose position is past the last slot is not written.
    """
    model = unstacked.module(model)
    width = len(tokens)
    at = positions[:, None]
    masks = masks_lib.Masks(channels=state.scale[:, :width])
    attend = attention.Window(jnp.int32(0), at, span)
    hidden, cache, _ = model(tokens[:, None], at, masks, attend, cache=state.cache)
    logits = execution.whole(model.unembed(hidden[:, 0]))
    return state._replace(cache=cache), logits


def _read(
    model: decoder_lib.Decoder,
    state: State,
    tokens: jax.Array,
    row: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    span: int,
) -> tuple[State, jax.Array]:
    """Reads `count` of tokens [C] into a row from a slot on -> (state, logits [1, V]).

    The logits are those behind the last token.
    """
    places = jnp.arange(len(tokens))
    slots = state.cache.k.shape[3]
    positions = start + places
    writes = jnp.where(places < count, positions, slots)[None]
    own = jax.lax.dynamic_slice_in_dim(state.scale, row, 1, axis=1)
    attend = attention.Window(row, writes, span)
    hidden, cache, _ = model(
        tokens[None],
        positions[None],
        masks_lib.Masks(channels=own),
        attend,
        cache=state.cache,
    )
    last = jax.lax.dynamic_slice_in_dim(hidden[0], count - 1, 1)
    logits = execution.whole(model.unembed(last))
    return state._replace(cache=cache), logits


def _begin(state: State, row: jax.Array, scale: jax.Array, prompt: jax.Array) -> State:
    """Makes a row another persona's: its scale [L, F], its prompt's tokens [S].

    Past its end the prompt has tokens that there are not.
    """
    held = jax.lax.dynamic_update_index_in_dim(state.scale, scale, row, axis=1)
    vocab = state.history.prompted.shape[1]
    prompted = jnp.zeros((vocab,), bool).at[prompt].set(True, mode='drop')
    history = choosing.History(
        state.history.prompted.at[row].set(prompted),
        state.history.counts.at[row].set(0),
    )
    return state._replace(scale=held, history=history)


def _put(state: State, row: jax.Array, start: jax.Array, block: Any) -> State:
    """Writes the keys and values of a known block, [L, K, BLOCK, H] each, into a row."""
    at = (0, row, 0, start, 0)
    cache = attention.KVCache(
        *(
            jax.lax.dynamic_update_slice(held, known[:, None], at)
            for held, known in zip(state.cache, block, strict=True)
        )
    )
    return state._replace(cache=cache)


def _take(state: State, row: jax.Array, start: jax.Array) -> attention.KVCache:
    """A copy of a block of a row, [L, K, BLOCK, H] each."""

    def own(held: jax.Array) -> jax.Array:
        layers, _, heads, _, width = held.shape
        sizes = (layers, 1, heads, BLOCK, width)
        return jax.lax.dynamic_slice(held, (0, row, 0, start, 0), sizes)[:, 0]

    return attention.KVCache(*map(own, state.cache))


def _choose(
    logits: jax.Array,
    settings: choosing.Settings,
    history: choosing.History,
    rows: jax.Array,
    *,
    candidates: int,
) -> tuple[choosing.History, choosing.Chosen]:
    """Draws for rows [W], and counts what was drawn; a row past the last is nobody's."""
    own = choosing.History(*(held.at[rows].get(mode='clip') for held in history))
    chosen = choosing.choose(logits, settings, own, candidates=candidates)
    # A draw that does not count is drawn again.
    tokens = jnp.where(chosen.enough, chosen.tokens, logits.shape[-1])
    counts = history.counts.at[rows, tokens].add(1, mode='drop')
    return history._replace(counts=counts), chosen


class _Wanted(NamedTuple):
    """A program to compile.

    Attributes:
        key: that it is found by.
        function: jitted.
        arguments: their shapes.
    """

    key: tuple[Any, ...]
    function: Any
    arguments: tuple[Any, ...]


def _of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(x: Any, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _jitted(
    function: Callable[..., Any], donated: int | None, out: Any, **static: Any
) -> Any:
    """A function to compile.

    Args:
        function: with its static arguments behind the others.
        donated: number of the argument that is used up, or None.
        out: how results lie on a mesh: as what they come from did, so that they can be
            given again.
        **static: those arguments.
    """
    return jax.jit(
        functools.partial(function, **static),
        donate_argnums=() if donated is None else (donated,),
        out_shardings=out,
    )


class Programs:
    """A lane's programs. Every call takes the state and gives the next one.

    What was given is used up: on devices that can, it is written in place.
    """

    def __init__(
        self,
        model: decoder_lib.Decoder,
        shape: Shape,
        *,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Args:
        model: the decoder; on the mesh, if there is one.
        shape: of the lane.
        mesh: the devices.

        Raises:
            ValueError: if a row is shorter than a block.
        """
        if shape.max_context < BLOCK:
            raise ValueError(
                f'a row must have {BLOCK} tokens at least, got {shape.max_context}.'
            )
        self.model, self.shape, self._mesh = model, shape, mesh
        self._apart: unstacked.Flat | None = None
        if mesh is None and unstacked.is_worth_it(model):
            self._apart = unstacked.unstacked(model)
        self._widths = widths(shape.slots)
        self._spans = spans(shape.max_context)
        # No chunk is longer than a row.
        self.chunks = [chunk for chunk in CHUNKS if chunk <= shape.max_context]
        vocab_size = model.cfg.vocab_size
        self._candidates = sorted({min(_CANDIDATES, vocab_size), vocab_size})
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def state(self) -> State:
        """A lane of which no row has anything."""
        cfg, (slots, context) = self.model.cfg, dataclasses.astuple(self.shape)
        # Two arrays, for both are used up.
        cache = attention.KVCache(
            shared_prefix.empty_cache(self.model, slots, context).k,
            shared_prefix.empty_cache(self.model, slots, context).v,
        )
        history = choosing.History(
            jnp.zeros((slots, cfg.vocab_size), bool),
            jnp.zeros((slots, cfg.vocab_size), jnp.int32),
        )
        scale = jnp.ones((cfg.num_layers, slots, cfg.d_ff), jnp.float16)
        state = State(cache, scale, history)
        where = self._lies()
        return state if where is None else jax.device_put(state, where)

    def _lies(self) -> Any:
        """How a state lies on the mesh: heads of keys and values apart, if they can."""
        if self._mesh is None:
            return None
        whole: Any = sharding.replicated(self._mesh)
        spread: Any = sharding.key_value_heads(self._mesh, self.model.cfg.num_kv_heads)
        cache = attention.KVCache(spread, spread)
        return State(cache, whole, choosing.History(whole, whole))

    def _of_block(self) -> Any:
        """How a block lies on the mesh."""
        assert self._mesh is not None
        heads = self.model.cfg.num_kv_heads
        where: Any = sharding.key_value_heads(self._mesh, heads, before=1)
        return attention.KVCache(where, where)

    @property
    def count(self) -> int:
        """How many programs there are."""
        return len(list(self._wanted()))

    def compile(self) -> Iterator[None]:
        """Compiles all of them, one by one."""
        wanted = list(self._wanted())

        def make(one: _Wanted) -> Any:
            return self._lowered(one.function, one.arguments).compile()

        # Compilers work beside each other, and let Python's threads go on.
        with concurrent.futures.ThreadPoolExecutor(cores.threads()) as pool:
            for one, made in zip(wanted, pool.map(make, wanted), strict=True):
                self._compiled[one.key] = made
                yield

    def _lowered(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if self._mesh is None:
            return function.lower(*arguments)
        with jax.set_mesh(self._mesh):
            return function.lower(*arguments)

    def _shapes(self) -> tuple[Any, Any]:
        """(Of a state, of a block), and where they lie."""
        state = jax.eval_shape(self.state)
        held = state.cache.k
        layers, _, heads, _, width = held.shape
        shape = (layers, heads, BLOCK, width)
        half: Any = _of(held.dtype, *shape)
        block = attention.KVCache(half, half)
        if self._mesh is None:
            return state, block
        return (
            jax.tree.map(_placed, state, self._lies()),
            jax.tree.map(_placed, block, self._of_block()),
        )

    def _wanted(self) -> Iterator[_Wanted]:
        """All there are."""
        cfg, context = self.model.cfg, self.shape.max_context
        state, block = self._shapes()
        meshed = self._mesh is not None
        whole = sharding.replicated(self._mesh) if self._mesh is not None else None
        of_state = self._lies()
        of_block = self._of_block() if meshed else None
        both = (of_state, whole) if meshed else None
        number = _of(np.int32)
        arguments: tuple[Any, ...]
        for span in self._spans:
            for width in self._widths:
                vector = _of(np.int32, width)
                made = _jitted(_step, 1, both, span=span)
                yield _Wanted(
                    ('step', width, span),
                    made,
                    (self._stepping(span), state, vector, vector),
                )
            for chunk in self.chunks:
                made = _jitted(_read, 1, both, span=span)
                tokens = _of(np.int32, chunk)
                arguments = (self.model, state, tokens, number, number, number)
                yield _Wanted(('read', chunk, span), made, arguments)
        scale = _of(np.float16, cfg.num_layers, cfg.d_ff)
        begins = (state, number, scale, _of(np.int32, context))
        yield _Wanted(('begin',), _jitted(_begin, 0, of_state), begins)
        where = (state, number, number)
        yield _Wanted(('put',), _jitted(_put, 0, of_state), (*where, block))
        yield _Wanted(('take',), _jitted(_take, None, of_block), where)
        for width in self._widths:
            logits = _of(np.float32, width, cfg.vocab_size)
            made = _jitted(choosing.greedy, None, whole)
            yield _Wanted(('greedy', width), made, (logits,))
            settings = jax.tree.map(
                lambda x: _of(x.dtype, *x.shape),
                settings_of_nobody(width, cfg.vocab_size),
            )
            arguments = (logits, settings, state.history, _of(np.int32, width))
            for candidates in self._candidates:
                made = _jitted(_choose, 2, whole, candidates=candidates)
                yield _Wanted(('choose', width, candidates), made, arguments)

    def _call(self, key: tuple[Any, ...], *arguments: Any) -> Any:
        return execution.call(self._mesh, self._compiled[key], *arguments)

    def width(self, rows: int) -> int:
        """The compiled width of steps that serve so many first rows."""
        return at_least(self._widths, rows)

    def _stepping(self, span: int) -> unstacked.Steps:
        """What steps of a span run."""
        if self._apart is None or span > _MOST_APART:
            return self.model
        return self._apart

    def step(
        self, state: State, tokens: np.ndarray, positions: np.ndarray, longest: int
    ) -> tuple[State, jax.Array]:
        """`_step` of tokens [W]; no position that is written is beyond `longest`."""
        span = at_least(self._spans, longest)
        key = ('step', len(tokens), span)
        return self._call(key, self._stepping(span), state, tokens, positions)

    def read(
        self, state: State, tokens: np.ndarray, row: int, start: int
    ) -> tuple[State, jax.Array]:
        """Reads the tokens, as many as a chunk has at most, into a row behind a slot."""
        end = start + len(tokens)
        chunk = at_least(self.chunks, len(tokens))
        span = at_least(self._spans, end)
        padded = np.zeros(chunk, np.int32)
        padded[: len(tokens)] = tokens
        numbers = (np.int32(row), np.int32(start), np.int32(len(tokens)))
        return self._call(('read', chunk, span), self.model, state, padded, *numbers)

    def begin(
        self, state: State, row: int, scale: np.ndarray, prompt: np.ndarray
    ) -> State:
        """Makes a row another persona's."""
        padded = np.full(self.shape.max_context, self.model.cfg.vocab_size, np.int32)
        padded[: len(prompt)] = prompt
        return self._call(('begin',), state, np.int32(row), scale, padded)

    def put(self, state: State, row: int, start: int, block: Any) -> State:
        """Writes a known block into a row."""
        return self._call(('put',), state, np.int32(row), np.int32(start), block)

    def take(self, state: State, row: int, start: int) -> attention.KVCache:
        """A block of a row, copied."""
        return self._call(('take',), state, np.int32(row), np.int32(start))

    def greedy(self, logits: jax.Array) -> np.ndarray:
        """The likeliest tokens, int32 [W]."""
        return np.asarray(self._call(('greedy', len(logits)), logits))

    def choose(
        self,
        state: State,
        logits: jax.Array,
        settings: choosing.Settings,
        rows: np.ndarray,
    ) -> tuple[State, choosing.Chosen]:
        """Draws by each row's settings; candidates are as many as are needed."""
        key = ('choose', len(logits), self._candidates[0])
        history, chosen = self._call(key, logits, settings, state.history, rows)
        state = state._replace(history=history)
        chosen = jax.device_get(chosen)
        own = rows < self.shape.slots
        if chosen.enough[own].all():
            return state, chosen
        # Those that had enough are counted already.
        again = np.where(chosen.enough, self.shape.slots, rows).astype(np.int32)
        key = ('choose', len(logits), self._candidates[-1])
        history, whole = self._call(key, logits, settings, state.history, again)
        whole = jax.device_get(whole)
        merged = choosing.Chosen(
            *(
                np.where(
                    chosen.enough.reshape(-1, *[1] * (first.ndim - 1)), first, second
                )
                for first, second in zip(chosen, whole, strict=True)
            )
        )
        return state._replace(history=history), merged


def settings_of_nobody(width: int, vocab_size: int) -> choosing.Settings:
    """Settings of rows of which nobody wants a token."""

    def full(value: float) -> np.ndarray:
        return np.full(width, value, np.float32)

    return choosing.Settings(
        keys=np.zeros((width, 2), np.uint32),
        slots=np.zeros(width, np.int32),
        temperature=full(0.0),
        min_p=full(0.0),
        top_k=np.zeros(width, np.int32),
        top_p=full(1.0),
        repetition=full(1.0),
        frequency=full(0.0),
        presence=full(0.0),
        xtc_probability=full(0.0),
        xtc_threshold=full(1.0),
        extra_ids=np.full((width, choosing.MOST_EXTRAS), vocab_size, np.int32),
        extra_values=np.zeros((width, choosing.MOST_EXTRAS), np.float32),
    )
