"""Mask files: the contract's bytes, back as they were, or refused."""

import dataclasses
import hashlib
import json
import pathlib
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

import ppjax
from ppjax.base import errors
from ppjax.masking import pmask

_PROMPT = 'You are Bjørk 🚀.\nAnswer.'


def _mask(num_layers: int, d_ff: int, keep: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((num_layers, d_ff), bool)
    for row in mask:
        row[rng.choice(d_ff, keep, replace=False)] = True
    return mask


def _persona_mask(mask: np.ndarray) -> pmask.PersonaMask:
    return pmask.PersonaMask(
        mask=mask,
        base_model='some/model',
        base_fingerprint='ab' * 32,
        persona_sha256=hashlib.sha256(_PROMPT.encode()).hexdigest(),
        system_prompt=_PROMPT,
    )


def _raw(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safetensors.safe_open(path, framework='np') as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
        return tensors, handle.metadata()


def _rewrite(path, *, tensors=None, **changes) -> None:
    """Saves the file again with other tensors or metadata; None removes a key."""
    old_tensors, metadata = _raw(path)
    metadata = {k: v for k, v in (metadata | changes).items() if v is not None}
    tensors = old_tensors if tensors is None else tensors
    safetensors_numpy.save_file(tensors, path, metadata=metadata)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'a.pmask'
    pmask.save(path, _persona_mask(_mask(3, 21, 5)))
    return path


@hypothesis.given(num_layers=st.integers(1, 5), d_ff=st.integers(1, 70), data=st.data())
def test_round_trip(tmp_path_factory, num_layers, d_ff, data):
    keep = data.draw(st.integers(1, d_ff))
    before = _persona_mask(_mask(num_layers, d_ff, keep, data.draw(st.integers(0, 9))))
    path = tmp_path_factory.getbasetemp() / 'round.pmask'
    pmask.save(path, before)
    after = pmask.load(path)
    np.testing.assert_array_equal(after.mask, before.mask)
    assert after.mask.dtype == np.bool_
    assert after.keep == keep
    for field in dataclasses.fields(pmask.PersonaMask):
        if field.name != 'mask':
            assert getattr(after, field.name) == getattr(before, field.name)


def test_bits_are_little_endian_within_a_byte(tmp_path):
    mask = np.zeros((2, 11), bool)
    mask[0, [0, 1, 8]] = True  # Bytes 0b00000011, 0b00000001.
    mask[1, [3, 7, 10]] = True  # Bytes 0b10001000, 0b00000100.
    path = tmp_path / 'a.pmask'
    pmask.save(path, _persona_mask(mask))
    tensors, _ = _raw(path)
    assert list(tensors) == ['mask']
    assert tensors['mask'].dtype == np.uint8
    np.testing.assert_array_equal(tensors['mask'], [[3, 1], [136, 4]])
    np.testing.assert_array_equal(
        tensors['mask'], np.packbits(mask, axis=-1, bitorder='little')
    )


def test_metadata_are_the_contracts(saved):
    _, metadata = _raw(saved)
    assert metadata == {
        'format': 'ppjax.pmask.v1',
        'base_model': 'some/model',
        'base_fingerprint': 'ab' * 32,
        'num_layers': '3',
        'd_ff': '21',
        'keep': '5',
        'persona_sha256': hashlib.sha256(_PROMPT.encode()).hexdigest(),
        'tool_version': ppjax.__version__,
        'system_prompt': _PROMPT,
    }


def test_file_is_small(tmp_path):
    path = tmp_path / 'a.pmask'
    pmask.save(path, _persona_mask(_mask(30, 1536, 1152)))
    assert path.stat().st_size < 30 * 1536 / 8 + 2000


def test_prompt_may_be_absent(saved):
    _rewrite(saved, system_prompt=None)
    assert pmask.load(saved).system_prompt == ''


def test_indices_and_keep():
    mask = _mask(4, 13, 6)
    persona_mask = _persona_mask(mask)
    assert persona_mask.keep == 6
    indices = persona_mask.indices()
    assert indices.shape == (4, 6)
    for row, kept in zip(mask, indices, strict=True):
        np.testing.assert_array_equal(kept, np.nonzero(row)[0])


@pytest.mark.parametrize(
    'mask',
    [
        np.ones((2, 4), np.float32),
        np.ones(4, bool),
        np.zeros((2, 4), bool),
        np.asarray([[1, 1, 0], [1, 0, 0]], bool),
        np.ones((0, 4), bool),
    ],
)
def test_masks_that_are_none_cannot_be_made(mask):
    with pytest.raises(ValueError, match=r'mask must be|same number'):
        _persona_mask(mask)


def test_another_base_is_refused(saved):
    persona_mask = pmask.load(saved)
    persona_mask.check_base('ab' * 32, 3, 21)
    with pytest.raises(errors.InputError, match=r'some/model.*abababababab.*cdcdcd'):
        persona_mask.check_base('cd' * 32, 3, 21)
    for shape in ((4, 21), (3, 22), (21, 3)):
        with pytest.raises(errors.InputError, match=r'3 layers of 21 .*some/model'):
            persona_mask.check_base('ab' * 32, *shape)


def _refused(path, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        pmask.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert '\n' not in message
    for part in parts:
        assert part in message


def test_absent_file_is_refused(tmp_path):
    _refused(tmp_path / 'none.pmask', 'does not exist')
    _refused(tmp_path, 'is a folder')


@pytest.mark.parametrize('share', [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    _refused(saved, 'no readable mask file')


def test_a_file_is_read_and_not_mapped(saved, monkeypatch):
    # Of a mapped file that is cut short while it is read the system ends the process.
    def mapped(*args, **more):
        raise AssertionError('mapped')

    monkeypatch.setattr(safetensors, 'safe_open', mapped)
    assert pmask.load(saved).keep


def test_a_dtype_that_numpy_lacks_is_refused(saved):
    header = {'mask': {'dtype': 'F8_E4M3', 'shape': [1], 'data_offsets': [0, 1]}}
    text = json.dumps(header).encode()
    saved.write_bytes(struct.pack('<Q', len(text)) + text + b'\0')
    _refused(saved, 'no readable mask file')


def test_foreign_files_are_refused(saved):
    safetensors_numpy.save_file({'mask': np.ones((3, 3), np.uint8)}, saved)
    _refused(saved, 'format None')
    saved.write_text('{"topk_indices": [[1, 2]]}')
    _refused(saved, 'no readable mask file')


def test_model_weights_are_refused(saved):
    safetensors_numpy.save_file({'w': np.ones((3, 3), np.float32)}, saved)
    _refused(saved)


@pytest.mark.parametrize(
    'key',
    [
        'base_model',
        'base_fingerprint',
        'num_layers',
        'd_ff',
        'keep',
        'persona_sha256',
        'tool_version',
    ],
)
def test_missing_metadata_are_named(saved, key):
    _rewrite(saved, **{key: None})
    _refused(saved, key)


@pytest.mark.parametrize(
    ('changes', 'part'),
    [
        ({'format': 'ppjax.pmask.v3'}, 'ppjax.pmask.v3'),
        ({'keep': 'five'}, 'five'),
        ({'keep': '6'}, '6 channels'),
        ({'keep': '0'}, 'channels'),
        ({'num_layers': '4'}, '4 layers'),
        ({'d_ff': '30'}, '30 channels'),
        ({'d_ff': '-21'}, '-21'),
        ({'d_ff': '1e99'}, '1e99'),
    ],
)
def test_metadata_that_disagree_are_refused(saved, changes, part):
    _rewrite(saved, **changes)
    _refused(saved, part)


def test_no_layers_no_channels_and_nothing_kept_are_refused(saved):
    _rewrite(saved, tensors={'mask': np.zeros((0, 3), np.uint8)}, num_layers='0')
    _refused(saved)
    _rewrite(saved, tensors={'mask': np.zeros((3, 3), np.uint8)}, num_layers='3')
    _rewrite(saved, keep='0')
    _refused(saved)
    _rewrite(saved, tensors={'mask': np.zeros((3, 0), np.uint8)}, d_ff='0')
    _refused(saved)


@pytest.mark.parametrize('dtype', [np.int8, np.float32, np.uint16, np.bool_])
def test_other_dtypes_are_refused(saved, dtype):
    tensors, _ = _raw(saved)
    _rewrite(saved, tensors={'mask': tensors['mask'].astype(dtype)})
    _refused(saved, np.dtype(dtype).name)


def test_one_flipped_bit_is_noticed(saved):
    tensors, _ = _raw(saved)
    tensors['mask'][1, 0] ^= 4
    _rewrite(saved, tensors=tensors)
    _refused(saved, '5 channels')


@hypothesis.given(data=st.data())
def test_damage_is_never_a_traceback(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'damaged.pmask'
    pmask.save(path, _persona_mask(_mask(3, 21, 5)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = pmask.load(path)
    except errors.InputError:
        return
    assert loaded.mask.sum() == 15


def test_header_of_a_type_numpy_lacks_is_refused(saved):
    tensors, metadata = _raw(saved)
    header = {
        '__metadata__': metadata,
        'mask': {
            'dtype': 'F8_E4M3',
            'shape': list(tensors['mask'].shape),
            'data_offsets': [0, tensors['mask'].size],
        },
    }
    text = json.dumps(header).encode()
    saved.write_bytes(struct.pack('<Q', len(text)) + text + tensors['mask'].tobytes())
    _refused(saved)


def test_save_is_atomic(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(path, content):
        path.write_text('half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(pathlib.Path, 'write_bytes', fail)
    with pytest.raises(errors.InputError, match='No space left'):
        pmask.save(saved, _persona_mask(_mask(3, 21, 6)))
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]
