"""An int8 unembedding: what it costs in precision, and what of the model stays."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.models import (
    attention,
    generation,
    int8_head,
    loading,
    products,
    weights,
)
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding


def _int8(tiny, mesh=None):
    return loading.load_decoder(
        tiny.base.reader,
        tiny.base.config,
        dtype=jnp.float32,
        int8_matrices=True,
        mesh=mesh,
    )


@pytest.mark.parametrize('name', ['llama', 'qwen3-tied'])
def test_logits_are_off_by_the_rounding_of_the_table(tiny_models, name):
    tiny = tiny_models(name)
    model = _int8(tiny)
    found = int8_head.with_int8_head(model)
    hidden = jax.random.normal(jax.random.key(0), (2, 3, tiny.config.d_model))
    got, want = (jax.jit(lambda m: m.unembed(hidden))(m) for m in (found, model))
    assert got.shape == want.shape
    assert got.dtype == jnp.float32
    table = model.embedding if model.head is None else model.head
    half_step = np.abs(table[...]).max(axis=1) / 127 / 2  # [V]
    limit = np.abs(hidden).sum(axis=-1)[..., None] * half_step
    assert (np.abs(got - want) <= 1.01 * limit).all()
    assert np.abs(got - want).max() > 0
    # An unembedding of its own is not kept twice; tokens are looked up as before.
    assert found.head is None
    assert found.embedding[...] is model.embedding[...]
    assert (model.head is None) == tiny.config.tie_embeddings
    assert model.int8_head is None


def test_weights_and_back(tiny_models):
    for name in ('llama', 'qwen3-tied'):
        tiny = tiny_models(name)
        model = int8_head.with_int8_head(_int8(tiny))
        found = weights.weights_of(model)
        assert set(found['int8_head']) == {'values', 'scale'}
        again = weights.decoder_of(tiny.config, found)
        assert jax.tree.structure(again) == jax.tree.structure(model)
        assert all(map(operator.is_, jax.tree.leaves(again), jax.tree.leaves(model)))


def test_floats_and_meshes_stay_as_they_are(tiny_models):
    tiny = tiny_models('llama')
    assert int8_head.with_int8_head(tiny.decoder) is tiny.decoder
    mesh = sharding.make_mesh('data:-1', jax.devices())
    spread = _int8(tiny, mesh)
    assert int8_head.with_int8_head(spread) is spread


def test_answers_do_not_depend_on_the_batch(tiny_models):
    model = int8_head.with_int8_head(_int8(tiny_models('llama')))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 90, length).tolist() for length in (4, 11, 7)]
    options = {'max_new_tokens': 12, 'stop_ids': ()}
    together = generation.generate(model, masks_lib.DENSE, prompts, **options)
    for prompt, answer in zip(prompts, together, strict=True):
        [alone] = generation.generate(model, masks_lib.DENSE, [prompt], **options)
        assert alone == answer


def test_smollm2_predicts_as_well(smollm2):
    rounded = int8_head.with_int8_head(_int8(smollm2))
    text = ' '.join(demo.rewrites('ferryman').values())
    # As many as are multiplied in integers.
    tokens = jnp.asarray([smollm2.tokenizer.encode(text)[: products.FEW_ROWS]])
    assert tokens.shape[1] == products.FEW_ROWS

    @jax.jit
    def log_probs(model):
        at = jnp.arange(tokens.shape[1])[None]
        attend = attention.causal(*tokens.shape)
        hidden, _, _ = model(tokens, at, masks_lib.DENSE, attend)
        return jax.nn.log_softmax(model.unembed(hidden[0]))

    got, want = (log_probs(model) for model in (rounded, smollm2.decoder))
    nll = [-x[np.arange(len(x) - 1), tokens[0, 1:]].mean() for x in (got, want)]
    assert abs(nll[0] - nll[1]) < 0.02
    assert np.mean(got.argmax(axis=1) == want.argmax(axis=1)) > 0.85
