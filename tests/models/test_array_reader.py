"""Arrays, slices and files: three ways to the same tensors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.models import array_reader, loading, sliced, weights


def _mask(cfg: Any, keep: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    mask = np.zeros((cfg.num_layers, cfg.d_ff), bool)
    for row in mask:
        row[rng.permutation(len(row))[:keep]] = True
    return mask


def test_weights_and_back_is_the_same_decoder(any_tiny: Any) -> None:
    found = weights.weights_of(any_tiny.decoder)
    assert ('head' in found) != any_tiny.config.tie_embeddings
    again = weights.decoder_of(any_tiny.config, found)
    assert jax.tree.structure(again) == jax.tree.structure(any_tiny.decoder)
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(any_tiny.decoder), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    abstract = weights.abstract(any_tiny.config)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda x: x.shape, abstract)
    del found['blocks']['w_up']
    with pytest.raises(KeyError, match='w_up'):
        weights.decoder_of(any_tiny.config, found)


def test_arrays_read_as_the_files_they_came_from(any_tiny: Any) -> None:
    reader = any_tiny.base.reader
    arrays = array_reader.ArrayReader(weights.weights_of(any_tiny.decoder), reader)
    assert arrays.names() == reader.names()
    for name in reader.names():
        assert arrays.shape(name) == reader.shape(name)
        assert arrays.dtype(name) == np.float32
        np.testing.assert_array_equal(arrays.read(name), reader.read(name))
        rows = slice(2, 5)
        np.testing.assert_array_equal(arrays.read(name, rows), reader.read(name, rows))


def test_a_sliced_reader_gives_any_rows(any_tiny: Any) -> None:
    base, mask = any_tiny.base, _mask(any_tiny.config)
    model = sliced.sliced_model(base, mask)
    assert model.config.d_ff == model.reader.hf_config['intermediate_size'] == 20
    name = 'model.layers.1.mlp.up_proj.weight'
    whole = base.reader.read(name)[mask[1]]
    for rows in (slice(None), slice(0, 1), slice(3, 11), slice(15, 99)):
        np.testing.assert_array_equal(model.reader.read(name, rows), whole[rows])
    down = 'model.layers.2.mlp.down_proj.weight'
    np.testing.assert_array_equal(
        model.reader.read(down, slice(4, 9)), base.reader.read(down)[4:9, mask[2]]
    )
    for name in model.reader.names():
        assert model.reader.read(name).shape == model.reader.shape(name)


def test_a_sliced_decoder_is_the_masked_one(
    tiny_models: Callable[[str], Any],
) -> None:
    tiny = tiny_models('llama-biased')
    mask = _mask(tiny.config)
    model = sliced.sliced_model(tiny.base, mask)
    small = loading.load_decoder(model.reader, model.config, dtype=jnp.float32)
    np.testing.assert_array_equal(
        small.blocks.w_gate.values[...][0],
        tiny.decoder.blocks.w_gate.values[...][0][:, mask[0]],
    )
    assert small.blocks.w_down.values[...].shape == (3, 20, 24)
