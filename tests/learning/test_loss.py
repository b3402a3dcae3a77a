"""Losses in chunks beside those of whole logits."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.learning import loss


def _problem(decoder, size):
    rng = np.random.default_rng(size)
    width, words = decoder.cfg.d_model, decoder.cfg.vocab_size
    states, dense = (
        jnp.asarray(rng.normal(size=(size, width)), jnp.float32) for _ in range(2)
    )
    targets = jnp.asarray(rng.integers(0, words, size))
    return states, targets, dense, jnp.asarray(rng.random(size))


def _plain(decoder, states, targets, dense, objective, unlikely):
    """Without chunks, and differentiated as it stands."""
    log_p = jax.nn.log_softmax(decoder.unembed(states))
    rows = jnp.arange(len(states))
    found = jnp.zeros(len(states))
    if 'ce' in objective:
        found -= log_p[rows, targets]
    if 'kl' in objective:
        other = jax.nn.log_softmax(decoder.unembed(dense))
        found += jnp.sum(jnp.exp(other) * (other - log_p), axis=-1)
    if unlikely is not None:
        avoided = -jnp.log1p(-jnp.exp(log_p[rows, targets]))
        found = jnp.where(unlikely, avoided, found)
    return found


@pytest.mark.parametrize('objective', loss.OBJECTIVES)
@pytest.mark.parametrize('avoids', [False, True])
@pytest.mark.parametrize('size', [1, 8, 21])
def test_losses_and_gradients_are_those_of_whole_logits(
    tiny_models, monkeypatch, objective, avoids, size
):
    monkeypatch.setattr(loss, '_UNEMBED_CHUNK', 8)
    decoder = tiny_models('llama').decoder
    states, targets, dense, weights = _problem(decoder, size)
    unlikely = jnp.arange(size) % 3 == 1 if avoids else None

    def ours(states):
        return loss.token_losses(
            decoder,
            states,
            targets,
            dense if 'kl' in objective else None,
            objective=objective,
            unlikely=unlikely,
        )

    def plain(states):
        return _plain(decoder, states, targets, dense, objective, unlikely)

    np.testing.assert_allclose(ours(states), plain(states), rtol=1e-5, atol=1e-5)
    # Tokens do not count alike.
    got, want = (
        jax.jit(jax.grad(lambda x, f=f: jnp.sum(weights * f(x))))(states)
        for f in (ours, plain)
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('variant', ['llama', 'llama-tied'])
def test_an_unembedding_that_is_trained_has_a_gradient(
    tiny_models, monkeypatch, variant
):
    monkeypatch.setattr(loss, '_UNEMBED_CHUNK', 8)
    decoder = tiny_models(variant).decoder
    states, targets, dense, weights = _problem(decoder, 21)
    graph, leaves = nnx.split(decoder)

    def ours(leaves, states):
        model = nnx.merge(graph, leaves)
        found = loss.token_losses(model, states, targets, None, objective='ce')
        return jnp.sum(weights * found)

    def plain(leaves, states):
        model = nnx.merge(graph, leaves)
        return jnp.sum(weights * _plain(model, states, targets, dense, 'ce', None))

    got, want = (jax.jit(jax.grad(f, (0, 1)))(leaves, states) for f in (ours, plain))
    changed = 0
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        changed += bool(np.any(other))
    assert changed == 2  # The unembedding and the states.


@pytest.mark.parametrize(
    ('size', 'rows'), [(1, 8), (256, 256), (257, 136), (335, 168), (670, 224)]
)
def test_pieces_are_no_longer_than_they_must_be(tiny_models, size, rows):
    decoder = tiny_models('llama').decoder
    states, targets, *_ = _problem(decoder, size)

    def losses(states):
        return loss.token_losses(decoder, states, targets, None, objective='ce')

    words = decoder.cfg.vocab_size
    assert f'f32[{rows},{words}]' in str(jax.make_jaxpr(losses)(states))
