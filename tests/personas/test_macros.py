"""Macros: every one of the specifications, in any case, the same result each time."""

import time

import pytest

from ppjax.personas import macros


def _resolve(text: str, original: str | None = None) -> str:
    return macros.resolve(text, char='Ida', user='Bo', original=original).text


@pytest.mark.parametrize(
    ('text', 'want'),
    [
        ('', ''),
        ('no macro { } }} {', 'no macro { } }} {'),
        ('{{char}} and {{user}}', 'Ida and Bo'),
        ('{{CHAR}}{{ User }}', 'IdaBo'),
        ('<BOT> <bot> <Char> <USER> <start>', 'Ida Ida Ida Bo <start>'),
        ('{{{char}}}', '{Ida}'),
        ('{{random:a,b,c}}', 'a'),
        ('{{random:a\\,b,c}}', 'a,b'),
        ('{{RANDOM::a, x::b}}', 'a, x'),
        ('{{pick::Hello,Hi}}', 'Hello'),
        ('{{pick:{{char}},{{user}}}}', 'Ida'),
        ('{{roll:6}} {{roll:d6}} {{roll: D20 }} {{roll:1}}', '3 3 10 1'),
        ('{{reverse:{{char}}!}}', '!adI'),
        ('a{{// hidden {{user}} }}b', 'ab'),
        ('a{{hidden_key:x}}{{comment: y: z}}{{Comment:}}b', 'ab'),
        ('{{original}}', '{{original}}'),
        ('{{nothing}} {{roll:2d6}} {{random}}', '{{nothing}} {{roll:2d6}} {{random}}'),
        ('{{char}} {{ {{user}}', 'Ida {{ Bo'),
        ('}} {{char}}', '}} Ida'),
        ('{{x {{y {{char}}', '{{x {{y Ida'),
    ],
)
def test_macros(text, want):
    assert _resolve(text) == want


def test_original_is_filled_where_it_is_allowed():
    assert _resolve('a {{Original}} b', original='O {{char}}') == 'a O {{char}} b'


def test_names_are_not_looked_into():
    got = macros.resolve('{{char}} {{user}} <BOT>', char='{{user}}', user='<char>')
    assert got.text == '{{user}} <char> {{user}}'
    assert got.unknown == ()


def test_unknown_macros_are_told_once_in_order():
    got = macros.resolve('{{b}} {{a}} {{b}} {{char}}', char='Ida', user='Bo')
    assert got.unknown == ('{{b}}', '{{a}}')


@pytest.mark.parametrize('text', ['{{', '{{x}}', '{{' * 8 + '}}' * 8 + '{{a', '}}{{'])
def test_time_does_not_explode(text):
    start = time.process_time()
    _resolve(text * (200_000 // len(text)))
    assert time.process_time() - start < 5


def test_only_so_deep():
    deep = '{{a' * 300 + '}}' * 300
    got = macros.resolve(deep, char='Ida', user='Bo')
    assert got.text == deep
    assert len(got.unknown) == 8
    assert _resolve('{{reverse:' * 8 + 'ab' + '}}' * 8) == 'ab'
