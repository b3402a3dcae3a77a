"""Scores from probabilities, by hand."""

import dataclasses

import numpy as np
import pytest

from ppjax.evaluation.judges import judge_scoring


def _scored(*tokens):
    return judge_scoring.from_top_tokens('k', tokens)


def test_the_score_is_the_mean_of_the_numbers_named():
    found = _scored(('85', 0.6), ('80', 0.2), ('90', 0.1), ('The', 0.1))
    assert found.score == pytest.approx(84.4444, abs=1e-4)
    assert found.mass == pytest.approx(0.9)
    assert (found.key, found.refusal, found.text, found.failure) == ('k', 0, '85', '')


def test_too_little_on_numbers_is_no_score():
    found = _scored(('RE', 0.9), ('50', 0.1))
    assert found.score is None
    assert (found.mass, found.refusal, found.text) == (0.1, 0.9, 'RE')
    assert _scored(('7', 0.2499), ('The', 0.7)).score is None
    assert _scored(('7', 0.25), ('The', 0.7)).score == 7
    assert _scored() == judge_scoring.Verdict('k', None, 0, 0, '')


def test_one_number_in_several_tokens_is_added_up():
    found = _scored((' 85', 0.3), ('85', 0.3), ('85\n', 0.1), ('\t0', 0.3))
    assert found.score == pytest.approx(59.5)
    assert found.mass == pytest.approx(1)


def test_blanks_as_servers_show_them_are_no_part_of_a_number():
    found = _scored(('▁85', 0.4), ('Ġ85', 0.3), (' 85', 0.2), ('▁', 0.1))
    assert (found.score, found.text) == (pytest.approx(85), '85')
    assert found.mass == pytest.approx(0.9)
    assert _scored(('▁REF', 0.9)).refusal == 0.9
    # What begins with a blank of its own is shown as it is.
    assert _scored((' ', 0.9)).text == ' '


@pytest.mark.parametrize(
    'token', ['²', '٣', '101', '-5', '8.5', '1_0', '+7', '', ' ', '1e1', '9' * 5000]
)
def test_what_is_no_number_from_0_to_100_is_left_out(token):
    found = _scored((token, 0.5), ('10', 0.5))
    assert (found.score, found.mass, found.refusal) == (10, 0.5, 0)


@pytest.mark.parametrize(('token', 'number'), [('100', 100), ('0', 0), ('007', 7)])
def test_the_ends_of_the_scale_and_leading_zeros_count(token, number):
    assert _scored((token, 0.5)).score == number


@pytest.mark.parametrize(
    ('token', 'is_refusal'),
    [
        *(('R', True), (' REF', True), ('REFUSAL', True)),
        *(('Re', False), ('refusal', False), ('REFUSALS', False)),
        *(('FUSAL', False), (' ', False)),
    ],
)
def test_a_refusal_is_how_the_word_begins(token, is_refusal):
    assert _scored((token, 0.5)).refusal == (0.5 if is_refusal else 0)


def test_beginnings_of_a_refusal_are_added_up():
    assert _scored(('R', 0.5), ('RE', 0.25)).refusal == 0.75


def test_all_numbers_and_a_refusal():
    probabilities = np.zeros(101)
    probabilities[[8, 85, 100]] = 0.1, 0.4, 0.1
    found = judge_scoring.from_number_probabilities('k', probabilities, 0.3)
    assert found.score == pytest.approx((0.8 + 34 + 10) / 0.6)
    assert found.mass == pytest.approx(0.6)
    assert (found.key, found.refusal, found.text) == ('k', 0.3, '85')
    refused = judge_scoring.from_number_probabilities('k', probabilities / 4, 0.3)
    assert (refused.score, refused.text) == (None, 'REFUSAL')


def test_rounding_leaves_neither_scale():
    probabilities = np.zeros(101)
    probabilities[100] = 1 + 1e-7
    found = judge_scoring.from_number_probabilities('k', probabilities, 1 + 1e-7)
    assert (found.score, found.mass, found.refusal) == (100, 1, 1)
    # 32.3 / 0.323 is 100.00000000000001.
    assert _scored(('100', 0.323)).score == 100


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_judge_without_probabilities_has_failed(bad):
    assert 'probability of' in _scored(('85', bad), ('80', 0.2)).failure
    assert 'probability of' in _scored(('RE', bad), ('80', 0.9)).failure
    found = judge_scoring.from_number_probabilities('k', [bad] * 101, 0.0)
    assert dataclasses.replace(found, failure='') == judge_scoring.failed('k', '')


def test_101_numbers_are_wanted():
    with pytest.raises(ValueError, match=r'must be \[101\], got \[100\]'):
        judge_scoring.from_number_probabilities('k', [0.0] * 100, 0.0)


def test_a_range_of_its_own_counts_no_other_number():
    tokens = [('4', 0.3), ('5', 0.2), (' 1', 0.1), ('0', 0.2), ('6', 0.1), ('40', 0.1)]
    found = judge_scoring.from_top_tokens('k', tokens, (1, 5))
    assert found.score == pytest.approx((1.2 + 1.0 + 0.1) / 0.6)
    assert found.mass == pytest.approx(0.6)
    # Too little within the range, however much beside it.
    outside = judge_scoring.from_top_tokens('k', [('85', 0.8), ('5', 0.2)], (1, 5))
    assert (outside.score, outside.text) == (None, '85')
    assert outside.mass == pytest.approx(0.2)


def test_a_range_holds_both_its_ends():
    for number in range(1, 6):
        probabilities = np.zeros(101)
        # 32.3 / 0.323 and the like are just past the ends.
        probabilities[number] = 0.323
        found = judge_scoring.from_number_probabilities('k', probabilities, 0.0, (1, 5))
        assert found.score == pytest.approx(number)
        assert 1 <= found.score <= 5


@pytest.mark.parametrize('numbers', [(5, 1), (3, 3), (-1, 5), (0, 101)])
def test_what_is_no_range_is_refused(numbers):
    with pytest.raises(ValueError, match='a range within 0 to 100'):
        judge_scoring.JudgeRequest('k', 'How good?', numbers)
    with pytest.raises(ValueError, match='a range within 0 to 100'):
        judge_scoring.from_number_probabilities('k', [0.0] * 101, 0.0, numbers)
    assert judge_scoring.JudgeRequest('k', 'How good?').numbers == (0, 100)
