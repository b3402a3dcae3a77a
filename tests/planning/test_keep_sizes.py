"""Numbers of kept channels, and who can use them."""

from ppjax.planning import keep_sizes


def test_each_k_once_with_its_largest_alignment():
    found = keep_sizes.legal(1536, 0.3)
    assert [(own.align, own.keep) for own in found] == [
        (1, 1075),
        (64, 1088),
        (256, 1024),
    ]
    exact, middle, round_one = found
    assert exact.tensor_parallel == ()
    assert exact.quantisation == ()
    assert exact.removed == 1 - 1075 / 1536
    assert middle.tensor_parallel == (2, 4, 8, 16)
    assert middle.quantisation == ('GGUF Q4_0, Q8_0',)
    assert len(round_one.quantisation) == 3


def test_alignments_that_leave_nothing_are_left_out():
    assert [own.keep for own in keep_sizes.legal(40, 0.25)] == [30, 32]
