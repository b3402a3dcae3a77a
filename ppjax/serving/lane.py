"""Rows that join and leave: a request's way from its prompt to its last token.

A row is free, then it reads its prompt, a chunk at a time, then it answers, a token a
step, then it is free again. Rows do not see each other: what a row computes depends on
its own request alone, however many others there are.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

from ppjax.serving import choosing, dry, jobs, sampling
from ppjax.serving import prefix_cache as cache_lib
from ppjax.serving import programs as programs_lib

# A row's bias comes first among its extras; of DRY's so many largest find room.
_MOST_PENALTIES = choosing.MOST_EXTRAS - sampling.MOST_BIASED


@dataclasses.dataclass(eq=False)
class Row:
    """A request that has a row.

    Attributes:
        job: what is wanted.
        listener: told of every token.
        tokens: int32 [S], prompt and answer; what comes later is of no use.
        length: of these, how many there are.
        read: how many have their keys and values in the row.
        cached: how many of these were known before.
        cancelled: whether nobody wants the rest.
    """

    job: jobs.Job
    listener: jobs.Listener
    tokens: np.ndarray
    length: int
    read: int = 0
    cached: int = 0
    cancelled: bool = False

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return self.length - len(self.job.prompt)

    @property
    def is_reading(self) -> bool:
        """Whether its first token is still to come."""
        return self.answered == 0

    @property
    def text(self) -> np.ndarray:
        """Prompt and answer so far."""
        return self.tokens[: self.length]


class Lane:
    """The rows of one decoder. Used by one thread.

    Attributes:
        rows: who has which row; None for nobody.
        steps: how many there were.
    """

    def __init__(
        self,
        programs: programs_lib.Programs,
        cache: cache_lib.PrefixCache,
        scale_of: Callable[[np.ndarray | None], np.ndarray],
    ):
        """Args:
        programs: compiled.
        cache: of known prefixes.
        scale_of: what channels of the decoder are multiplied by, float16 [L, F], from
            `members.Member.scale`.
        """
        self._programs, self._cache = programs, cache
        self._scale_of = scale_of
        self._done: Callable[[Row], None] = lambda row: None
        shape = programs.shape
        self._vocab = programs.model.cfg.vocab_size
        self.rows: list[Row | None] = [None] * shape.slots
        self._order: list[int] = []  # Of those that read, as they came.
        self.steps = 0
        self._renew()

    def _renew(self) -> None:
        self._state = self._programs.state()
        slots = self._programs.shape.slots
        self._settings = programs_lib.settings_of_nobody(slots, self._vocab)

    def on_end(self, done: Callable[[Row], None]) -> None:
        """Has every row that ends told, before it is free."""
        self._done = done

    @property
    def is_busy(self) -> bool:
        """Whether any row has a request."""
        return any(row is not None for row in self.rows)

    @property
    def free(self) -> int:
        """How many rows have no request."""
        return self.rows.count(None)

    @property
    def has_room(self) -> bool:
        """Whether a row is free."""
        return None in self.rows

    def insert(self, job: jobs.Job, listener: jobs.Listener) -> Row:
        """Gives a free row to a request: the lowest, since low rows make steps narrow."""
        number = self.rows.index(None)
        prompt = np.asarray(job.prompt, np.int32)
        tokens = np.zeros(self._programs.shape.max_context, np.int32)
        tokens[: len(prompt)] = prompt
        row = Row(job, listener, tokens, len(prompt))
        self._set(number, job)
        scale = self._scale_of(job.member.scale)
        self._state = self._programs.begin(self._state, number, scale, prompt)
        self.rows[number] = row
        self._order.append(number)
        return row

    def _set(self, number: int, job: jobs.Job) -> None:
        """Puts a request's settings where steps find them."""
        own, every = job.sampling, self._settings
        every.keys[number] = choosing.key_of(own.seed, job.choice)
        for field, value in (
            (every.temperature, own.temperature),
            (every.min_p, own.min_p),
            (every.top_k, own.top_k or 0),
            (every.top_p, own.top_p),
            (every.repetition, own.repetition_penalty),
            (every.frequency, own.frequency_penalty),
            (every.presence, own.presence_penalty),
            (every.xtc_probability, own.xtc_probability),
            (every.xtc_threshold, own.xtc_threshold),
        ):
            field[number] = value
        every.extra_ids[number] = self._vocab
        every.extra_values[number] = 0
        bias = list(own.bias.items())[: sampling.MOST_BIASED]
        if bias:
            every.extra_ids[number, : len(bias)] = [index for index, _ in bias]
            every.extra_values[number, : len(bias)] = [value for _, value in bias]

    def read(self) -> bool:
        """Reads a chunk of the prompt that has waited longest; false if none waits."""
        if not self._order:
            return False
        number = self._order[0]
        row = self.rows[number]
        assert row is not None
        if not row.read:
            self._recall(number, row)
        left = row.length - row.read
        short, long = self._programs.chunks[0], self._programs.chunks[-1]
        # One long chunk costs less than as many short ones.
        count = min(left, long if left > long - short else short)
        tokens = row.tokens[row.read : row.read + count]
        self._state, logits = self._programs.read(self._state, tokens, number, row.read)
        row.read += count
        if row.read == row.length:
            self._order.pop(0)
            self._keep(number, row)
            self._draw(logits, [number])
        return True

    def _recall(self, number: int, row: Row) -> None:
        """Writes the known blocks that a prompt starts with into its row.

        Not before it is read: who came just before may have had the same prompt.
        """
        # The last token's logits are wanted, so it is read in any case.
        prompt = row.text[:-1]
        for block in self._cache.find(row.job.member.digest, prompt):
            self._state = self._programs.put(self._state, number, row.read, block)
            row.read += programs_lib.BLOCK
        row.cached = row.read

    def step(self) -> bool:
        """Adds a token to every row that answers; false if none does."""
        numbers = [
            number
            for number, row in enumerate(self.rows)
            if row is not None and not row.is_reading
        ]
        if not numbers:
            return False
        width = self._programs.width(numbers[-1] + 1)
        tokens = np.zeros(width, np.int32)
        # Past the last slot: nothing is written for rows without an answer.
        positions = np.full(width, self._programs.shape.max_context, np.int32)
        for number in numbers:
            row = self.rows[number]
            assert row is not None
            tokens[number] = row.tokens[row.read]
            positions[number] = row.read
            row.read += 1
        longest = max(int(positions[number]) for number in numbers) + 1
        self._state, logits = self._programs.step(
            self._state, tokens, positions, longest
        )
        self.steps += 1
        self._draw(logits, list(range(width)), set(numbers))
        return True

    def _draw(
        self, logits: jax.Array, numbers: list[int], wanted: set[int] | None = None
    ) -> None:
        """Gives rows their next tokens.

        Args:
            logits: [W, V].
            numbers: W rows that they are of, side by side.
            wanted: those that get a token; all by default.
        """
        slots = self._programs.shape.slots
        drawn = [n if wanted is None or n in wanted else slots for n in numbers]
        own = [self.rows[n] for n in drawn if n < slots]
        if all(row is not None and _is_greedy(row.job) for row in own):
            tokens = self._programs.greedy(logits)
            found = [jobs.Token(int(token)) for token in tokens]
        else:
            found = self._chosen(logits, numbers, drawn)
        for number, token in zip(drawn, found, strict=True):
            if number < slots:
                self._give(number, token)

    def _chosen(
        self, logits: jax.Array, numbers: list[int], drawn: list[int]
    ) -> list[jobs.Token]:
        """What each row draws by its settings."""
        every = self._settings
        for number in drawn:
            row = self.rows[number] if number < len(self.rows) else None
            if row is None:
                continue
            every.slots[number] = row.length
            if row.job.sampling.dry.multiplier:
                ids, values = dry.penalties(row.text, row.job.sampling.dry)
                largest = np.argsort(-values, kind='stable')[:_MOST_PENALTIES]
                behind = slice(choosing.MOST_EXTRAS - _MOST_PENALTIES, None)
                every.extra_ids[number, behind] = self._vocab
                end = behind.start + len(largest)
                every.extra_ids[number, behind.start : end] = ids[largest]
                every.extra_values[number, behind.start : end] = -values[largest]
        side_by_side = slice(numbers[0], numbers[0] + len(numbers))
        settings = choosing.Settings(*(field[side_by_side] for field in every))
        self._state, chosen = self._programs.choose(
            self._state, logits, settings, np.asarray(drawn, np.int32)
        )
        found = []
        for place, number in enumerate(drawn):
            row = self.rows[number] if number < len(self.rows) else None
            token = jobs.Token(int(chosen.tokens[place]))
            if row is not None and (count := row.job.top_logprobs) is not None:
                top = zip(
                    chosen.top_ids[place, :count].tolist(),
                    chosen.top_logprobs[place, :count].tolist(),
                    strict=True,
                )
                token = jobs.Token(token.id, float(chosen.logprobs[place]), tuple(top))
            found.append(token)
        return found

    def _give(self, number: int, token: jobs.Token) -> None:
        row = self.rows[number]
        assert row is not None
        row.tokens[row.length] = token.id
        row.length += 1
        if not row.cancelled:
            self._tell(row, token)
        if token.id in row.job.stop_ids:
            self.evict(number, jobs.Ended('stop', row.cached))
        elif row.answered >= row.job.max_tokens or row.length == len(row.tokens):
            self.evict(number, jobs.Ended('length', row.cached))

    def _tell(self, row: Row, said: jobs.Token | jobs.Ended) -> None:
        """A listener's fault is its own: its row goes on to its end, unheard."""
        try:
            row.listener(said)
        except Exception:  # noqa: BLE001  Whatever a listener raises.
            row.cancelled = True

    def evict(self, number: int, ended: jobs.Ended, *, keep: bool = True) -> None:
        """Ends a row's request; what it read is kept for the next turn, if asked."""
        row = self.rows[number]
        assert row is not None
        if keep:
            self._keep(number, row)
        self._done(row)
        self.rows[number] = None
        if number in self._order:
            self._order.remove(number)
        self._tell(row, ended)

    def _keep(self, number: int, row: Row) -> None:
        """Makes known what a row has read, block by block."""
        digest, text = row.job.member.digest, row.tokens[: row.read]
        if not self._cache.limit:
            return
        blocks = []
        for block in self._cache.unknown(digest, text):
            start = block * programs_lib.BLOCK
            taken = self._programs.take(self._state, number, start)
            blocks.append((block, taken, sum(part.nbytes for part in taken)))
        self._cache.add(digest, text, blocks)

    def sweep(self) -> None:
        """Frees the rows that nobody wants any more."""
        for number, row in enumerate(self.rows):
            if row is not None and row.cancelled:
                self.evict(number, jobs.Ended('cancelled', row.cached))

    def fail(self, reason: str) -> None:
        """Ends all requests of the lane after a fault, and begins anew."""
        for number, row in enumerate(self.rows):
            if row is not None:
                ended = jobs.Ended('error', row.cached, reason)
                self.evict(number, ended, keep=False)
        # What was given to the program that failed may be used up; where it is not,
        # there may be no room for another beside it.
        for held in jax.tree.leaves(self._state):
            held.delete()
        # Devices work behind the host: what was kept last may never have been computed,
        # and would fail whoever finds it.
        self._cache.clear()
        self._renew()


def _is_greedy(job: jobs.Job) -> bool:
    """Whether the likeliest token is all that is asked for."""
    own = job.sampling
    return (
        own.temperature == 0
        and job.top_logprobs is None
        and not own.bias
        and own.repetition_penalty == 1
        and own.frequency_penalty == 0
        and own.presence_penalty == 0
        and not own.dry.multiplier
    )


def whole_scale(num_layers: int, d_ff: int) -> Callable[[np.ndarray | None], Any]:
    """`Lane`'s `scale_of` of a decoder with all channels."""
    ones = np.ones((num_layers, d_ff), np.float16)
    return lambda scale: ones if scale is None else scale.astype(np.float16)
