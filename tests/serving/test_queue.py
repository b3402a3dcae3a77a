"""Who waits for a row, who is refused, and what no fault may end: the engine's thread.

Its lane is a fake: what is computed is nothing here.
"""

import queue
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest

from ppjax.serving import engine, jobs, lane, prefix_cache
from tests.serving import engines


class _Lane:
    """Rows that answer with one token.

    Attributes:
        gate: rows are given, and answers end, while it is set.
        inserting: set while a row is given.
        breaks: raised by the next step, or by beginning anew.
    """

    steps = 0

    def __init__(self, slots: int = 1):
        self.rows: list[Any] = [None] * slots
        self.gate, self.inserting = threading.Event(), threading.Event()
        self.breaks: dict[str, Exception] = {}

    def on_end(self, done):
        self.done = done

    @property
    def free(self):
        return self.rows.count(None)

    @property
    def has_room(self):
        return None in self.rows

    @property
    def is_busy(self):
        return any(row is not None for row in self.rows)

    def insert(self, job, listener):
        self.inserting.set()
        assert self.gate.wait(10)
        row = lane.Row(job, listener, np.zeros(9, np.int32), 1)
        self.rows[self.rows.index(None)] = row
        return row

    def sweep(self):
        self._end('cancelled', [row for row in self.rows if row and row.cancelled])

    def read(self):
        pass

    def step(self):
        self.gate.wait(0.01)
        if error := self.breaks.pop('step', None):
            raise error
        if self.gate.is_set():
            self._end('stop', [row for row in self.rows if row])

    def fail(self, reason):
        self._end('error', [row for row in self.rows if row])
        if error := self.breaks.pop('fail', None):
            raise error

    def _end(self, reason, rows):
        for row in rows:
            self.rows[self.rows.index(row)] = None
            row.listener(jobs.Ended(reason))


def _made(own, length):
    known = prefix_cache.PrefixCache(0, 32)
    return engine.Engine(
        own, known, slots=len(own.rows), max_context=9, vocab_size=9, queue=length
    )


def _ask(made):
    return engines.ask(made, engines.member('base'), [1])


def _reason(asked):
    ended = asked.said.get(timeout=5)
    assert isinstance(ended, jobs.Ended)
    return ended.reason


def test_where_none_may_wait_free_rows_are_given():
    own = _Lane(slots=2)
    made = _made(own, 0)
    asked = [_ask(made), _ask(made)]
    with pytest.raises(jobs.QueueFullError, match='0 requests are waiting'):
        _ask(made)
    made.start()
    own.gate.set()
    assert [_reason(one) for one in asked] == ['stop', 'stop']
    made.stop()


def test_who_is_given_a_row_is_counted_until_it_has_one():
    own = _Lane()
    made = _made(own, 2)
    asked = [_ask(made)]
    made.start()
    assert own.inserting.wait(5)
    asked += [_ask(made), _ask(made)]
    with pytest.raises(jobs.QueueFullError, match='2 requests are waiting'):
        _ask(made)
    assert made.figures().waiting == 3
    assert not made.drain(0)
    own.gate.set()
    assert [_reason(one) for one in asked] == ['stop'] * 3
    assert made.drain(5)
    made.stop()


def test_who_has_left_takes_no_place_in_the_queue():
    own = _Lane()
    made = _made(own, 0)
    first = _ask(made)
    first.ticket.cancel()
    second = _ask(made)
    own.gate.set()
    made.start()
    assert _reason(first) == 'cancelled'
    assert _reason(second) == 'stop'
    made.stop()


class _Closed:
    """Where nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError

    flush = write


def test_no_fault_ends_the_thread(monkeypatch, capfd):
    own = _Lane()
    made = _made(own, 1)
    made.start()
    own.breaks = {'step': RuntimeError('no memory'), 'fail': RuntimeError('none yet')}
    own.gate.set()
    assert _reason(_ask(made)) == 'error'
    assert _reason(_ask(made)) == 'stop'
    said = capfd.readouterr().err
    assert 'no memory' in said
    assert 'none yet' in said

    monkeypatch.setattr(sys, 'stderr', _Closed())
    own.breaks = {'step': RuntimeError('unheard')}
    assert _reason(_ask(made)) == 'error'
    assert _reason(_ask(made)) == 'stop'
    made.stop()


class _Programs:
    """Programs that read, and fail at steps."""

    class model:
        class cfg:
            vocab_size = 9

    class shape:
        slots, max_context = 2, 9

    chunks = (32,)

    def __init__(self):
        self.states: list[jax.Array] = []

    def state(self):
        assert all(state.is_deleted() for state in self.states)
        self.states.append(jax.numpy.zeros(3))
        return self.states[-1]

    def begin(self, state, *of):
        return state

    def read(self, state, *of):
        return state, np.zeros((1, 9))

    def greedy(self, logits):
        return np.array([5])


def test_a_row_is_counted_before_it_is_free_and_then_told():
    own = lane.Lane(
        _Programs(), prefix_cache.PrefixCache(0, 32), lambda scale: np.ones(1)
    )
    heard: queue.Queue[Any] = queue.Queue()
    own.on_end(lambda row: heard.put(('counted', own.rows.count(None))))
    job = jobs.Job(engines.member('base'), (1,), 1, frozenset())
    own.insert(job, lambda said: heard.put((said, own.rows.count(None))))
    own.read()
    assert [heard.get_nowait() for _ in range(3)] == [
        (jobs.Token(5), 1),
        ('counted', 1),
        (jobs.Ended('length'), 2),
    ]


def test_nothing_from_before_a_fault_is_found_again():
    known = prefix_cache.PrefixCache(100, 2)
    text = np.arange(4)
    known.add('', text, [(0, 'a block', 9), (1, 'another', 9)])
    lane.Lane(_Programs(), known, lambda scale: np.ones(1)).fail('It broke.')
    assert (len(known), known.size, known.find('', text)) == (0, 0, [])


def test_beginning_anew_needs_no_room_for_two():
    programs = _Programs()
    own = lane.Lane(programs, prefix_cache.PrefixCache(0, 32), lambda scale: np.ones(1))
    own.fail('It broke.')
    own.fail('It broke again.')
    assert [state.is_deleted() for state in programs.states] == [True, True, False]
