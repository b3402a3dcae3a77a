"""Tensors read by several threads: the same weights, and one error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.models import gguf_reader, loading
from tests.models import gguf_files


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    """A GGUF model, whose reader may be asked by several threads."""
    config = gguf_files.config_of('llama', **gguf_files.BLOCK_32)
    path = tmp_path_factory.mktemp('parallel') / 'm.gguf'
    gguf_files.write_model(path, 'llama', gguf_files.model_of(config))
    return path


def _load(path, **settings):
    reader = gguf_reader.GgufReader(path)
    assert reader.is_parallel
    return loading.load_decoder(
        reader, loading.config_of(reader), dtype=jnp.float32, **settings
    )


@pytest.mark.parametrize('entries', [1, 100, 1 << 20])
@pytest.mark.parametrize('int8_matrices', [False, True])
def test_pieces_of_any_size_give_the_same_weights(
    path, monkeypatch, entries, int8_matrices
):
    monkeypatch.setattr(gguf_reader.GgufReader, 'is_parallel', False)
    reader = gguf_reader.GgufReader(path)
    one_by_one = loading.load_decoder(
        reader,
        loading.config_of(reader),
        dtype=jnp.float32,
        int8_matrices=int8_matrices,
    )
    monkeypatch.undo()
    monkeypatch.setattr(loading, '_THREAD_ENTRIES', entries)
    seen = []
    together = _load(
        path, int8_matrices=int8_matrices, progress=lambda *own: seen.append(own)
    )
    for one, other in zip(
        jax.tree.leaves(one_by_one), jax.tree.leaves(together), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]


def test_what_is_wrong_with_one_tensor_ends_all(path, monkeypatch):
    name = 'model.layers.0.mlp.up_proj.weight'
    asked = []
    read = gguf_reader.GgufReader.read

    def damaged(self, wanted, rows=slice(None)):
        asked.append(wanted)
        if wanted == name:
            raise errors.InputError(f'{wanted} is damaged.')
        return read(self, wanted, rows)

    monkeypatch.setattr(gguf_reader.GgufReader, 'read', damaged)
    with pytest.raises(errors.InputError, match=f'^{name} is damaged.$'):
        _load(path)
    # What comes after it was not begun.
    assert 'model.layers.0.mlp.down_proj.weight' not in asked
