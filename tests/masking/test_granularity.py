"""Masks of channels and of blocks: sizes, files, and what readers of one refuse."""

import numpy as np
import pytest
import safetensors

from ppjax.base import errors
from ppjax.masking import granularity, pmask


def test_sizes_of_masks():
    channels, blocks = granularity.CHANNELS, granularity.BLOCKS
    assert channels.shape(28, 8192) == (28, 8192)
    assert blocks.shape(28, 8192) == (1, 28)
    sizes = {'sparsity': 0.25, 'align': 64}
    assert channels.keep_size(28, 8192, **sizes) == 6144
    assert blocks.keep_size(28, 8192, **sizes) == 21
    assert channels.pruned_size(28, 8192, 6144) == (28, 6144)
    assert blocks.pruned_size(28, 8192, 21) == (21, 8192)


@pytest.mark.parametrize(
    ('num_layers', 'sparsity', 'keep'),
    [(30, 0.5, 15), (3, 0.5, 2), (7, 0.0, 7), (7, 0.3, 5), (3, 0.95, 1), (1, 0.5, 1)],
)
def test_blocks_are_rounded_not_aligned(num_layers, sparsity, keep):
    found = granularity.BLOCKS.keep_size(num_layers, 8192, sparsity=sparsity, align=64)
    assert found == keep


def _mask(kept=(0, 3, 8), units=11, **changes):
    mask = np.zeros((1, units), bool)
    mask[0, list(kept)] = True
    values = {'granularity': 'blocks', 'system_prompt': 'You are Bram.'} | changes
    return pmask.PersonaMask(mask, 'some/model', 'ab' * 32, 'cd' * 32, **values)


@pytest.fixture
def saved(tmp_path):
    pmask.save(tmp_path / 'a.pmask', _mask())
    return tmp_path / 'a.pmask'


def test_a_file_of_blocks_comes_back(saved):
    found = pmask.load(saved)
    np.testing.assert_array_equal(found.mask, _mask().mask)
    assert (found.keep, found.granularity) == (3, 'blocks')
    assert found.kind is granularity.BLOCKS
    assert found.indices().tolist() == [[0, 3, 8]]
    found.check_base('ab' * 32, 11, 52)
    with pytest.raises(errors.InputError, match=r'11 blocks .* has 12'):
        found.check_base('ab' * 32, 12, 52)
    with pytest.raises(errors.InputError, match='learned on some/model'):
        found.check_base('ef' * 32, 11, 52)


def test_a_file_of_blocks_is_no_file_of_channels(saved):
    """Whoever reads `ppjax.pmask.v1` alone meets another format, and fewer keys."""
    with safetensors.safe_open(saved, framework='np') as handle:
        metadata = handle.metadata()
        assert handle.get_tensor('mask').tolist() == [[0b00001001, 0b00000001]]
    assert metadata['format'] == 'ppjax.pmask.blocks.v1' != pmask.FORMAT
    assert metadata['num_layers'] == '11'
    assert 'd_ff' not in metadata


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        (b'"keep":"3"', b'"keep":"4"', 'does not keep 4 blocks'),
        (b'"num_layers":"11"', b'"num_layers":"31"', 'metadata says 31 blocks'),
        (b'blocks.v1', b'blocks.v9', r"'ppjax.pmask.v1' or 'ppjax.pmask.blocks.v1'"),
    ],
)
def test_damaged_files_of_blocks_are_refused(saved, old, new, message):
    content = saved.read_bytes()
    assert old in content
    saved.write_bytes(content.replace(old, new))
    with pytest.raises(errors.InputError, match=message):
        pmask.load(saved)


def test_a_mask_of_blocks_has_one_row():
    with pytest.raises(ValueError, match=r'\[1, L\]'):
        pmask.PersonaMask(np.ones((2, 5), bool), 'm', 'f', 'p', granularity='blocks')


@pytest.mark.parametrize('shape', [(3, 52), (1, 4)])
def test_blocks_of_another_model_are_refused(tiny_models, shape):
    base = tiny_models('llama').base
    with pytest.raises(ValueError, match=r'must be bool \(1, 3\)'):
        granularity.BLOCKS.pruned(base, np.ones(shape, bool))
    with pytest.raises(ValueError, match='keeps 0'):
        granularity.BLOCKS.pruned(base, np.zeros((1, 3), bool))
