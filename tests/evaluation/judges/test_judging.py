"""A run of judging: each prompt asked once; and the figures, by hand."""

from collections.abc import Iterator, Sequence
import json
import pathlib
import types
from typing import Any

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.evaluation import bootstrap
from ppjax.evaluation.judges import judge_prompts, judge_scoring, judging


class _Scripted:
    """A judge that gives the scores it is told to, and notes what it was asked."""

    def __init__(self, scores: dict[str, Any], identity: str = 'scripted'):
        self.scores, self.identity = scores, identity
        self.asked: list[str] = []
        self.closed = False

    def judge(
        self, requests: Sequence[judge_scoring.JudgeRequest]
    ) -> Iterator[judge_scoring.Verdict]:
        try:
            for request in reversed(requests):
                self.asked.append(request.key)
                if request.key in self.scores:
                    yield _verdict(request.key, self.scores[request.key])
        finally:
            self.closed = True


def _verdict(key: str, score: Any) -> judge_scoring.Verdict:
    if isinstance(score, str):
        return judge_scoring.failed(key, score)
    if score is None:
        return judge_scoring.Verdict(key, None, 0.125, 0.75, 'REFUSAL')
    return judge_scoring.Verdict(key, float(score), 0.875, 0.0625, str(score))


def _requests(*keys: str) -> list[judge_scoring.JudgeRequest]:
    return [judge_scoring.JudgeRequest(key, f'How good is {key}?') for key in keys]


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'results' / 'verdicts.jsonl'


def test_verdicts_come_in_order_and_are_never_asked_again(log):
    steps = []
    judge = _Scripted({'a': 70, 'b': None, 'c': 12.5})
    found = judging.judge_all(
        judge,
        _requests('a', 'b', 'c'),
        log_path=log,
        progress=lambda *step: steps.append(step),
    )
    assert list(found) == ['a', 'b', 'c']
    assert found == {key: _verdict(key, judge.scores[key]) for key in 'abc'}
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    silent = _Scripted({'d': 1})
    steps.clear()
    again = judging.judge_all(
        silent,
        _requests('c', 'd', 'a'),
        log_path=log,
        progress=lambda *step: steps.append(step),
    )
    assert again == {'c': found['c'], 'd': _verdict('d', 1), 'a': found['a']}
    assert silent.asked == ['d']
    assert steps == [(2, 3), (3, 3)]
    assert len(log.read_text().splitlines()) == 4


def test_another_range_of_scores_is_another_question(log):
    judge = _Scripted({'a': 4})
    judging.judge_all(judge, _requests('a'), log_path=log)
    for numbers in ((1, 5), (1, 6), (1, 5), (0, 100)):
        request = judge_scoring.JudgeRequest('a', 'How good is a?', numbers)
        judging.judge_all(judge, [request], log_path=log)
    assert len(judge.asked) == len(log.read_text().splitlines()) == 3


def test_a_fully_logged_run_asks_nobody(log):
    judging.judge_all(_Scripted({'a': 70}), _requests('a'), log_path=log)
    judge = _Scripted({})
    assert judging.judge_all(judge, _requests('a'), log_path=log)['a'].score == 70
    assert judge.asked == []
    assert judging.judge_all(judge, [], log_path=log) == {}


def test_another_judge_or_prompt_is_asked_anew(log):
    judging.judge_all(_Scripted({'a': 70}), _requests('a'), log_path=log)
    other = _Scripted({'a': 10}, identity='another')
    assert judging.judge_all(other, _requests('a'), log_path=log)['a'].score == 10
    changed = [judge_scoring.JudgeRequest('a', 'How bad is a?')]
    same = _Scripted({'a': 20})
    assert judging.judge_all(same, changed, log_path=log)['a'].score == 20
    # All three are still there.
    for judge, score in ((_Scripted({}), 70), (_Scripted({}, 'another'), 10)):
        assert (
            judging.judge_all(judge, _requests('a'), log_path=log)['a'].score == score
        )


def test_equal_prompts_are_asked_once_even_under_another_key(log):
    same = [judge_scoring.JudgeRequest(key, 'Same?') for key in 'ab']
    requests = [same[0], *_requests('other'), same[1]]
    judge = _Scripted({'a': 70, 'other': 10})
    steps = []
    found = judging.judge_all(
        judge, requests, log_path=log, progress=lambda *step: steps.append(step)
    )
    assert judge.asked == ['other', 'a']
    assert list(found.items()) == [
        ('a', _verdict('a', 70)),
        ('other', _verdict('other', 10)),
        ('b', _verdict('b', 70)),
    ]
    assert steps == [(0, 3), (1, 3), (3, 3)]
    steps.clear()
    later = judging.judge_all(
        _Scripted({}),
        [judge_scoring.JudgeRequest(key, 'Same?') for key in 'yz'],
        log_path=log,
        progress=lambda *step: steps.append(step),
    )
    assert later == {key: _verdict(key, 70) for key in 'yz'}
    assert steps == [(2, 2)]


def test_failures_are_not_logged_and_asked_again(log):
    judge = _Scripted({'a': 70, 'b': 'HTTP 500'})
    found = judging.judge_all(judge, _requests('a', 'b', 'c'), log_path=log)
    assert found['b'] == judge_scoring.failed('b', 'HTTP 500')
    assert found['c'] == judge_scoring.failed('c', 'the judge gave no verdict')
    assert [json.loads(line)['key'] for line in log.read_text().splitlines()] == ['a']
    judge = _Scripted({'b': 30, 'c': 40})
    found = judging.judge_all(judge, _requests('a', 'b', 'c'), log_path=log)
    assert judge.asked == ['c', 'b']
    assert [verdict.score for verdict in found.values()] == [70, 30, 40]


def test_a_torn_line_is_asked_again(log):
    keys = _requests('a', 'b')
    judging.judge_all(_Scripted({'a': 70, 'b': 30}), keys, log_path=log)
    whole = log.read_bytes()
    log.write_bytes(whole[:-9])
    judge = _Scripted({'a': 71})
    found = judging.judge_all(judge, keys, log_path=log)
    assert judge.asked == ['a']  # The last that was logged.
    assert [found['a'].score, found['b'].score] == [71, 30]
    assert len(log.read_text().splitlines()) == 2


def test_what_was_said_before_a_crash_is_kept(log):
    def stop(done: int, total: int) -> None:
        del total
        if done == 1:
            raise KeyboardInterrupt

    judge = _Scripted({'a': 70, 'b': 30})
    with pytest.raises(KeyboardInterrupt) as caught:
        judging.judge_all(judge, _requests('a', 'b'), log_path=log, progress=stop)
    assert judge.asked == ['b']
    # Closed at once, while the traceback still holds it.
    assert judge.closed
    assert caught.tb is not None
    judge = _Scripted({'a': 70})
    found = judging.judge_all(judge, _requests('a', 'b'), log_path=log)
    assert judge.asked == ['a']
    assert found['b'].score == 30


def test_halves_of_characters_can_be_logged(log):
    class Garbled(_Scripted):
        def judge(self, requests):
            del requests
            yield judge_scoring.Verdict('a', 70.0, 0.9, 0.0, '8\ud83d')

    found = judging.judge_all(Garbled({}), _requests('a'), log_path=log)
    assert found['a'].text == '8\ufffd'
    assert judging.judge_all(_Scripted({}), _requests('a'), log_path=log) == found


@pytest.mark.parametrize(
    'change',
    [
        *({'score': 101}, {'score': '70'}, {'score': -1}, {'score': True}),
        *({'mass': 1.5}, {'mass': None}, {'refusal': -0.5}, {'refusal': 2}),
        *({'text': 3}, {'prompt_sha256': None}, {'key': 7}),
    ],
)
def test_a_file_that_is_no_log_is_refused(log, change):
    judging.judge_all(_Scripted({'a': 70}), _requests('a'), log_path=log)
    entry = json.loads(log.read_text())
    bad = [json.dumps(entry | change)]
    bad += [
        json.dumps({k: v for k, v in entry.items() if k != name}) for name in change
    ]
    for line in [*bad, '[]', '"score"', '3', 'null']:
        log.write_text(json.dumps(entry) + '\n' + line + '\n')
        with pytest.raises(errors.InputError, match=r'jsonl:2: no row of a judge log'):
            judging.judge_all(_Scripted({}), _requests('a'), log_path=log)


def test_whole_numbers_in_a_log_are_numbers(log):
    judging.judge_all(_Scripted({'a': 70}), _requests('a'), log_path=log)
    entry = json.loads(log.read_text()) | {'score': 70, 'mass': 1, 'refusal': 0}
    log.write_text(json.dumps(entry) + '\n')
    found = judging.judge_all(_Scripted({}), _requests('a'), log_path=log)['a']
    assert (found.score, found.mass, found.refusal) == (70.0, 1.0, 0.0)


def test_keys_are_one_request_each(log):
    with pytest.raises(ValueError, match='same key'):
        judging.judge_all(_Scripted({}), _requests('a', 'a'), log_path=log)

    class Stray(_Scripted):
        def judge(self, requests):
            yield from (_verdict('x', 3) for _ in requests)

    with pytest.raises(ValueError, match="not asked 'x'"):
        judging.judge_all(Stray({}), _requests('a'), log_path=log)


def _verdicts(*scores: Any) -> list[judge_scoring.Verdict]:
    return [_verdict(f'q{number}', score) for number, score in enumerate(scores)]


def _summary(*args: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**judging.summarise(*args))


def _difference(*args: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**judging.paired_difference(*args))


def test_the_figures_of_some_answers():
    found = _summary(
        _verdicts(80, 60, None, 10, 'HTTP 500', 30, 50, None), [*'aaaabbbc']
    )
    assert (found.n, found.n_failed, found.n_scored, found.n_refused) == (8, 1, 5, 2)
    assert found.mean == pytest.approx(46)
    assert found.mean_with_zeros == pytest.approx(230 / 7)
    assert found.persona_means == {'a': 50, 'b': 40}
    assert found.mean_over_personas == 45
    assert found.std_over_personas == pytest.approx(50**0.5)
    low, high = found.interval
    assert 10 < low < 45 < high < 70
    # Four equal answers vary no more: the interval is all the other persona's.
    narrow = _summary(_verdicts(80, 20, 40, 40), [*'aabb'])
    assert narrow.interval == (30, 60)


def test_a_refusal_is_likely_one():
    verdicts = [
        judge_scoring.Verdict('q', score, 0.5, refusal, '')
        for score, refusal in ((50.0, 0.5), (50.0, 0.4999), (None, 0.1))
    ]
    found = _summary(verdicts, [*'aaa'])
    assert (found.n_refused, found.n_scored) == (1, 2)


def test_one_persona_and_none():
    found = _summary(_verdicts(80, 60), [*'aa'])
    assert (found.mean, found.mean_over_personas) == (70, 70)
    assert found.std_over_personas is None
    silent = _summary(_verdicts(None, None), [*'ab'])
    assert (silent.n_scored, silent.mean, silent.mean_with_zeros) == (0, None, 0)
    assert (silent.persona_means, silent.mean_over_personas) == ({}, None)
    assert silent.interval is silent.std_over_personas is None
    failed = _summary(_verdicts('HTTP 500'), ['a'])
    assert (failed.n, failed.n_failed, failed.mean_with_zeros) == (1, 1, None)


def test_a_difference_is_of_the_questions_that_both_answer():
    dense = _verdicts(50, 60, None, 40, 10, 'HTTP 500')
    other = _verdicts(40, 80, 90, None, 40, 90)
    found = _difference(dense, other, [*'aaaabb'])
    assert found.n == 3
    assert found.mean == pytest.approx((5 + 30) / 2)
    # Pairs are drawn, not answers: -10 or 20 of 'a' and always 30 of 'b'.
    assert found.interval == (10, 25)
    swapped = _difference(other, dense, [*'aaaabb'])
    assert (swapped.mean, swapped.interval) == (-found.mean, (-25, -10))
    nothing = _difference(_verdicts(None), _verdicts(50), ['a'])
    assert nothing == types.SimpleNamespace(n=0, mean=None, interval=None)


def test_an_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(3).normal(60, 12, size=400)
    low, high = bootstrap.grouped_interval({'a': values})
    error = values.std(ddof=1) / 20
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)
    # A second persona of the same spread: a mean of twice as many answers.
    low, high = bootstrap.grouped_interval({'a': values, 'b': values + 30})
    assert (low + high) / 2 == pytest.approx(values.mean() + 15, abs=0.1)
    assert high - low == pytest.approx(2 * 1.96 * error / 2**0.5, rel=0.06)
    assert bootstrap.grouped_interval({'a': values}) == bootstrap.grouped_interval(
        {'a': values}
    )


def test_lengths_and_empty_personas_are_checked():
    with pytest.raises(ValueError, match='zip'):
        _summary(_verdicts(1, 2), ['a'])
    with pytest.raises(ValueError, match='zip'):
        _difference(_verdicts(1), _verdicts(1, 2), ['a'])
    for groups in ({}, {'a': []}):
        with pytest.raises(ValueError, match='one persona at least'):
            bootstrap.grouped_interval(groups)


def test_prompts_hold_what_is_judged_and_look_into_nothing():
    for name, prompt in judge_prompts.PROMPTS.items():
        text = prompt('A {question} man.', 'Is {answer} it?', 'Nay, {question}.')
        assert 'Is {answer} it?' in text
        assert 'Nay, {question}.' in text
        assert ('A {question} man.' in text) == (name == 'roleplay')
        assert text.endswith('else, just the number.')
        assert '- REFUSAL if' in text
        assert 'from 0 (' in text
        assert '{' not in text.replace('{question}', '').replace('{answer}', '')
    assert list(judge_prompts.PROMPTS) == ['roleplay', 'coherence']
