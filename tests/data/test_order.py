"""The order of examples: a pure function of seed and step, fair and balanced."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ppjax.data import order


def _lengths(count: int, seed: int = 0) -> np.ndarray:
    """Skewed, as answers are."""
    return np.random.default_rng(seed).lognormal(4.5, 0.6, count).astype(int) + 5


def test_a_step_needs_nothing_but_seed_and_number():
    lengths = _lengths(101)
    forward = order.all_steps(3, 40, 8, lengths)
    for step in range(39, -1, -1):
        again = order.all_steps(3, step + 1, 8, lengths)[step]
        np.testing.assert_array_equal(forward[step], again)


def test_global_random_state_is_neither_read_nor_written():
    lengths = _lengths(50)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = order.all_steps(0, 3, 4, lengths)
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    np.random.seed(2)
    np.testing.assert_array_equal(first, order.all_steps(0, 3, 4, lengths))


@hypothesis.given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_epochs_repeat_nothing_and_leave_out_less_than_a_batch(
    count, batch_size, seed, data
):
    lengths = np.asarray(
        data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    )
    size = order.steps_per_epoch(batch_size, count)
    assert size == max(1, count // batch_size)
    steps = order.all_steps(seed, 3 * size, batch_size, lengths)
    assert len(steps) == 3 * size
    for batch in steps:
        assert batch.shape == (batch_size,)
        assert batch.min() >= 0
        assert batch.max() < count
    for epoch in range(3):
        seen = np.concatenate(steps[epoch * size : (epoch + 1) * size])
        times = np.bincount(seen, minlength=count)
        if count >= batch_size:
            assert times.max() == 1
            assert (times == 0).sum() == count % batch_size
        else:  # Some come twice, as evenly as can be.
            assert times.max() - times.min() <= 1
            assert times.min() >= 1


@pytest.mark.parametrize('count', [1, 5, 8, 9, 37])
@pytest.mark.parametrize('num_steps', [1, 4, 13])
def test_fewer_steps_are_the_first_ones(count, num_steps):
    lengths = _lengths(count)
    steps = order.all_steps(7, num_steps, 8, lengths)
    assert len(steps) == num_steps
    np.testing.assert_array_equal(steps, order.all_steps(7, 20, 8, lengths)[:num_steps])


def test_seeds_and_epochs_differ():
    lengths = _lengths(64)
    steps = order.all_steps(0, 16, 8, lengths)
    other = order.all_steps(1, 16, 8, lengths)
    assert not np.array_equal(steps, other)
    assert not np.array_equal(steps[:8], steps[8:])


def test_those_left_out_change_from_epoch_to_epoch():
    # Neither the shortest nor the longest may be left out for good.
    lengths = np.arange(1, 24)
    steps = order.all_steps(0, 30 * 2, 8, lengths)
    times = np.bincount(np.concatenate(steps), minlength=23)
    assert times.min() > 10


def test_place_in_the_epoch_says_nothing_about_length():
    lengths = _lengths(512)
    steps = order.all_steps(0, 32 * 20, 16, lengths)
    tokens = np.asarray([lengths[batch].sum() for batch in steps]).reshape(20, 32)
    by_place = tokens.mean(axis=0)
    assert by_place.max() / by_place.mean() < 1.03


def test_steps_have_about_equally_many_tokens():
    lengths = _lengths(512)
    ours, plain = [], []
    for epoch in range(20):
        steps = order.all_steps(epoch, 32, 16, lengths)
        shuffled = np.random.default_rng(epoch).permutation(512).reshape(32, 16)
        for kind, batches in ((ours, steps), (plain, shuffled)):
            tokens = np.asarray([lengths[batch].sum() for batch in batches])
            kind.append(tokens.max() / tokens.mean())
    # The fullest step sets the compiled shape: what is above 1 is padding.
    assert np.mean(ours) < 1.2
    assert np.mean(plain) - 1 > 2 * (np.mean(ours) - 1)
    # One from each of as many strata of length: the longest come one a step.
    longest = set(np.argsort(lengths)[-32:].tolist())
    assert [len(longest & set(batch.tolist())) for batch in steps] == [1] * 32


def test_one_group_has_the_order_of_all_examples():
    lengths = _lengths(50)
    chosen = np.arange(3, 43)
    grouped = order.grouped_steps(2, 13, 8, lengths, [chosen])
    plain = order.all_steps(2, 13, 8, lengths[chosen])
    assert [number for number, _ in grouped] == [0] * 13
    for (_, batch), own in zip(grouped, plain, strict=True):
        np.testing.assert_array_equal(batch, chosen[own])


def test_an_epoch_of_groups_is_one_of_each_in_random_order():
    lengths = _lengths(75)
    groups = [np.arange(0, 42), np.arange(42, 58), np.arange(58, 75)]
    steps = order.grouped_steps(1, 3 * 9, 8, lengths, groups)
    orders = []
    for epoch in range(3):
        own = steps[epoch * 9 : (epoch + 1) * 9]
        orders.append([number for number, _ in own])
        assert np.bincount(orders[-1]).tolist() == [5, 2, 2]
        for number, batch in own:
            assert len(batch) == 8
            assert np.isin(batch, groups[number]).all()
        seen = np.concatenate([batch for _, batch in own])
        assert len(np.unique(seen)) == len(seen)
    assert orders[0] != orders[1] != orders[2]
    # The first steps do not depend on how many follow.
    for (number, batch), (other, same) in zip(
        order.grouped_steps(1, 10, 8, lengths, groups), steps, strict=False
    ):
        assert number == other
        np.testing.assert_array_equal(batch, same)
