"""RoPE scaling as GGUF stores it: factors, one for each frequency."""

import pathlib
from typing import Any

import numpy as np
import pytest
import transformers

from ppjax.models import gguf_reader
from tests.models import gguf_files


def _rope_factors(**parameters: Any) -> np.ndarray:
    """transformers' frequencies say by what it divides them."""
    plain = {'rope_type': 'default', 'rope_theta': 500000.0}
    frequencies = []
    for rope in (plain, {**plain, **parameters}):
        config = transformers.LlamaConfig(
            **{**gguf_files.TINY, 'head_dim': 32, 'rope_parameters': rope}
        )
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        frequencies.append(rotary.inv_freq.numpy())
    return (frequencies[0] / frequencies[1]).astype(np.float32)


def _llama3(factor: float, original: int = 8192) -> dict[str, Any]:
    return {
        'rope_type': 'llama3',
        'factor': factor,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': original,
    }


def _write_rope(
    path: pathlib.Path, factors: np.ndarray, arch: str = 'llama'
) -> pathlib.Path:
    rope = {'rope_type': 'default', 'rope_theta': 500000.0}
    model = gguf_files.model_of(
        gguf_files.config_of(arch, head_dim=32, rope_parameters=rope)
    )
    return gguf_files.write_model(
        path, arch, model, tensors={'rope_freqs.weight': factors}
    )


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_llama3_rope_scaling_is_recovered(tmp_path, factor):
    factors = _rope_factors(**_llama3(factor))
    # Unscaled, interpolated and fully scaled frequencies are all there.
    assert factors[0] == 1 and factors[-1] == pytest.approx(factor)
    assert np.any((factors > 1.01) & (factors < factor - 0.01))

    reader = gguf_reader.GgufReader(_write_rope(tmp_path / 'm.gguf', factors))

    assert reader.hf_config['rope_parameters'] == {
        'rope_theta': 500000.0,
        **_llama3(factor),
    }
    assert not any('rope' in name for name in reader.names())


def test_rope_factors_of_one_mean_no_scaling(tmp_path):
    path = _write_rope(tmp_path / 'm.gguf', np.ones(16, np.float32))
    reader = gguf_reader.GgufReader(path)
    assert reader.hf_config['rope_parameters']['rope_type'] == 'default'


@pytest.mark.parametrize(
    ('factors', 'part'),
    [
        (_rope_factors(**_llama3(16.0)), 'rope_freqs.weight, up to 16'),
        (_rope_factors(**_llama3(8.0, original=4096)), 'rope_freqs.weight, up to 8'),
        (np.ones(15, np.float32), 'wanted F32 [16]'),
        (np.ones(16, np.float16), 'wanted F32 [16]'),
    ],
)
def test_other_rope_factors_are_refused(tmp_path, factors, part):
    gguf_files.assert_refused(_write_rope(tmp_path / 'm.gguf', factors), part)


def test_rope_factors_of_another_architecture_are_refused(tmp_path):
    path = _write_rope(tmp_path / 'm.gguf', np.ones(16, np.float32), 'qwen3')
    gguf_files.assert_refused(path, 'rope_freqs.weight', 'qwen3')
