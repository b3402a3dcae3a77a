"""The tree of token sequences, by hand."""

import numpy as np
import pytest

from ppjax.evaluation.judges import token_trie


def test_prefixes_are_shared_and_ends_may_be_inside():
    trie = token_trie.build([(8,), (8, 5), (1, 0, 0), (8, 5, 5), (1, 8)])
    assert trie.num_nodes == 8
    assert trie.tokens.tolist() == [0, 8, 5, 1, 0, 0, 5, 8]
    assert trie.parents.tolist() == [0, 0, 1, 0, 3, 4, 2, 3]
    assert trie.depths.tolist() == [0, 1, 2, 1, 2, 3, 3, 2]
    assert trie.ends.tolist() == [1, 2, 5, 6, 7]


def test_ancestors_are_the_way_to_the_root():
    trie = token_trie.build([(8, 5), (1, 0), (8, 5, 5)])
    ways = [np.nonzero(row)[0].tolist() for row in trie.ancestors()]
    assert ways == [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4], [0, 1, 2, 5]]


def test_sums_run_along_the_way():
    trie = token_trie.build([(8, 5), (1, 0), (8, 5, 5)])
    steps = np.array([[7, 1, 10, 100, 1000, 10000], [0, 2, 0, 0, 0, 3]], np.float32)
    sums = trie.along_paths(steps)
    assert sums.tolist() == [[7, 8, 18, 107, 1107, 10018], [0, 2, 2, 0, 0, 5]]
    assert steps[0].tolist() == [7, 1, 10, 100, 1000, 10000]


@pytest.mark.parametrize('sequences', [[(1,), ()], [(1, 2), (1, 2)]])
def test_sequences_that_no_tree_tells_apart(sequences):
    with pytest.raises(ValueError, match='distinct, and none of them empty'):
        token_trie.build(sequences)
