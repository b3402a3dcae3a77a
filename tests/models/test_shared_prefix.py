"""A prefix computed once gives what it gives within every prompt."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.models import attention, generation, shared_prefix
from ppjax.models import masks as masks_lib

_RNG = np.random.default_rng(3)
_PREFIX = _RNG.integers(3, 97, 21).tolist()
_PROMPTS = [_RNG.integers(3, 97, n).tolist() for n in (1, 7, 30, 43)]


def _hidden(tiny, tokens, attend, positions, cache=None):
    return tiny.decoder(tokens, positions, masks_lib.DENSE, attend, cache=cache)[0]


@pytest.mark.parametrize('name', ['llama-scaled', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('slots', [21, 64])
def test_packed_rows_behind_a_prefix_equal_whole_prompts(tiny_models, name, slots):
    tiny = tiny_models(name)
    prefix = shared_prefix.compute(tiny.decoder, masks_lib.DENSE, _PREFIX, slots=slots)
    # Two rows: prompts 0, 1 and 2 with padding between, and prompt 3.
    tokens = np.zeros((2, 45), np.int32)
    offsets, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    places = [(0, 0), (0, 2), (0, 12), (1, 0)]
    for number, ((row, start), prompt) in enumerate(zip(places, _PROMPTS, strict=True)):
        own = slice(start, start + len(prompt))
        tokens[row, own] = prompt
        offsets[row, own] = np.arange(len(prompt))
        segments[row, own] = number + 1
    got = _hidden(
        tiny,
        jnp.asarray(tokens),
        attention.Prefixed(prefix.length, jnp.asarray(segments)),
        prefix.length + jnp.asarray(offsets),
        prefix.cache,
    )
    for (row, start), prompt in zip(places, _PROMPTS, strict=True):
        whole = np.array([_PREFIX + prompt])
        positions = np.arange(whole.shape[1])[None]
        want = _hidden(tiny, whole, attention.causal(*whole.shape), positions)
        np.testing.assert_allclose(
            got[row, start : start + len(prompt)],
            want[0, len(_PREFIX) :],
            atol=2e-5,
            rtol=0,
        )


@pytest.mark.parametrize('slots', [21, 64])
@pytest.mark.parametrize('masked', [False, True])
def test_generation_behind_a_prefix_equals_whole_prompts(tiny_models, slots, masked):
    tiny = tiny_models('llama')
    masks = masks_lib.DENSE
    if masked:
        masks = masks_lib.Masks(_RNG.random((3, tiny.config.d_ff)) < 0.7).as_float32()
    prefix = shared_prefix.compute(tiny.decoder, masks, _PREFIX, slots=slots)
    options = {'max_new_tokens': 25, 'stop_ids': ()}
    want = generation.generate(
        tiny.decoder, masks, [_PREFIX + prompt for prompt in _PROMPTS], **options
    )
    got = generation.generate(tiny.decoder, masks, _PROMPTS, prefix=prefix, **options)
    assert got == want
    assert len({tuple(row) for row in want}) == len(want)


def test_draws_behind_a_prefix_are_those_of_whole_prompts(tiny_models):
    tiny = tiny_models('llama')
    prefix = shared_prefix.compute(tiny.decoder, masks_lib.DENSE, _PREFIX, slots=64)
    options = {
        'max_new_tokens': 12,
        'stop_ids': (),
        'sampling': generation.Sampling(temperature=1.0),
        'seed': 5,
    }
    whole = [_PREFIX + prompt for prompt in _PROMPTS]
    want = generation.generate(tiny.decoder, masks_lib.DENSE, whole, **options)
    assert (
        generation.generate(
            tiny.decoder, masks_lib.DENSE, _PROMPTS, prefix=prefix, **options
        )
        == want
    )


def test_answers_end_where_prefix_and_prompt_fill_the_model(tiny_models):
    tiny = tiny_models('llama')
    limit = tiny.config.max_position
    prefix = shared_prefix.compute(tiny.decoder, masks_lib.DENSE, _PREFIX, slots=64)
    prompt = [5] * (limit - len(_PREFIX) - 3)
    (answer,) = generation.generate(
        tiny.decoder,
        masks_lib.DENSE,
        [prompt],
        max_new_tokens=9,
        stop_ids=(),
        prefix=prefix,
    )
    assert len(answer) == 3
    with pytest.raises(ValueError, match=f'{limit} tokens leaves no room'):
        generation.generate(
            tiny.decoder,
            masks_lib.DENSE,
            [[5] * (limit - len(_PREFIX))],
            max_new_tokens=9,
            stop_ids=(),
            prefix=prefix,
        )


def test_a_prefix_longer_than_its_slots_is_refused(tiny_models):
    with pytest.raises(ValueError, match='21 prefix tokens do not fit 20 slots'):
        shared_prefix.compute(
            tiny_models('llama').decoder, masks_lib.DENSE, _PREFIX, slots=20
        )
