"""Whatever results hold, the page stands: nonsense, hostile text, great numbers."""

import copy
import dataclasses
import math
import pathlib
import re
from typing import Any

import pytest

from ppjax.evaluation.page import (
    report,
    report_evaluation,
    run_results,
)
from ppjax.pages import views
from tests.evaluation.page import samples

_JOINT = ('judge', 'failures')


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value sits; of lists the first entry alone."""
    found = [path] if path else []
    parts = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        parts = list(enumerate(value))[:1]
    for key, part in parts:
        found += _paths(part, (*path, key))
    return found


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.copy(value)
    first, *rest = path
    if rest:
        value[first] = _replaced(value[first], tuple(rest), new)
    elif new is None:
        del value[first]
    else:
        value[first] = new
    return value


@pytest.mark.parametrize('name', run_results.EVALUATIONS)
def test_any_key_may_be_missing_or_nonsense(results, name, undrawn):
    own = results[name]
    # These two are read together.
    others = {x: results[x] for x in _JOINT} if name in _JOINT else {}
    paths = _paths(own)
    assert len(paths) > 10
    empty = run_results.ReportedRun(
        path=pathlib.Path('run'),
        settings=None,
        status={},
        inputs={},
        metrics=[],
        refit_metrics=[],
        recovery_metrics=[],
        mask=None,
        start_mask=None,
        synthesis={},
        likelihood={},
        efficiency={},
        samples=[],
        export={},
        evaluation={},
        exported=False,
        is_staged=False,
        problems=[],
    )
    nonsense: tuple[Any, ...] = (None, [], 'text', math.nan, -3, [None, 'x'], {'a': 1})
    for path in paths:
        for new in nonsense:
            broken = others | {name: _replaced(own, path, new)}
            report_evaluation.sections(broken)
            report_evaluation.headline(broken)
            if new is None:
                run = dataclasses.replace(
                    empty, evaluation={name: _replaced(own, path, new)}
                )
                samples.Page(report.render(run))


def test_hostile_text_is_only_text(tmp_path, results):
    judged = results['judge']
    for row in judged['answers']:
        row |= dict.fromkeys(('group', 'question', 'answer'), samples.HOSTILE)
    for own in judged['models'].values():
        own['roleplay']['persona_means'] = {samples.HOSTILE: 50.0, 'Jix': 60.0}
    for row in results['fidelity']['answers']:
        row['fidelity_flaws'] = [{'instance': samples.HOSTILE, 'type': 'language'}]
    for result in results.values():
        result['versions'] = {samples.HOSTILE: samples.HOSTILE}
        result['settings'] = result.get('settings', {}) | dict.fromkeys(
            ('judge_model', 'partner_model', 'dtype'), samples.HOSTILE
        )
    for own in results['mmlu']['models'].values():
        own['groups'] = {samples.HOSTILE: own['groups']['virology']}
    text = samples.page_text(tmp_path, results)
    page = samples.page(tmp_path, results)
    assert page.text.count('<script>alert(1)</script>"\'><img src=x') > 150
    assert '49' not in page.tables['judge-personas'][1][0]
    assert not re.search('[\x00-\x08\x0b\x0c\x0e-\x1f]', text)
    # What of them stands in a drawing is the models' names, which are ours.
    drawings = re.findall(r'<svg.*?</svg>', text, flags=re.DOTALL)
    assert drawings
    for svg in drawings:
        assert 'alert' not in svg


def test_ten_thousand_answers_make_a_small_page(tmp_path, results, undrawn):
    judged = results['judge']
    long = '"<&>" ' * 400
    judged['answers'] = [
        {'model': name, 'group': f'persona {i}', 'question': f'{i}?'}
        | {'answer': long, 'finished': True}
        | {'roleplay_score': 50.0 + i / 100, 'coherence_score': None}
        for name in samples.NAMES
        for i in range(5000)
    ]
    for own in judged['models'].values():
        own['roleplay']['persona_means'] = {
            f'persona {i}': 50.0 + i / 100 for i in range(5000)
        }
    judged['settings']['questions'] = [[f'P {i}', 'q'] for i in range(5000)]
    results['failures']['answers'] = [
        {
            'model': 'pruned',
            'group': f'persona {i}',
            'question': long,
            'type': 'refusal',
        }
        for i in range(5000)
    ]
    text = samples.page_text(tmp_path, results)
    assert len(text.encode()) < 3_000_000
    page = samples.Page(text)
    assert page.text.count(f'({len(long) - 2000} more characters)') == 80
    assert '32 more' in page.text
    assert len(page.tables['judge-personas']) == views.MOST_ROWS + 1
    assert page.tables['judge-personas'][1][0] == 'persona 0'
    assert 'the lowest 100 of 5000' in page.text
