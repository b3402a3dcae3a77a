"""Blocks against the package that says what they are."""

import gguf
import numpy as np
import pytest

from ppjax.models import gguf_blocks
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
