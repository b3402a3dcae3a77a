"""Flaws of character fidelity: the formula, and what is a list of flaws."""

import json

import pytest

from ppjax.evaluation.judges import flaws


def _flaw(severity, **changes):
    return {'instance': 'a', 'type': 'language', 'severity': severity} | changes


def _scored(*severities, replies=1):
    own = [flaws.Flaw('a', 'language', severity) for severity in severities]
    return flaws.score(own, replies)


def test_the_formula_is_cosers():
    assert _scored(3, 1) == pytest.approx(81.5)
    assert _scored(1) == pytest.approx(96.5)
    assert _scored(5, 5, replies=4) == pytest.approx(100 - 5 * (10 - 1.2))
    # Not beyond 0 and 100.
    assert _scored() == 100
    assert _scored(1, replies=4) == 100
    assert _scored(*[5] * 5) == 0


def test_what_is_asked_holds_the_whole_of_it():
    text = flaws.prompt(' Bram {question} rows. ', 'Who {answer}?', 'I "do" {persona}.')
    for part in (
        '\nBram {question} rows.\n',
        '\nWho {answer}?\n',
        '\nI "do" {persona}.',
    ):
        assert part in text
    for kind in flaws.KINDS:
        assert f'- {kind}: ' in text and kind in flaws.AGAIN
    # The form that it shows is one that is read.
    example = text.rsplit('\n', 1)[-1]
    text = '{' + example.partition('{')[2]
    assert flaws.parse(text)[0].severity == 3


@pytest.mark.parametrize(
    'reply',
    [
        '{"flaws": []}',
        ' {"flaws": [], "summary": "none"}\n',
        '```json\n{"flaws": []}\n```',
        '```\n{"flaws": []}\n```',
    ],
)
def test_no_flaws(reply):
    assert flaws.parse(reply) == ()


def test_flaws_are_read():
    listed = [_flaw(1), _flaw(5, type=' Knowledge ', instance=' "Okay" ', more=1)]
    assert flaws.parse(json.dumps({'flaws': listed})) == (
        flaws.Flaw('a', 'language', 1),
        flaws.Flaw('"Okay"', 'knowledge', 5),
    )


@pytest.mark.parametrize(
    'reply',
    [
        '',
        'There are no flaws.',
        'Here it is: {"flaws": []}',
        '[]',
        '{}',
        'null',
        '{"flaws": null}',
        '{"flaws": {}}',
        '{"flaws": [',
        '{"flaws": ["bad"]}',
        '[' * 100_000,
        *(
            json.dumps({'flaws': [_flaw(2), bad]})
            for bad in (
                _flaw(0),
                _flaw(6),
                _flaw(2.0),
                _flaw('3'),
                _flaw(True),
                _flaw(None),
                _flaw(1, type='style'),
                _flaw(1, type=None),
                _flaw(1, instance=''),
                _flaw(1, instance=7),
                {'instance': 'a', 'type': 'language'},
            )
        ),
    ],
)
def test_anything_else_is_no_list(reply):
    assert flaws.parse(reply) is None
