"""Generation against transformers, row by row and without padding there."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax.base import errors
from ppjax.data import stop_tokens
from ppjax.models import decoder, generation, shared_prefix
from ppjax.models import masks as masks_lib

# One token, a whole bucket, and some whose answers cross the bucket's end.
_LENGTHS = (1, 5, 50, 63, 64)
_NEW = 20
_draw = jax.jit(generation.draw, static_argnums=2)


def _prompts(seed=0, lengths=_LENGTHS, vocab=97):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab, length).tolist() for length in lengths]


def _hf_greedy(model, prompt, new):
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                # No token: left out, the model's own would end the answer.
                eos_token_id=10**6,
            ),
        )
    return out[0, len(prompt) :].tolist()


def _greedy(model, channels, prompts, new=_NEW, stop=()):
    masks = masks_lib.Masks(channels)
    return generation.generate(model, masks, prompts, max_new_tokens=new, stop_ids=stop)


def _random_mask(tiny, keep, seed):
    order = np.random.default_rng(seed).random((3, tiny.config.d_ff)).argsort(axis=1)
    return order < keep


@pytest.mark.parametrize('name', ['llama', 'qwen2', 'qwen3-tied'])
def test_greedy_batch_equals_transformers_row_by_row(tiny_models, name):
    tiny = tiny_models(name)
    prompts = _prompts()
    want = [_hf_greedy(tiny.hf, prompt, _NEW) for prompt in prompts]
    assert len({tuple(row) for row in want}) == len(want)
    assert _greedy(tiny.decoder, None, prompts) == want


def test_batching_and_order_change_no_row(tiny_models):
    tiny = tiny_models('llama')
    prompts = _prompts()
    whole = _greedy(tiny.decoder, None, prompts)
    alone = [_greedy(tiny.decoder, None, [prompt])[0] for prompt in prompts[:2]]
    assert alone == whole[:2]
    assert _greedy(tiny.decoder, None, prompts[::-1]) == whole[::-1]


def test_masked_equals_the_sliced_model(tiny_models):
    tiny = tiny_models('llama-biased')
    mask = _random_mask(tiny, 31, seed=1)
    pruned = tiny.pruned_hf(mask)
    prompts = _prompts(lengths=(3, 40))
    want = [_hf_greedy(pruned, prompt, _NEW) for prompt in prompts]
    assert want != [_hf_greedy(tiny.hf, prompt, _NEW) for prompt in prompts]
    assert _greedy(tiny.decoder, jnp.asarray(mask), prompts) == want


def test_one_mask_a_row(tiny_models):
    tiny = tiny_models('qwen3')
    masks = [_random_mask(tiny, 31, seed) for seed in range(3)]
    prompt = _prompts(lengths=(9,))[0]
    want = [_hf_greedy(tiny.pruned_hf(mask), prompt, _NEW) for mask in masks]
    assert len({tuple(row) for row in want}) == 3
    stacked = jnp.asarray(np.stack(masks, axis=1))  # [L, B, F]
    assert _greedy(tiny.decoder, stacked, [prompt] * 3) == want


@pytest.mark.parametrize('sampling', [generation.GREEDY, generation.Sampling(0.8)])
def test_blocks_one_by_one_answer_alike(tiny_models, monkeypatch, sampling):
    tiny = tiny_models('qwen3-tied')
    masks = masks_lib.Masks(_random_mask(tiny, 20, seed=3))
    prompts = _prompts(lengths=(1, 50))

    def answers():
        return generation.generate(
            tiny.decoder,
            masks,
            prompts,
            max_new_tokens=_NEW,
            stop_ids=(),
            sampling=sampling,
            seed=4,
        )

    want = answers()
    monkeypatch.setattr(generation, '_LONG', 0)
    assert answers() == want
    # A cache that has to grow thrice.
    monkeypatch.setattr(generation, '_LEAST_SLOTS', 8)
    assert [generation._slots_of_growing(n) for n in (1, 51, 65, 70, 97)] == [
        8,
        64,
        96,
        96,
        128,
    ]
    assert answers() == want


def test_a_long_answer_behind_a_prefix(tiny_models, monkeypatch):
    tiny = tiny_models('llama')
    whole = _prompts(lengths=(40, 55))
    whole[1][:30] = whole[0][:30]

    def answers(slots):
        prefix = shared_prefix.compute(
            tiny.decoder, masks_lib.DENSE, whole[0][:30], slots=slots
        )
        return generation.generate(
            tiny.decoder,
            masks_lib.DENSE,
            [prompt[30:] for prompt in whole],
            max_new_tokens=_NEW,
            stop_ids=(),
            prefix=prefix,
        )

    want = _greedy(tiny.decoder, None, whole)
    monkeypatch.setattr(generation, '_LONG', 0)
    monkeypatch.setattr(generation, '_LEAST_SLOTS', 8)
    # A prefix of more slots than its prompts would have, and of fewer.
    assert answers(64) == answers(32) == answers(128) == want


def test_only_long_answers_of_large_models_have_programs_of_their_own(tiny_models):
    model = tiny_models('llama').decoder
    size = sum(leaf.size for leaf in jax.tree.leaves(model.blocks))
    steps = generation._LONG // size
    assert not generation._is_long(model, steps)
    assert generation._is_long(model, steps + 1)


def test_the_likeliest_is_the_first_of_the_largest():
    rows = jnp.array([[1.0, 3, 3, 0], [-jnp.inf, -2, -3, -2], [0, 0, 0, 0]])
    assert generation.likeliest(rows).tolist() == jnp.argmax(rows, -1).tolist()
    # A number of the vocabulary in any case.
    assert generation.likeliest(jnp.full((1, 4), jnp.nan)).tolist() == [3]


def test_a_step_does_not_copy_the_cache(tiny_models):
    # Of many layers: one layer's keys and values are copied, to be read.
    cfg = dataclasses.replace(tiny_models('llama').config, num_layers=8)
    model = jax.eval_shape(
        lambda: decoder.Decoder(cfg, dtype=jnp.float32, key=jax.random.key(0))
    )
    cache = jax.eval_shape(
        lambda model: shared_prefix.empty_cache(model, 2, 4096), model
    )
    numbers = jax.ShapeDtypeStruct((2,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    compiled = generation._step.lower(
        model,
        masks_lib.DENSE,
        cache,
        numbers,
        numbers,
        keys,
        sampling=generation.GREEDY,
    ).compile()
    held = sum(4 * math.prod(x.shape) for x in cache)
    assert compiled.memory_analysis().temp_size_in_bytes < held / 4


def test_a_stop_token_ends_its_row_and_no_other(tiny_models):
    tiny = tiny_models('llama')
    prompts = _prompts(lengths=(4, 11))
    free = _greedy(tiny.decoder, None, prompts)
    stop = next(token for token in free[1][3:] if token not in free[0])
    end = free[1].index(stop)
    assert 0 < end < _NEW - 1
    stopped = _greedy(tiny.decoder, None, prompts, stop=(stop, 96))
    assert stopped == [free[0], free[1][: end + 1]]

    columns = list(
        generation.stream(
            tiny.decoder, masks_lib.DENSE, prompts, max_new_tokens=_NEW, stop_ids={stop}
        )
    )
    assert all(column.shape == (2,) for column in columns)
    assert all(np.issubdtype(column.dtype, np.integer) for column in columns)
    assert [int(column[0]) for column in columns] == free[0]
    assert [int(column[1]) for column in columns] == (
        free[1][: end + 1] + [-1] * (_NEW - 1 - end)
    )


def test_all_rows_ended_ends_the_stream(tiny_models):
    tiny = tiny_models('llama')
    prompts = _prompts(lengths=(4, 11))
    free = _greedy(tiny.decoder, None, prompts, new=5)
    # The second row ends later than the first.
    stop = {free[0][0], free[1][2]}
    ends = [next(i for i, token in enumerate(row) if token in stop) for row in free]
    assert ends[0] < ends[1]
    columns = list(
        generation.stream(
            tiny.decoder, masks_lib.DENSE, prompts, max_new_tokens=40, stop_ids=stop
        )
    )
    assert len(columns) == ends[1] + 1
    assert columns[-1].tolist() == [-1, free[1][ends[1]]]


def test_answers_end_at_the_models_positions(tiny_models):
    tiny = tiny_models('llama')
    most = tiny.config.max_position
    assert most == 160
    prompts = _prompts(lengths=(most - 1, most - 7))
    want = [
        _hf_greedy(tiny.hf, prompt, new)
        for prompt, new in zip(prompts, (1, 7), strict=True)
    ]
    assert _greedy(tiny.decoder, None, prompts, new=12) == want
    with pytest.raises(errors.InputError, match='160 tokens leaves no room'):
        _greedy(tiny.decoder, None, _prompts(lengths=(3, most)))


def test_lengths_within_a_bucket_compile_once(tiny_models):
    tiny = tiny_models('llama')
    _greedy(tiny.decoder, None, _prompts(lengths=(3, 5)), new=30)
    sizes = [f._cache_size() for f in (generation._prefill, generation._step)]
    assert all(sizes)
    _greedy(tiny.decoder, None, _prompts(lengths=(30, 7)), new=11)
    _greedy(tiny.decoder, None, _prompts(lengths=(1, 1)), new=29)
    assert [f._cache_size() for f in (generation._prefill, generation._step)] == sizes


def test_buckets_are_few_and_tight():
    lengths = range(1, 9000)
    buckets = [generation.bucket(length) for length in lengths]
    for length, size in zip(lengths, buckets, strict=True):
        assert length <= size < length + max(64, length / 4)
        assert size % 64 == 0 and generation.bucket(size) == size
    assert buckets == sorted(buckets)
    assert len(set(buckets)) == 25


def test_bfloat16_model_has_a_bfloat16_cache(tiny_models):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_models('llama').decoder)
    lengths, keys = jnp.asarray([64]), jax.random.split(jax.random.key(0), 1)
    greedy = {'sampling': generation.GREEDY}
    tokens = jnp.zeros((1, 64), int)
    cache, first, slots = generation._prefill.eval_shape(
        half, masks_lib.DENSE, tokens, lengths, None, keys, slots=128, **greedy
    )
    assert cache.k.dtype == cache.v.dtype == jnp.bfloat16
    assert cache.k.shape == (3, 1, 2, 128, 10)
    # A step returns what it was given, or the next one would compile again.
    again = generation._step.eval_shape(
        half, masks_lib.DENSE, cache, first, slots, keys, **greedy
    )
    assert again == (cache, first, slots)


def test_no_prompts_no_answers(tiny_models):
    assert _greedy(tiny_models('llama').decoder, None, []) == []


@pytest.mark.parametrize(
    ('arguments', 'error', 'text'),
    [
        ({'prompts': [[1], []]}, ValueError, 'prompt 1 is empty'),
        ({'prompts': [[1, 97]]}, errors.InputError, 'token 97.*embeds 97'),
        ({'prompts': [[-1]]}, errors.InputError, 'another model'),
        ({'max_new_tokens': 0}, ValueError, 'at least 1, got 0'),
        ({'channels': jnp.ones((2, 52))}, AssertionError, r'\(2, 52\).*\(3, 52\)'),
        ({'channels': jnp.ones((3, 2, 52))}, AssertionError, r'\(3, 1, 52\)'),
    ],
)
def test_unusable_arguments_are_refused_at_the_call(
    tiny_models, arguments, error, text
):
    settings = {'prompts': [[1, 2]], 'channels': None, 'max_new_tokens': 3} | arguments
    with pytest.raises(error, match=text):
        generation.stream(
            tiny_models('llama').decoder,
            masks_lib.Masks(settings['channels']),
            settings['prompts'],
            max_new_tokens=settings['max_new_tokens'],
            stop_ids=(),
        )


def _sampled(tiny, sampling, seed=0, prompts=None):
    return generation.generate(
        tiny.decoder,
        masks_lib.DENSE,
        prompts or _prompts(lengths=(4, 11)),
        max_new_tokens=_NEW,
        stop_ids=(),
        sampling=sampling,
        seed=seed,
    )


def test_sampling_is_fixed_by_the_seed(tiny_models):
    tiny = tiny_models('llama')
    warm = generation.Sampling(temperature=1.3)
    first = _sampled(tiny, warm)
    assert _sampled(tiny, warm) == first
    assert _sampled(tiny, warm, seed=1) != first
    # Rows of one prompt differ, and a row does not depend on those after it.
    prompt, other = _prompts(lengths=(4, 11))
    twins = _sampled(tiny, warm, prompts=[prompt] * 2)
    assert twins[0] != twins[1]
    assert _sampled(tiny, warm, prompts=[prompt, other])[0] == twins[0]


def test_top_k_of_one_is_greedy(tiny_models):
    tiny = tiny_models('llama')
    narrow = generation.Sampling(temperature=2.0, top_k=1)
    assert _sampled(tiny, narrow) == _sampled(tiny, generation.GREEDY)


@pytest.mark.parametrize(
    'sampling',
    [
        generation.Sampling(temperature=2.0, top_k=1),
        generation.Sampling(temperature=2.0, top_p=1e-6),
        # Quotients overflow; and a float32 of it would be 0.
        generation.Sampling(temperature=1e-37),
        generation.Sampling(temperature=1e-60, top_p=0.9),
    ],
)
def test_narrow_draws_are_greedy(sampling):
    logits = jax.random.normal(jax.random.key(1), (50, 300)) * 9
    drawn = _draw(logits, jax.random.split(jax.random.key(2), 50), sampling)
    np.testing.assert_array_equal(drawn, logits.argmax(axis=-1))


def _frequencies(logits, sampling, count=20_000):
    keys = jax.random.split(jax.random.key(3), count)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    drawn = _draw(rows, keys, sampling)
    assert drawn.dtype == jnp.int32
    return np.bincount(np.asarray(drawn), minlength=len(logits)) / count


def _softmax(logits):
    shares = np.exp(np.asarray(logits) - np.max(logits))
    return shares / shares.sum()


_LOGITS = np.array([0.5, 2.0, -1.0, 1.0, 0.0])  # Order of size: 1, 3, 0, 4, 2.


@pytest.mark.parametrize(
    ('sampling', 'allowed'),
    [
        (generation.Sampling(0.7), [0, 1, 2, 3, 4]),
        (generation.Sampling(3.0), [0, 1, 2, 3, 4]),
        (generation.Sampling(3.0, top_k=99), [0, 1, 2, 3, 4]),
        (generation.Sampling(3.0, top_k=3), [0, 1, 3]),
        # At temperature 1 the largest three have 0.56, 0.21 and 0.13.
        (generation.Sampling(1.0, top_p=0.54), [1]),
        (generation.Sampling(1.0, top_p=0.70), [1, 3]),
        (generation.Sampling(1.0, top_p=0.80), [0, 1, 3]),
        # Of those three they have 0.63 and 0.23.
        (generation.Sampling(1.0, top_p=0.80, top_k=3), [1, 3]),
    ],
)
def test_draws_follow_the_softmax_over_what_is_allowed(sampling, allowed):
    got = _frequencies(_LOGITS, sampling)
    want = np.zeros(5)
    want[allowed] = _softmax(_LOGITS[allowed] / sampling.temperature)
    # Four standard deviations of a share of 0.5.
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * (0.25 / 20_000) ** 0.5)
    assert set(np.nonzero(got)[0]) == set(allowed)


@pytest.mark.parametrize('top_p', [0.3, 0.7, 0.9])
@pytest.mark.parametrize('top_k', [None, 3])
def test_support_equals_transformers(top_p, top_k):
    scores = torch.tensor(_LOGITS[None] / 1.4, dtype=torch.float32)
    if top_k is not None:
        scores = transformers.TopKLogitsWarper(top_k)(None, scores)
    scores = transformers.TopPLogitsWarper(top_p)(None, scores)
    got = _frequencies(_LOGITS, generation.Sampling(1.4, top_p, top_k))
    np.testing.assert_array_equal(got > 0, np.isfinite(scores[0].numpy()))


@pytest.mark.parametrize(
    ('settings', 'flag'),
    [
        ({'temperature': -0.1}, 'temperature'),
        ({'temperature': float('nan')}, 'temperature'),
        ({'temperature': float('inf')}, 'temperature'),
        ({'temperature': 1.0, 'top_p': 0.0}, 'top_p'),
        ({'temperature': 1.0, 'top_p': 1.1}, 'top_p'),
        ({'temperature': 1.0, 'top_k': 0}, 'top_k'),
        ({'top_k': 5}, 'temperature=0'),
        ({'top_p': 0.5}, 'temperature=0'),
    ],
)
def test_sampling_out_of_range_is_refused_by_flag(settings, flag):
    with pytest.raises(errors.InputError, match=f'--{flag}'):
        generation.Sampling(**settings)


def test_smollm2_answers_as_transformers_does(smollm2):
    reader = smollm2.base.reader
    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**reader.hf_config)
    ).eval()
    weights = {name: torch.from_numpy(reader.read(name)) for name in reader.names()}
    assert not hf.load_state_dict(weights, strict=False).unexpected_keys
    hf.tie_weights()
    hf.float()
    messages = [{'role': 'user', 'content': 'Why is the sky blue?'}]
    text = smollm2.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    prompt = smollm2.tokenizer.encode(text, add_special_tokens=False)
    stops = stop_tokens.stop_ids(smollm2.base.generation_config(), smollm2.tokenizer)
    assert stops == {smollm2.tokenizer.convert_tokens_to_ids('<|im_end|>')}
    # Padded to the length of another row.
    answer, _ = _greedy(smollm2.decoder, None, [prompt, prompt * 3], 24, stops)
    assert len(answer) == 24
    assert answer == _hf_greedy(hf, prompt, 24)
    assert 'sky' in smollm2.tokenizer.decode(answer)
