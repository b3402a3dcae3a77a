"""Messages for people: one printable line that has an end."""

import pytest

from ppjax.base import errors


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('--a must be b, got 3.', '--a must be b, got 3.'),
        ('a\nb\r\n\tc', r'a\nb\r\n\tc'),
        ('\x1b]0;title\x07\x1b[31mred', r'\x1b]0;title\x07\x1b[31mred'),
        ('line\u2028end \u202eforged \ud800', r'line\u2028end \u202eforged \ud800'),
        ('Ida röstet 日本', 'Ida röstet 日本'),
        ('', ''),
    ],
)
def test_one_printable_line(text, line):
    assert str(errors.InputError(text)) == line


def test_long_values_lose_their_middle_and_not_what_to_do():
    message = f'--count must be a number, got {"1" * 100_000!r}; leave it out.'
    said = str(errors.InputError(message))
    assert len(said) <= errors.LONGEST
    assert said.startswith("--count must be a number, got '111")
    assert ' characters] 1' in said
    assert said.endswith("111'; leave it out.")


def test_escapes_count_too_and_wrapping_adds_nothing():
    said = str(errors.InputError('file: ' + '\x1b' * 450 + ' end.'))
    assert len(said) <= errors.LONGEST
    assert said.startswith('file: \\x1b')
    again = str(errors.InputError(f'stage: {said}'))
    assert again.startswith('stage: file: ')
    assert len(again) <= errors.LONGEST


def test_the_longest_line_is_left_alone():
    for length in (errors.LONGEST - 1, errors.LONGEST):
        assert str(errors.InputError('x' * length)) == 'x' * length
