"""The engine: one thread that gives rows to requests and computes for all of them.

In turn it gives free rows to who has waited longest and then, lane by lane, frees the
rows that nobody wants any more, reads one chunk of one prompt, and adds a token to every
row that answers. So no answer stands still for longer than one chunk a lane takes, however
long a prompt that joins.
"""

import collections
from collections.abc import Callable, Mapping
import contextlib
import threading
import time
import traceback

from ppjax.base import progress
from ppjax.serving import jobs
from ppjax.serving import lane as lane_lib
from ppjax.serving import prefix_cache as cache_lib


class _Waiting:
    """A request: in the queue, then in a row, then over."""

    def __init__(self, job: jobs.Job, listener: jobs.Listener):
        self.job, self.listener = job, listener
        self.row: lane_lib.Row | None = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        # The row is there before it is looked at, or the queue sees the mark.
        if self.row is not None:
            self.row.cancelled = True


class _Ticket:
    def __init__(self, waiting: _Waiting, wake: Callable[[], None]):
        self._waiting, self._wake = waiting, wake

    def cancel(self) -> None:
        self._waiting.cancel()
        self._wake()


class Engine:
    """Answers jobs; see `jobs.Engine`."""

    def __init__(
        self,
        lane: lane_lib.Lane,
        cache: cache_lib.PrefixCache,
        *,
        slots: int,
        max_context: int,
        vocab_size: int,
        queue: int,
        pinned: Mapping[str, lane_lib.Lane] | None = None,
    ):
        """Args:
        lane: of everybody.
        cache: of the lanes.
        slots: rows of a lane.
        max_context: most tokens of prompt and answer together.
        vocab_size: tokens that the model embeds.
        queue: most requests that wait for a row.
        pinned: lanes of their own, by digest of what is masked.
        """
        self._lane, self._cache, self._pinned = lane, cache, dict(pinned or {})
        self._slots, self._max_context, self._vocab = slots, max_context, vocab_size
        self._most = queue
        self._changed = threading.Condition()
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._draining = self._ended = False
        self._counts: dict[str, list[int]] = {}
        for own in self._lanes:
            own.on_end(self._count)
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)

    @property
    def _lanes(self) -> list[lane_lib.Lane]:
        return [self._lane, *self._pinned.values()]

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._max_context

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def submit(self, job: jobs.Job, listener: jobs.Listener) -> jobs.Ticket:
        """Takes a job; see `jobs.Engine.submit`."""
        if not 0 < len(job.prompt) < self._max_context:
            raise ValueError(
                f'The prompt has {len(job.prompt)} tokens; wanted 1 to '
                f'{self._max_context - 1}.'
            )
        if not 0 <= min(job.prompt) <= max(job.prompt) < self._vocab:
            raise ValueError(f'The prompt has a token outside 0 to {self._vocab - 1}.')
        if job.max_tokens < 1:
            raise ValueError(f'max_tokens must be 1 or more, got {job.max_tokens}.')
        waiting = _Waiting(job, listener)
        with self._changed:
            if self._draining:
                raise jobs.QueueFullError('The server is about to end.')
            self._queue.append(waiting)
            if (count := self._count_rowless()) > self._most:
                self._queue.pop()
                raise jobs.QueueFullError(f'{count - 1} requests are waiting already.')
            self._changed.notify()
        return _Ticket(waiting, self._wake)

    def _count_rowless(self) -> int:
        """Requests in the queue for which no row is free."""
        wanted = collections.Counter(
            id(self._lane_of(one.job))
            for one in self._queue
            if one.row is None and not one.cancelled
        )
        return sum(max(0, wanted[id(own)] - own.free) for own in self._lanes)

    def _lane_of(self, job: jobs.Job) -> lane_lib.Lane:
        return self._pinned.get(job.member.digest, self._lane)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def drain(self, seconds: float) -> bool:
        """Takes no more jobs, and waits for those it has; true if all ended in time."""
        with self._changed:
            self._draining = True
        end = time.monotonic() + seconds
        while self._has_work() and time.monotonic() < end:
            time.sleep(0.02)
        return not self._has_work()

    def stop(self) -> None:
        """Cancels what is left, and ends the thread."""
        with self._changed:
            self._draining = self._ended = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _has_work(self) -> bool:
        return bool(self._queue) or any(own.is_busy for own in self._lanes)

    def figures(self) -> jobs.Figures:
        """What has been done so far."""
        rows = [row for own in self._lanes for row in own.rows if row is not None]
        return jobs.Figures(
            slots=self._slots * len(self._lanes),
            running=len(rows),
            waiting=len(self._queue),
            cache_bytes=self._cache.size,
            cache_limit_bytes=self._cache.limit,
            cache_hits=self._cache.hits,
            cache_misses=self._cache.misses,
            steps=sum(own.steps for own in self._lanes),
            by_persona={
                name: jobs.PersonaFigures(*counts)
                for name, counts in list(self._counts.items())
            },
        )

    def _count(self, row: lane_lib.Row) -> None:
        counts = self._counts.setdefault(row.job.member.name, [0, 0, 0, 0])
        own = (1, len(row.job.prompt), row.cached, row.answered)
        for place, number in enumerate(own):
            counts[place] += number

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._has_work())
                if self._ended:
                    break
            self._admit()
            for own in self._lanes:
                if not own.is_busy:
                    continue
                try:
                    own.sweep()
                    own.read()
                    own.step()
                except Exception as error:  # noqa: BLE001  Devices raise all kinds.
                    _report('A step failed, and its requests with it', error)
                    self._fail(own)
        for waiting in self._queue:
            _tell(waiting, jobs.Ended('cancelled'))
        self._queue.clear()
        for own in self._lanes:
            for row in own.rows:
                if row is not None:
                    row.cancelled = True
            own.sweep()

    def _admit(self) -> None:
        """Gives free rows to those who have waited longest, each in its own lane."""
        with self._changed:
            waiting = list(self._queue)
        for one in waiting:
            own = self._lane_of(one.job)
            if one.cancelled:
                _tell(one, jobs.Ended('cancelled'))
            elif own.has_room:
                self._insert(own, one)
            else:
                continue
            # Not before it has a row: at any time it is seen in one of the two.
            with self._changed:
                self._queue.remove(one)

    def _insert(self, own: lane_lib.Lane, one: _Waiting) -> None:
        try:
            one.row = own.insert(one.job, one.listener)
        except Exception as error:  # noqa: BLE001  Devices raise all kinds.
            _report('A request failed', error)
            self._fail(own)
            _tell(one, jobs.Ended('error', error='The server could not begin.'))
            return
        if one.cancelled:  # Meanwhile.
            one.row.cancelled = True

    def _fail(self, own: lane_lib.Lane) -> None:
        try:
            own.fail('The server failed to compute an answer.')
        except Exception as error:  # noqa: BLE001  Devices raise all kinds.
            # Its requests are told; whoever comes next fails, and has it tried again.
            _report('A lane could not begin anew', error)


def _report(what: str, error: Exception) -> None:
    progress.say(f'{what}: {type(error).__name__}: {error}\n{traceback.format_exc()}')


def _tell(one: _Waiting, ended: jobs.Ended) -> None:
    with contextlib.suppress(Exception):
        one.listener(ended)
