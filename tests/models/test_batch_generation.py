"""Many prompts in batches against transformers, prompt by prompt."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax.base import errors
from ppjax.models import batch_generation, generation, shared_prefix
from ppjax.models import masks as masks_lib

_NEW = 9
# Eleven prompts on eight devices: two batches, the second mostly padding.
_LENGTHS = (30, 2, 17, 9, 1, 24, 5, 12, 40, 3, 8)


def _prompts(shared=7, lengths=_LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    head = rng.integers(3, 97, shared).tolist()
    own = [rng.integers(3, 97, length).tolist() for length in lengths]
    # The first two differ at once, so that they share no more.
    own[0][0], own[1][0] = 3, 4
    return [head + tokens for tokens in own]


def _hf_greedy(model, prompt, stops=(10**6,), new=_NEW):
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=list(stops),
            ),
        )
    return out[0, len(prompt) :].tolist()


def _all(tiny, prompts, mask=None, **changes):
    options = {'max_new_tokens': _NEW, 'stop_ids': (), 'batch_size': 8} | changes
    return list(
        batch_generation.generate_all(
            tiny.decoder, masks_lib.Masks(mask), prompts, **options
        )
    )


def _tokens(found):
    assert len({answer.index for answer in found}) == len(found)
    return [answer.tokens for answer in sorted(found, key=lambda a: a.index)]


def _random_mask(tiny, keep=31, seed=1):
    order = np.random.default_rng(seed).random((3, tiny.config.d_ff)).argsort(axis=1)
    return order < keep


@pytest.fixture(scope='module')
def tiny(tiny_models):
    return tiny_models('llama')


@pytest.fixture(scope='module')
def want(tiny):
    return [_hf_greedy(tiny.hf, prompt) for prompt in _prompts()]


def test_batches_equal_transformers_prompt_by_prompt(tiny, want):
    assert len({tuple(row) for row in want}) > 8
    found = _all(tiny, _prompts())
    assert _tokens(found) == want
    assert not any(answer.finished or answer.failure for answer in found)
    # Short prompts first, in batches of one size.
    lengths = [_LENGTHS[answer.index] for answer in found]
    assert lengths == sorted(lengths)


def test_what_else_is_asked_changes_no_answer(tiny, want):
    # Other prefixes, batches and padding: alone, half of them, all in one batch.
    assert _tokens(_all(tiny, _prompts()[:1])) == want[:1]
    assert _tokens(_all(tiny, _prompts()[4:9], batch_size=1)) == want[4:9]
    assert _tokens(_all(tiny, _prompts()[::-1], batch_size=99)) == want[::-1]


def test_without_a_common_start(tiny):
    prompts = _prompts(shared=0, lengths=(5, 3, 1))
    assert shared_prefix.shared_length(prompts) == 0
    want = [_hf_greedy(tiny.hf, prompt) for prompt in prompts]
    assert _tokens(_all(tiny, prompts)) == want


def test_masked_equals_the_sliced_model(tiny, want):
    mask = _random_mask(tiny)
    pruned = tiny.pruned_hf(mask)
    sliced = [_hf_greedy(pruned, prompt) for prompt in _prompts()]
    assert sliced != want
    assert _tokens(_all(tiny, _prompts(), jnp.asarray(mask))) == sliced


def test_stop_tokens_end_an_answer_and_are_left_out(tiny, want):
    stop = want[0][4]
    ends = [row.index(stop) if stop in row else None for row in want]
    assert any(end is None for end in ends)
    for answer in _all(tiny, _prompts(), stop_ids=iter([stop, 96])):
        end = ends[answer.index]
        assert answer.finished == (end is not None)
        assert answer.tokens == want[answer.index][:end]


def test_prompts_too_long_are_reported_and_the_rest_is_answered(tiny, want):
    long = [5] * tiny.config.max_position
    prompts = [long, *_prompts()[:2], long[1:], [7, *long]]
    failed, *found = _all(tiny, prompts)[1:]
    assert (failed.index, failed.tokens, failed.finished) == (4, [], False)
    assert failed.failure == ('its prompt of 161 tokens leaves no room in the model')
    assert _tokens(found)[:2] == want[:2]
    # One token fits behind the longest.
    assert _tokens(found)[2] == _hf_greedy(tiny.hf, long[1:], new=1)
    assert [bool(answer.failure) for answer in _all(tiny, [long])] == [True]


def test_draws_belong_to_their_streams(tiny):
    warm = {'sampling': generation.Sampling(temperature=1.0), 'seed': 3}
    prompts = _prompts()
    whole = _tokens(_all(tiny, prompts, **warm))
    assert _tokens(_all(tiny, prompts, streams=range(11), **warm)) == whole
    part = _tokens(_all(tiny, prompts[6:9], streams=[6, 7, 8], **warm))
    assert part == whole[6:9]
    assert _tokens(_all(tiny, prompts[6:9], streams=[6, 7, 9], **warm))[2] != whole[8]
    assert _tokens(_all(tiny, prompts, **(warm | {'seed': 4}))) != whole


def test_nothing_asked_nothing_answered(tiny):
    assert _all(tiny, []) == []


@pytest.mark.parametrize(
    ('changes', 'error', 'text'),
    [
        ({'prompts': [[1], []]}, ValueError, 'prompt 1 is empty'),
        ({'batch_size': 0}, ValueError, 'batch_size must be at least 1, got 0'),
        ({'max_new_tokens': 0}, ValueError, 'max_new_tokens must be at least 1'),
        ({'mask': jnp.ones((3, 2, 52))}, AssertionError, r'\(3, 2, 52\).*\(3, 52\)'),
        # In what all prompts start with, too.
        ({'prompts': [[97, 1], [97, 2]]}, errors.InputError, 'token 97.*embeds 97'),
        ({'prompts': [[1, -1]]}, errors.InputError, 'another model'),
    ],
)
def test_unusable_arguments_are_refused(tiny, changes, error, text):
    with pytest.raises(error, match=text):
        _all(tiny, **({'prompts': [[1, 2]]} | changes))


@pytest.mark.parametrize(
    ('prompts', 'length'),
    [
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2]], 1),
        ([[1, 2, 3, 4], [1, 2, 9, 4]], 2),
        ([[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 9, 3, 4]], 1),
        ([[1], [1, 2]], 0),
    ],
)
def test_shared_length(prompts, length):
    assert shared_prefix.shared_length(prompts) == length
