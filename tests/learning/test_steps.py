"""The loop of steps: what is saved, measured and reported, and in which order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.learning import steps
from ppjax.parallel import sharding


class _Learner:
    """Counts; is measured after every third step."""

    def __init__(self, measured=()):
        self.events = []
        self.log = set(measured)

    def take(self, state, step):
        self.events.append(('take', step))
        return state + 1, step

    def report(self, step, metrics):
        assert step == metrics
        self.events.append(('report', step))

    def measures(self, step):
        return step % 3 == 0

    def measure(self, step, state):
        assert state == step
        if step not in self.log:
            self.log.add(step)
            self.events.append(('measure', step))

    def saves_after(self, step):
        return step % 2 == 0


class _Checkpoints:
    def __init__(self, events):
        self._events = events

    def save(self, step, state):
        assert state == step
        self._events.append(('save', step))

    def wait(self):
        self._events.append(('wait', None))


def _run(learner, first, last, reuses_state=False, state=None):
    learner.first, learner.last, learner.reuses_state = first, last, reuses_state
    return steps.run_steps(
        learner,
        first if state is None else state,
        _Checkpoints(learner.events),
    )


def test_a_step_is_reported_while_the_next_one_runs_and_before_it_is_saved():
    learner = _Learner()
    assert _run(learner, 0, 5) == (5, 5)
    assert learner.events == [
        ('take', 1),
        ('take', 2),
        ('report', 1),
        ('report', 2),
        ('save', 2),
        ('take', 3),
        ('report', 3),
        ('measure', 3),
        ('take', 4),
        ('report', 4),
        ('save', 4),
        ('take', 5),
        ('report', 5),
        ('save', 5),
        ('wait', None),
    ]


@pytest.mark.parametrize('measured', [(), (6,)])
def test_what_a_kill_left_unmeasured_is_measured_once(measured):
    learner = _Learner(measured)
    assert _run(learner, 6, 7) == (7, 7)
    assert learner.events[:2] == (
        [('take', 7), ('report', 7)] if measured else [('measure', 6), ('take', 7)]
    )


def test_a_finished_run_takes_no_step():
    learner = _Learner()
    assert _run(learner, 9, 9) == (9, 9)
    assert learner.events == [('measure', 9), ('wait', None)]


def test_a_state_that_the_next_step_overwrites_is_saved_first():
    learner = _Learner()
    _run(learner, 0, 3, reuses_state=True)
    at = learner.events.index(('save', 2))
    assert learner.events[at + 1 : at + 3] == [('wait', None), ('take', 3)]


_added = jax.jit(jnp.add)
_ONE = np.ones((), np.float32)


class _Sender(_Learner):
    """Adds to a state on devices what `send` makes of 1, on the host."""

    def __init__(self, send, fetch=jax.device_get):
        super().__init__()
        self._send, self._fetch = send, fetch

    def take(self, state, step):
        return (total := _added(state, self._send(_ONE))), total

    def report(self, step, metrics):
        assert self._fetch(metrics) == step

    def measures(self, step):
        return False


@pytest.mark.parametrize('text', [None, 'data:8'])
@pytest.mark.parametrize('send', [lambda x: x, float, jnp.asarray])
def test_what_slips_into_a_step_is_an_error(send, text):
    where = jax.devices()[0]
    if text is not None:
        where = sharding.replicated(sharding.make_mesh(text, jax.devices()))
    zero = jax.device_put(np.zeros((), np.float32), where)
    explicit = _Sender(lambda x: jax.device_put(x, where))
    assert _run(explicit, 0, 3, state=zero) == (3, 3)
    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
        _run(_Sender(send), 0, 3, state=zero)


def test_what_slips_into_a_report_is_an_error():
    learner = _Sender(jax.device_put, fetch=lambda x: float(x + 1) - 1)
    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
        _run(learner, 0, 3, state=jax.device_put(np.zeros((), np.float32)))
