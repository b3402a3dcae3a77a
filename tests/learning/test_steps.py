"""The loop of steps: what is saved, measured and reported, and in which order."""

import pytest

from ppjax.learning import steps


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


def _run(learner, first, last, reuses_state=False):
    return steps.run_steps(
        learner,
        first,
        first=first,
        last=last,
        checkpoints=_Checkpoints(learner.events),
        reuses_state=reuses_state,
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
