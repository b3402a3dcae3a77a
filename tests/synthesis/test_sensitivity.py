"""Eq. 2 against one full forward a query and persona in transformers."""

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.data import chat
from ppjax.personas import persona as persona_lib
from ppjax.synthesis import prompt_tokens, selection, sensitivity


def _random_prompts(seed, count, longest, personas=4):
    rng = np.random.default_rng(seed)
    prefixes = [
        tuple(rng.integers(3, 97, length).tolist())
        for length in rng.integers(5, 30, personas)
    ]
    suffixes = [
        rng.integers(3, 97, length).astype(np.int32)
        for length in rng.integers(1, longest, count)
    ]
    return prompt_tokens.PromptTokens(
        tuple(prefixes), tuple(suffixes), tuple(range(count)), 0, 0
    )


def _scores(model, prompts, layers, batch_tokens=256, skip=()):
    scorer = sensitivity.Scorer(
        model, prompts, layers=layers, batch_tokens=batch_tokens
    )
    found = np.full(len(prompts.suffixes), np.nan)
    for queries, scores in scorer.score(skip):
        assert np.isnan(found[queries]).all()
        found[queries] = scores
    return found


def _whole(prompts):
    return [
        [[*prefix, *suffix.tolist()] for suffix in prompts.suffixes]
        for prefix in prompts.prefixes
    ]


@pytest.mark.parametrize('name', ['llama-scaled', 'qwen2', 'qwen3-tied'])
@pytest.mark.parametrize('layers', [(1, 4), (0, 3), (2, 3)])
def test_scores_equal_full_forwards(tiny_models, plain_sensitivity, name, layers):
    tiny = tiny_models(name)
    # 33 queries on 8 devices: rows of padding alone, and queries of up to 120 tokens.
    prompts = _random_prompts(1, count=33, longest=120)
    want = plain_sensitivity(tiny.hf, _whole(prompts), *layers)
    got = _scores(tiny.decoder, prompts, layers)
    np.testing.assert_allclose(got, want, atol=2e-6, rtol=0)
    # The tolerance means something only where scores differ by much more.
    assert np.std(want) > 1e-3


def test_longer_queries_run_in_longer_rows(tiny_models, plain_sensitivity):
    tiny = tiny_models('llama')
    rng = np.random.default_rng(0)
    prompts = _random_prompts(2, count=3, longest=9)
    long = rng.integers(3, 97, 129).astype(np.int32)
    prompts = prompt_tokens.PromptTokens(
        prompts.prefixes, (*prompts.suffixes, long), (0, 1, 2, 3), 0, 0
    )
    want = plain_sensitivity(tiny.hf, _whole(prompts), 1, 4)
    np.testing.assert_allclose(
        _scores(tiny.decoder, prompts, (1, 4)), want, atol=2e-6, rtol=0
    )


def test_known_scores_are_not_computed_again(tiny_models):
    tiny = tiny_models('llama')
    prompts = _random_prompts(3, count=40, longest=100)
    whole = _scores(tiny.decoder, prompts, (1, 4))
    known = frozenset(range(0, 40, 3))
    rest = _scores(tiny.decoder, prompts, (1, 4), skip=known)
    assert np.isnan(rest[list(known)]).all()
    others = [query for query in range(40) if query not in known]
    np.testing.assert_array_equal(rest[others], whole[others])


def test_one_compilation_for_all_personas(tiny_models):
    tiny = tiny_models('llama')
    prompts = _random_prompts(4, count=20, longest=30, personas=7)
    before = sensitivity._last_states._cache_size()
    _scores(tiny.decoder, prompts, (1, 4), batch_tokens=1024)
    assert sensitivity._last_states._cache_size() == before + 1


def test_without_references_nothing_can_be_compared(tiny_models):
    prompts = _random_prompts(5, count=2, longest=5, personas=1)
    with pytest.raises(errors.InputError, match='none besides the persona itself'):
        _scores(tiny_models('llama').decoder, prompts, (1, 4))


@pytest.mark.parametrize(
    ('text', 'want'),
    [
        (None, (1, 31)),
        ('5:25', (5, 25)),
        (':', (0, 31)),
        ('0:1', (0, 1)),
        ('3:', (3, 31)),
    ],
)
def test_layers(text, want):
    assert sensitivity.parse_layers(text, 30) == want


@pytest.mark.parametrize(
    'text', ['', '5', '5:5', '7:3', '0:32', '-1:3', 'a:b', '1:2:3']
)
def test_bad_layers_are_refused(text):
    with pytest.raises(errors.InputError, match=r'a:b with 0 <= a < b <= 31'):
        sensitivity.parse_layers(text, 30)


_PERSONAS = (
    'A retired harbour pilot who distrusts forecasts and mends nets while he talks.',
    'A cheerful pastry cook in Lyon, twenty-six, who explains everything by dough.',
    'A strict piano teacher who counts bars aloud, never swears and adores Schubert.',
)
_QUERIES = (
    'How should I spend a rainy Sunday?',
    'What is the boiling point of water at sea level?',
    'Write a short note to a friend who has lost a job.',
    'Name three primary colours.',
    'What would you cook for ten guests, and how would you plan the day?',
)


def test_smollm2_scores_equal_transformers(smollm2, smollm2_hf, plain_sensitivity):
    """A small part of what `python -m ppjax.bench scoring` compares."""
    renderer = chat.ChatRenderer(smollm2.tokenizer, date='2026-01-01')
    systems = [persona_lib.Persona(text).system_prompt for text in _PERSONAS]
    prompts = prompt_tokens.render(renderer, systems, _QUERIES, max_length=1024)
    whole = [
        [
            renderer.prompt(
                [
                    {'role': 'system', 'content': system},
                    {'role': 'user', 'content': query},
                ]
            )
            for query in _QUERIES
        ]
        for system in systems
    ]
    want = plain_sensitivity(smollm2_hf, whole, 1, 31)
    got = _scores(smollm2.decoder, prompts, (1, 31), batch_tokens=128)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(
        selection.select(got, 0.4), selection.select(want, 0.4)
    )
    assert np.std(want) > 1e-3
