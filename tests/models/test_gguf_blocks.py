"""Blocks against the package that says what they are."""

import gguf
import numpy as np
import pytest

from ppjax.models import gguf_blocks, gguf_k_blocks
from tests.models import gguf_files


def test_all_that_the_package_dequantises_is_read():
    assert set(gguf_blocks.QUANTISED) == gguf.quants._type_traits.keys() - {
        gguf_files.Type.BF16
    }


@pytest.mark.parametrize('rows', [1, 2, 700])
def test_rows_are_quantised_and_read_in_stretches(monkeypatch, rows):
    monkeypatch.setattr(gguf_blocks, 'STRETCH', 1000)
    values = np.random.default_rng(1).normal(size=(rows, 96)).astype(np.float32)
    for kind in (gguf_files.Type.Q4_1, gguf_files.Type.Q8_0, gguf_files.Type.BF16):
        raw = gguf.quants.quantize(values, kind)
        np.testing.assert_array_equal(gguf_blocks.quantised(values, kind), raw)
        np.testing.assert_array_equal(
            gguf_blocks.dequantised(raw, kind), gguf.quants.dequantize(raw, kind)
        )


@pytest.mark.parametrize('kind', gguf_k_blocks.KINDS)
@pytest.mark.parametrize('rows', [1, 511, 512, 1100])
def test_any_bytes_become_the_packages_numbers(kind, rows):
    # All codes and scales, among them scales that are no numbers.
    _, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(rows).integers(0, 256, (rows, size), np.uint8)
    with np.errstate(all='ignore'):
        wanted = gguf.quants.dequantize(raw, kind)
    found = gguf_blocks.dequantised(raw, kind)
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_rows_of_several_blocks_are_taken_from_the_middle_of_a_file():
    kind = gguf_files.Type.Q4_K
    raw = np.random.default_rng(0).integers(0, 60, (900, 3 * 144), np.uint8)
    wanted = gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(gguf_blocks.dequantised(raw, kind), wanted)
    some = np.array([7, 3, 899])
    np.testing.assert_array_equal(
        gguf_blocks.dequantised(raw[some], kind), wanted[some]
    )
