"""Smaller weights of a persona give what its mask gives."""

import dataclasses

import jax
import numpy as np
import pytest

from ppjax.models import decoder as decoder_lib
from ppjax.models import int8_head
from ppjax.serving import pinned
from tests.serving import engines


@pytest.mark.parametrize('name', ['llama-biased', 'qwen2'])
def test_a_pinned_persona_says_the_same(tiny_models, name):
    tiny = tiny_models(name)
    cast = engines.cast(tiny.config, 3)
    prompts = [np.random.default_rng(n).integers(3, 97, 50).tolist() for n in range(4)]

    def answers(pins):
        with engines.running(tiny.decoder, slots=2, pins=pins) as made:
            asked = [
                engines.ask(made, who, prompt)
                for who, prompt in zip(cast, prompts, strict=True)
            ]
            return [one.ids() for one in asked], made.figures().slots

    masked, slots = answers([])
    # The last has gains.
    own, more = answers([cast[1], cast[3]])
    assert own == masked
    assert (slots, more) == (2, 6)


def test_int8_weights_keep_their_scales(tiny_models):
    cfg = dataclasses.replace(tiny_models('llama').config, num_layers=2)
    dense = decoder_lib.Decoder(
        cfg, dtype=np.float32, key=jax.random.key(0), int8_matrices=True
    )
    # As the server has it.
    dense = int8_head.with_int8_head(dense)
    assert dense.int8_head is not None
    who = engines.cast(cfg, 1)[1]
    prompt = list(range(5, 45))
    with engines.running(dense, slots=1) as made:
        want = engines.ask(made, who, prompt).ids()
    with engines.running(dense, slots=1, pins=[who]) as made:
        assert engines.ask(made, who, prompt).ids() == want


def test_layers_of_different_widths_are_filled_up():
    scale = np.array([[1, 0, 2, 0, 0], [0, 0, 0, 3, 0], [1, 1, 0, 0, 1]], np.float16)
    found = pinned.kept_channels(scale)
    assert found.tolist() == [[0, 1, 2], [0, 1, 3], [0, 1, 4]]


def test_attention_and_tables_are_shared(tiny_models):
    tiny = tiny_models('llama')
    who = engines.cast(tiny.config, 1)[1]
    small, _ = pinned.compact(tiny.decoder, who.scale)
    assert small.cfg.d_ff == 30
    pairs = [
        (small.embedding, tiny.decoder.embedding),
        (small.blocks.w_q.values, tiny.decoder.blocks.w_q.values),
    ]
    for mine, theirs in pairs:
        assert mine.get_value() is theirs.get_value()
