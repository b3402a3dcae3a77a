"""What is masked of a decoder: its shapes, and what tells one mask from another."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.models import attention
from ppjax.models import masks as masks_lib

_MASK = np.arange(3 * 52).reshape(3, 52) % 3 > 0


@pytest.mark.parametrize(
    'masks',
    [
        masks_lib.Masks(channels=jnp.ones((2, 52))),
        masks_lib.Masks(channels=jnp.ones((3, 4, 52))),
        masks_lib.Masks(channels=jnp.ones(52)),
        masks_lib.Masks(blocks=jnp.ones(2)),
        masks_lib.Masks(blocks=jnp.ones((3, 52))),
        masks_lib.Masks(attention=jnp.ones((3, 24))),
        masks_lib.Masks(ffn_norm=jnp.ones((3, 4, 24))),
        masks_lib.Masks(final_norm=jnp.ones((3, 24))),
    ],
)
def test_the_decoder_refuses_masks_of_another_shape(tiny_models, masks):
    tokens = jax.ShapeDtypeStruct((5, 4), jnp.int32)
    attend = attention.causal(5, 4)
    decoder = tiny_models('llama').decoder
    with pytest.raises(AssertionError, match='has shape'):
        jax.eval_shape(lambda t: decoder(t, t, masks, attend), tokens)


def test_only_who_has_rows_takes_a_mask_for_each(tiny_models):
    cfg = tiny_models('llama').config
    masks = masks_lib.Masks(channels=np.ones((3, 5, 52)))
    masks.check(cfg, rows=5)
    with pytest.raises(AssertionError, match=r'\(3, 5, 52\)'):
        masks.check(cfg)


def test_digests_are_of_the_content():
    channels = masks_lib.Masks(_MASK)
    assert masks_lib.DENSE.digest() == ''
    assert channels.digest() == channels.as_float32().digest() != ''
    # The same bits: laid out otherwise, or of something else.
    others = [
        masks_lib.Masks(~_MASK),
        masks_lib.Masks(_MASK.reshape(52, 3)),
        masks_lib.Masks(blocks=_MASK.reshape(-1)),
        masks_lib.Masks(attn_norm=_MASK),
        masks_lib.Masks(ffn_norm=_MASK),
    ]
    assert len({masks.digest() for masks in (channels, *others)}) == 6
    # Answers are kept under them.
    bits = np.ones((1, 2), np.float32)
    assert masks_lib.Masks(bits).digest() == (
        hashlib.sha256(b'(1, 2)' + bits.tobytes()).hexdigest()
    )
