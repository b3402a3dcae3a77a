"""Prefix + suffix is the prompt that the chat renderer gives."""

import pytest

from ppjax.base import errors
from ppjax.data import chat
from ppjax.personas import persona as persona_lib
from ppjax.synthesis import prompt_tokens

_SYSTEMS = [
    persona_lib.Persona(text).system_prompt
    for text in (
        'A ferryman who says little.',
        'A loud auctioneer from Leeds, who loves { braces } and\n\nempty lines.',
        'Ein Imker, der über Bienen spricht. 🐝',
    )
]
_QUERIES = [
    'What is a knot?',
    'What is a knot for?',
    '\n\n  Indented, with line ends \n',
    'Übersetze: 东西 123 4567',
    'x',
]


@pytest.fixture(scope='module')
def renderer(smollm2_tokenizer):
    return chat.ChatRenderer(smollm2_tokenizer, date='2026-01-01')


def _prompt(renderer, system, query):
    return renderer.prompt(
        [{'role': 'system', 'content': system}, {'role': 'user', 'content': query}]
    )


@pytest.mark.parametrize('queries', [_QUERIES, _QUERIES[:2], _QUERIES[:1]])
def test_prefix_and_suffix_make_the_prompt(renderer, queries):
    found = prompt_tokens.render(renderer, _SYSTEMS, queries, max_length=1024)
    assert found.rendered == tuple(range(len(queries)))
    for system, prefix in zip(_SYSTEMS, found.prefixes, strict=True):
        for query, suffix in zip(queries, found.suffixes, strict=True):
            assert [*prefix, *suffix.tolist()] == _prompt(renderer, system, query)


def test_the_prefix_is_as_long_as_it_can_be(renderer):
    # One that starts with line ends shares a token with the template's own.
    queries = _QUERIES[:2] + _QUERIES[3:]
    found = prompt_tokens.render(renderer, _SYSTEMS, queries, max_length=1024)
    text = renderer.tokenizer.decode(found.prefixes[0])
    assert text.endswith('<|im_start|>user\n')
    assert len({int(suffix[0]) for suffix in found.suffixes}) > 1


def test_long_queries_and_markup_are_left_out_and_counted(renderer):
    queries = ['Why?', 'word ' * 300, 'a <|im_end|> b', 'How?']
    found = prompt_tokens.render(renderer, _SYSTEMS, queries, max_length=128)
    assert found.rendered == (0, 3)
    assert (found.too_long, found.refused) == (1, 1)
    longest = max(len(prefix) for prefix in found.prefixes)
    shortest = max(len(suffix) for suffix in found.suffixes)
    kept = prompt_tokens.render(
        renderer, _SYSTEMS, queries, max_length=longest + shortest
    )
    assert kept.rendered == (0, 3)


def test_nothing_left_is_an_error(renderer):
    with pytest.raises(errors.InputError, match=r'None of 1 queries fits --max_length'):
        prompt_tokens.render(renderer, _SYSTEMS, ['word ' * 300], max_length=128)
    with pytest.raises(errors.InputError, match=r'None of 1 queries can be rendered'):
        prompt_tokens.render(renderer, _SYSTEMS, ['<|im_end|>'], max_length=128)


@pytest.mark.parametrize(
    ('template', 'message'),
    [
        # The answer's start depends on the system message.
        ('{{m[0].content}}{{m[1].content}}{{m[0].content | length}}', 'a question'),
        # Its own writing of the system message depends on the question.
        (
            '{{m[0].content}}{{m[1].content | length if "Le" in m[0].content}}<|im_start|>'
            + '{{m[1].content}}',
            'a system message',
        ),
    ],
)
def test_templates_without_a_shared_prefix_are_refused(
    renderer, monkeypatch, template, message
):
    monkeypatch.setattr(
        renderer, '_template', '{% set m = messages %}' + template + '<|im_end|>'
    )
    with pytest.raises(errors.InputError, match=f'writes {message} differently'):
        prompt_tokens.render(renderer, _SYSTEMS, _QUERIES, max_length=1024)
