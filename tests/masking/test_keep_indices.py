"""Keep indices: the paper's form out, and only that form in."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.masking import keep_indices


def _write(tmp_path, value) -> str:
    path = tmp_path / 'keep.json'
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_file_is_the_papers(tmp_path):
    mask = np.zeros((2, 9), bool)
    mask[0, [8, 0, 3]] = True
    mask[1, [1, 2, 7]] = True
    path = tmp_path / 'keep.json'
    keep_indices.save(path, mask)
    assert json.loads(path.read_text()) == {'topk_indices': [[0, 3, 8], [1, 2, 7]]}


@hypothesis.given(num_layers=st.integers(1, 4), d_ff=st.integers(1, 40), data=st.data())
def test_round_trip(tmp_path_factory, num_layers, d_ff, data):
    keep = data.draw(st.integers(1, d_ff))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    mask = np.argsort(rng.random((num_layers, d_ff)), axis=1) < keep
    path = tmp_path_factory.getbasetemp() / 'keep.json'
    keep_indices.save(path, mask)
    loaded = keep_indices.load(path, num_layers, d_ff)
    assert loaded.dtype == np.bool_
    np.testing.assert_array_equal(loaded, mask)


def test_order_in_the_file_does_not_matter(tmp_path):
    path = _write(tmp_path, {'topk_indices': [[5, 0, 2], [1, 4, 3]], 'note': 'x'})
    want = np.asarray([[1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 1, 0]], bool)
    np.testing.assert_array_equal(keep_indices.load(path, 2, 6), want)


@pytest.mark.parametrize(
    ('value', 'part'),
    [
        ('{"topk_indices": [[0, 1], [2', 'invalid JSON'),
        ('', 'invalid JSON'),
        ('[' * 100_000, 'nested too deep'),
        ([[0, 1], [1, 2]], 'topk_indices'),
        ({'indices': [[0, 1], [1, 2]]}, 'topk_indices'),
        ({'topk_indices': None}, 'topk_indices'),
        ({'topk_indices': 7}, 'topk_indices'),
        ({'topk_indices': {'0': [0], '1': [1]}}, 'topk_indices'),
        ({'topk_indices': [[0, 'x'], [1, 2]]}, 'topk_indices'),
        ({'topk_indices': [[0, '3'], [1, 2]]}, 'topk_indices'),
        ({'topk_indices': [[0, 1.5], [1, 2]]}, 'topk_indices'),
        ({'topk_indices': [[True, False], [1, 2]]}, 'topk_indices'),
        ({'topk_indices': [[0, None], [1, 2]]}, 'topk_indices'),
        ({'topk_indices': [[0, 10**30], [1, 2]]}, 'keep.json'),
        ({'topk_indices': [[[0, 1]], [[1, 2]]]}, 'keep.json'),
        ({'topk_indices': [0, 1]}, 'keep.json'),
        ({'topk_indices': []}, '0 layers'),
        ({'topk_indices': [[0, 1]]}, '1 layers'),
        ({'topk_indices': [[0], [1], [2]]}, '3 layers'),
        ({'topk_indices': [[0, 1], [2]]}, 'layer 1 keeps 1'),
        ({'topk_indices': [[], []]}, 'layer 0'),
        ({'topk_indices': [[0, 1], [2, 6]]}, 'layer 1'),
        ({'topk_indices': [[-1, 1], [2, 3]]}, 'layer 0'),
        ({'topk_indices': [[0, 1], [3, 3]]}, 'layer 1'),
    ],
)
def test_other_forms_are_refused(tmp_path, value, part):
    path = _write(tmp_path, value)
    with pytest.raises(errors.InputError) as caught:
        keep_indices.load(path, 2, 6)
    assert part in str(caught.value)
    assert 'keep.json' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_absent_and_binary_files_are_refused(tmp_path):
    with pytest.raises(errors.InputError, match='does not exist'):
        keep_indices.load(tmp_path / 'none.json', 2, 6)
    with pytest.raises(errors.InputError, match=r'folder|directory'):
        keep_indices.load(tmp_path, 2, 6)
    path = tmp_path / 'keep.json'
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(errors.InputError, match=r'keep\.json'):
        keep_indices.load(path, 2, 6)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.just('topk_indices') | st.text(max_size=1), inner, max_size=2
        )
    ),
    max_leaves=8,
)


@hypothesis.given(value=_json | _json.map(lambda inner: {'topk_indices': inner}))
def test_any_json_is_a_mask_or_refused(tmp_path_factory, value):
    path = _write(tmp_path_factory.getbasetemp(), value)
    try:
        mask = keep_indices.load(path, 1, 4)
    except errors.InputError:
        return
    assert mask[0].sum() == len(value['topk_indices'][0])
