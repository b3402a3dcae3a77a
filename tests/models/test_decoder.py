"""The decoder and its attention against transformers and dense references."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppjax.models import attention, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

_TEXT = """\
The lighthouse at Carrick Point was built in 1843, after the third grain ship in
as many winters had broken up on the shoals below it. The first keeper, a widower
called Thomas Hale, climbed its 187 steps twice a night to trim the wick, and kept a
diary in which he wrote down the weather, the passing ships, and, when nothing
passed, his opinion of the bishop. "Fog again," says the entry for 9 March 1851.
"Rang the bell until four. My arm believes it is still ringing."

When the oil lamp gave way to electricity, the keepers stayed on, because somebody
had to clean the glass. The lens weighs two tonnes and floats on a bath of mercury,
so that a child can turn it with one finger; it throws a beam of about 26 nautical
miles on a clear night. Engineers from three countries have offered to replace it
with a lamp no bigger than a teapot. Each time the village has politely declined.

What would be lost? Not safety: every trawler now carries a receiver that knows its
position to within five metres. But people here set their sleep by that slow white
sweep across the ceiling. Dr. Amina Okafor, who studies such habits at the
university in Galway, found that the villagers fall asleep eleven minutes sooner on
nights when the light is running than on nights when it's being repaired. She does
not claim to know why. "You could call it superstition," she told me, pouring tea,
"or you could call it a very large night light. The effect is the same size either
way, and it doesn't care what we call it."

def beam(t, period=7.5):
    return max(0.0, cos(2 * pi * t / period)) ** 8   # brightness at time t

The code above is pinned to the wall of the harbour café. Nobody remembers who wrote
it; somebody has corrected the exponent twice.
"""


def _padded(lengths, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [B, T], 1 where they are real)."""
    rng = np.random.default_rng(seed)
    real = np.arange(width) < np.asarray(lengths)[:, None]
    tokens = np.where(real, rng.integers(0, 97, real.shape), 0)
    return tokens, real.astype(np.int64)


def _random_mask(shape: tuple[int, ...], keep: int, seed: int = 0) -> np.ndarray:
    order = np.argsort(np.random.default_rng(seed).random(shape), axis=-1)
    return order < keep


# --- Logits -------------------------------------------------------------------


def test_logits_equal_transformers(any_tiny):
    tokens, real = _padded((40, 23, 7), 40)
    # Gaps, since attention sees differences of positions only.
    steps = np.random.default_rng(1).integers(1, 4, tokens.shape)
    positions = np.cumsum(steps, axis=1) + 2
    want = any_tiny.hf_logits(tokens, positions, real)
    got = any_tiny.logits(tokens, positions)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[real == 1], want[real == 1], atol=1e-4, rtol=0)
    # The comparison would notice: logits are far larger than the tolerance.
    assert want.std() > 0.5


def test_one_layer_of_compiled_code_serves_all(tiny_models):
    tiny = tiny_models('llama')
    tokens, _ = _padded((8,), 8)
    text = str(
        jax.make_jaxpr(
            lambda t: tiny.decoder(t, t, masks_lib.DENSE, attention.causal(1, 8))[0]
        )(jnp.asarray(tokens))
    )
    assert text.count('logistic') == 1


def test_smollm2_on_text_equals_transformers(smollm2, smollm2_hf):
    tokens = np.asarray([smollm2.tokenizer.encode(_TEXT)])
    assert tokens.shape[1] > 350
    with torch.no_grad():
        want = smollm2_hf(torch.tensor(tokens)).logits.numpy()

    @jax.jit
    def logits(model, tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        attend = attention.causal(*tokens.shape)
        return model.unembed(model(tokens, positions, masks_lib.DENSE, attend)[0])

    got = np.asarray(logits(smollm2.decoder, tokens))
    np.testing.assert_allclose(got, want, atol=1e-3, rtol=0)
    # It is the model that was meant: English is far below log(49152) = 10.8 nats.
    shifted = torch.tensor(got[0, :-1])
    nll = torch.nn.functional.cross_entropy(shifted, torch.tensor(tokens[0, 1:]))
    assert nll < 4


# --- The FFN mask -------------------------------------------------------------


@pytest.mark.parametrize('name', ['llama-biased', 'qwen2', 'qwen3'])
def test_zero_in_the_mask_equals_a_deleted_channel(tiny_models, name):
    tiny = tiny_models(name)
    tokens, _ = _padded((17, 17), 17)
    mask = _random_mask((3, 52), keep=29)
    pruned = dataclasses.replace(tiny, hf=tiny.pruned_hf(mask))
    assert pruned.hf.model.layers[0].mlp.down_proj.weight.shape == (24, 29)
    want = pruned.hf_logits(tokens)
    np.testing.assert_allclose(
        tiny.logits(tokens, channels=mask), want, atol=1e-4, rtol=0
    )
    assert np.abs(want - tiny.logits(tokens)).max() > 0.1


def test_mask_of_ones_is_the_dense_model(tiny_models):
    tiny = tiny_models('llama')
    tokens, _ = _padded((17, 17), 17)
    ones = tiny.logits(tokens, channels=np.ones((3, 52)))
    np.testing.assert_array_equal(ones, tiny.logits(tokens))


def test_mask_multiplies_channels(tiny_models):
    tiny = tiny_models('llama')
    tokens, _ = _padded((17, 17), 17)
    mask = np.random.default_rng(2).uniform(0, 2, (3, 52)).astype(np.float32)
    handles = [
        block.mlp.down_proj.register_forward_pre_hook(
            lambda module, args, row=row: args[0] * torch.tensor(row)
        )
        for block, row in zip(tiny.hf.model.layers, mask, strict=True)
    ]
    want = tiny.hf_logits(tokens)
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(
        tiny.logits(tokens, channels=mask), want, atol=1e-4, rtol=0
    )


def test_one_mask_a_row_equals_each_row_under_its_mask(tiny_models):
    tiny = tiny_models('qwen3')
    tokens, _ = _padded((13, 13, 13), 13)
    masks = _random_mask((3, 3, 52), keep=20, seed=3)  # [L, B, F]
    got = tiny.logits(tokens, channels=masks)
    alone = [tiny.logits(tokens, channels=masks[:, row]) for row in range(3)]
    for row in range(3):
        np.testing.assert_allclose(got[row], alone[row][row], atol=1e-5, rtol=0)
    assert np.abs(got[0] - alone[1][0]).max() > 0.1


# --- Rematerialisation --------------------------------------------------------


def test_remat_changes_memory_and_no_gradient(tiny_models):
    decoder = tiny_models('llama').decoder
    tokens = jnp.asarray(_padded((11, 11), 11)[0])
    positions = jnp.broadcast_to(jnp.arange(11)[None], (2, 11))
    weights = jax.random.normal(jax.random.key(0), (2, 11, 24))
    mask = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (3, 52)), jnp.float32)

    def loss(mask, decoder, remat):
        attend = attention.causal(2, 11)
        hidden, _, _ = decoder(
            tokens, positions, masks_lib.Masks(mask), attend, remat=remat
        )
        return jnp.sum(hidden * weights)

    gradients, products = {}, {}
    for remat in decoder_lib.REMAT:
        gradient = jax.grad(functools.partial(loss, remat=remat))
        gradients[remat] = jax.jit(gradient)(mask, decoder)
        jaxpr = jax.make_jaxpr(gradient)(mask, decoder)
        products[remat] = str(jaxpr).count('dot_general')
    for remat in ('dots', 'full'):
        np.testing.assert_allclose(
            gradients[remat], gradients['none'], rtol=1e-5, atol=1e-5
        )
    # 'dots' redoes attention's two products, 'full' those with weights as well.
    assert products['none'] < products['dots'] < products['full']


def test_unknown_remat_is_refused(tiny_models):
    decoder = tiny_models('llama').decoder
    tokens = jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(ValueError, match=r"'full'.*got 'some'"):
        decoder(tokens, tokens, masks_lib.DENSE, attention.causal(1, 3), remat='some')


# --- Tap ----------------------------------------------------------------------


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_tap_sees_block_outputs_and_unmasked_channels(tiny_models, remat):
    tiny = tiny_models('llama')
    tokens, _ = _padded((9, 9), 9)
    mask = _random_mask((3, 52), keep=30, seed=5)
    channels, outputs, handles = [], [], []

    def mask_input(module, args):
        channels.append(args[0].numpy())
        return args[0] * torch.tensor(mask[len(channels) - 1])

    for block in tiny.hf.model.layers:
        handles.append(block.mlp.down_proj.register_forward_pre_hook(mask_input))
        handles.append(
            block.register_forward_hook(
                lambda module, args, out: outputs.append(
                    (out[0] if isinstance(out, tuple) else out).numpy()
                )
            )
        )
    tiny.hf_logits(tokens)
    for handle in handles:
        handle.remove()

    @jax.jit
    def run(model, tokens, mask):
        positions = jnp.broadcast_to(jnp.arange(9)[None], (2, 9))
        attend = attention.causal(2, 9)
        tap = lambda before, x, hidden: {'x': x, 'hidden': hidden, 'before': before}
        return model(
            tokens, positions, masks_lib.Masks(mask), attend, tap=tap, remat=remat
        )[2]

    taps = run(tiny.decoder, tokens, jnp.asarray(mask, jnp.float32))
    np.testing.assert_allclose(taps['x'], np.stack(outputs), atol=1e-4, rtol=0)
    np.testing.assert_array_equal(taps['before'][1:], taps['x'][:-1])
    np.testing.assert_allclose(taps['hidden'], np.stack(channels), atol=1e-4, rtol=0)
    assert np.abs(np.stack(channels)).mean() > 0.1


def test_without_tap_nothing_is_kept(tiny_models):
    decoder = tiny_models('llama').decoder
    tokens = jnp.zeros((1, 3), jnp.int32)
    out = jax.eval_shape(
        lambda t: decoder(t, t, masks_lib.DENSE, attention.causal(1, 3)), tokens
    )
    assert out[1:] == (None, None)


# --- Attention ----------------------------------------------------------------


def _qkv(batch, length, heads=6, kv_heads=2, head_dim=10, seed=0, keys=None):
    shapes = (
        (batch, length, heads, head_dim),
        (batch, keys or length, kv_heads, head_dim),
        (batch, keys or length, kv_heads, head_dim),
    )
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _out_and_gradients(attend, q, k, v, cotangent):
    @jax.jit
    def both(q, k, v, cotangent):
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(cotangent)

    return both(q, k, v, cotangent)


@pytest.mark.parametrize('kv_heads', [1, 2, 6])
@pytest.mark.parametrize('mask_rows', [1, 3])
def test_dot_product_attention_equals_jaxs(kv_heads, mask_rows):
    q, k, v = _qkv(3, 5, kv_heads=kv_heads, keys=8)
    mask = np.random.default_rng(1).random((mask_rows, 5, 8)) < 0.5
    mask[:, :, 2] = True
    mask = jnp.asarray(mask)
    cotangent = _qkv(3, 5, seed=9)[0]

    def theirs(q, k, v):
        full = jnp.broadcast_to(mask[:, None], (3, 1, 5, 8))
        return jax.nn.dot_product_attention(q, k, v, mask=full)

    def ours(q, k, v):
        return attention.dot_product_attention(q, k, v, mask)

    (got, got_grads), (want, want_grads) = (
        _out_and_gradients(attend, q, k, v, cotangent) for attend in (ours, theirs)
    )
    np.testing.assert_allclose(got, want, atol=1e-6)
    for mine, other in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_logits_are_float32_for_bfloat16_inputs():
    q, k, v = (x.astype(jnp.bfloat16) for x in _qkv(1, 64, heads=1, kv_heads=1))
    q = q * 8
    mask = jnp.tril(jnp.ones((1, 64, 64), bool))
    got = attention.dot_product_attention(q, k, v, mask)
    assert got.dtype == jnp.bfloat16
    exact = attention.dot_product_attention(
        *(x.astype(jnp.float32) for x in (q, k, v)), mask
    )
    # Values are below 4. Weights and outputs may be rounded, by 2^-8 each; bfloat16
    # logits of size 32 would be off by 0.1, and so would the outputs.
    assert np.abs(v).max() < 4
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=8 * 2**-8)


_SEGMENTS = {
    # (chunk, segments of two rows); 0 is padding.
    'one chunk': (9, [[1, 1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2, 2]]),
    'three chunks': (4, [[1, 1, 2, 0, 3, 3, 3, 3, 4, 0, 0, 0], [1, 1, 1, 1] + [0] * 8]),
    'single tokens': (1, [[1, 2, 3, 0, 4], [1, 2, 3, 4, 5]]),
}


def _packed_mask(prefix: int, segments: np.ndarray) -> np.ndarray:
    """Who may look at whom, [B, T, T], pair by pair."""
    batch, body = segments.shape
    length = prefix + body
    mask = np.zeros((batch, length, length), bool)
    for row in range(batch):
        for query in range(length):
            for key in range(query + 1):
                shared = key < prefix
                own = (
                    not shared
                    and segments[row, query - prefix] == segments[row, key - prefix]
                )
                mask[row, query, key] = shared or own
    return mask


@pytest.mark.parametrize('prefix', [0, 1, 7])
@pytest.mark.parametrize('case', sorted(_SEGMENTS))
def test_packed_equals_dense_mask_attention(prefix, case):
    chunk, rows = _SEGMENTS[case]
    segments = np.asarray(rows)
    length = prefix + segments.shape[1]
    q, k, v = _qkv(2, length)
    cotangent = _qkv(2, length, seed=4)[0]
    mask = _packed_mask(prefix, segments)
    # What padding computes is nobody's business.
    real = np.concatenate([np.ones((2, prefix), bool), segments > 0], axis=1)
    cotangent = cotangent * real[:, :, None, None]

    def packed(q, k, v):
        attend = attention.Packed(prefix, chunk, jnp.asarray(segments))
        out, cache = attend(q, k, v)
        assert cache is None
        return out

    def dense(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(mask[:, None]))

    (got, got_grads), (want, want_grads) = (
        _out_and_gradients(attend, q, k, v, cotangent) for attend in (packed, dense)
    )
    got, want = np.asarray(got), np.asarray(want)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[real], want[real], atol=1e-6)
    for mine, other in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_packed_refuses_a_body_that_chunks_do_not_fill():
    q, k, v = _qkv(1, 12)
    attend = attention.Packed(2, 4, jnp.ones((1, 10), jnp.int32))
    with pytest.raises(ValueError, match=r'12 - 2 tokens are no multiple of .* 4'):
        attend(q, k, v)


def test_causal_ignores_the_future(tiny_models):
    tiny = tiny_models('llama')
    tokens, _ = _padded((12,), 12)
    changed = tokens.copy()
    changed[0, 7:] = (changed[0, 7:] + 1) % 97
    before, after = tiny.logits(tokens), tiny.logits(changed)
    np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-5, rtol=0)
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 0.1


def test_cached_steps_equal_the_whole_sequence(tiny_models):
    tiny = tiny_models('qwen3-biased')
    cfg = tiny.config
    lengths = np.asarray([6, 3])  # Prompts; each row then continues on its own.
    tokens, _ = _padded((12, 12), 12)
    mask = jnp.asarray(_random_mask((3, 2, 52), keep=33), jnp.float32)
    want = tiny.logits(tokens, channels=np.asarray(mask))

    @jax.jit
    def step(model, tokens, positions, cache):
        attend = attention.Cached(positions)
        hidden, cache, _ = model(
            tokens, positions, masks_lib.Masks(mask), attend, cache=cache
        )
        return model.unembed(hidden), cache

    # More slots than tokens, full of what must not be looked at.
    empty = jnp.full((3, 2, cfg.num_kv_heads, 20, cfg.head_dim), 50.0)
    cache = attention.KVCache(empty, empty)
    positions = np.broadcast_to(np.arange(6), (2, 6))
    logits, cache = step(tiny.decoder, tokens[:, :6], positions, cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            logits[row, :length], want[row, :length], atol=1e-4, rtol=0
        )
    rows = np.arange(2)
    for offset in range(5):
        place = lengths + offset  # Row 1 overwrites slots that the prompt filled.
        logits, cache = step(
            tiny.decoder, tokens[rows, place][:, None], place[:, None], cache
        )
        np.testing.assert_allclose(logits[:, 0], want[rows, place], atol=1e-4, rtol=0)


# --- Precision ----------------------------------------------------------------


@pytest.mark.parametrize('name', ['llama-biased', 'qwen3'])
def test_bfloat16_is_near_float32(tiny_models, name):
    tiny = tiny_models(name)
    tokens, _ = _padded((17, 17), 17)
    mask = _random_mask((3, 52), keep=40)
    half = loading.load_decoder(tiny.base.reader, tiny.config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    got = dataclasses.replace(tiny, decoder=half).logits(tokens, channels=mask)
    assert got.dtype == np.float32
    want = tiny.logits(tokens, channels=mask)
    error = np.sqrt(np.mean((got - want) ** 2)) / want.std()
    assert 1e-4 < error < 0.03


def test_bfloat16_activations_stay_bfloat16(tiny_models):
    tiny = tiny_models('qwen3')
    half = loading.load_decoder(tiny.base.reader, tiny.config, dtype=jnp.bfloat16)
    tokens = jnp.zeros((1, 5), jnp.int32)
    mask = jnp.ones((3, 52), jnp.float32)  # Scores, and so masks, are float32.

    def run(tokens, mask):
        attend = attention.causal(1, 5)
        return half(
            tokens, tokens, masks_lib.Masks(mask), attend, tap=lambda *seen: seen
        )

    hidden, _, taps = jax.eval_shape(run, tokens, mask)
    for array in (hidden, *taps):
        assert array.dtype == jnp.bfloat16


def test_norms_are_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (2, 5, 200)).astype(jnp.bfloat16) * 7
    got = decoder_lib.rms_norm(x, jnp.ones((200,), jnp.bfloat16), 1e-5)
    exact = np.asarray(x, np.float64)
    exact = exact / np.sqrt(np.mean(exact**2, axis=-1, keepdims=True) + 1e-5)
    assert got.dtype == jnp.bfloat16
    # Rounded once, at the end: half a unit in the last of 8 places.
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8 * 1.01)
