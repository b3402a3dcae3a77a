"""What is measured of a cell: items with values and weights, whatever the task.

Every figure is a mean over items: answers, questions. So means, intervals and paired
differences are the same code for all of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ppjax.evaluation.answers import failures, unjudged
from ppjax.evaluation.multiple_choice import benchmarks
from ppjax.pages import formats

# (what names the item, its sum, its weight)
Item = tuple[str, float, float]
# The one model of an evaluation of a cell.
OWN = ('dense', 'pruned')


class Measure(NamedTuple):
    """A figure of a table.

    Attributes:
        label: its header.
        show: its value.
        signed: a difference of two.
        lower_is_better: or higher is.
        of_persona: whether its items are one persona's; others are the same for all.
    """

    label: str
    show: formats.Show
    signed: formats.Show
    lower_is_better: bool
    of_persona: bool


def _points(value: float) -> str:
    return formats.signed(100 * value, 1)


_NATS, _MORE_NATS = formats.decimals(3), lambda x: formats.signed(x, 3)
_SCORE = formats.decimals(1)
MEASURES = {
    'nll': Measure('Persona NLL', _NATS, _MORE_NATS, True, True),
    'judge': Measure('Persona score', _SCORE, formats.points, False, True),
    'fidelity': Measure('Character fidelity', _SCORE, formats.points, False, True),
    'plain': Measure('Plain NLL', _NATS, _MORE_NATS, True, False),
    'openbookqa': Measure('OBQA', formats.percent, _points, False, False),
    'piqa': Measure('PIQA', formats.percent, _points, False, False),
    'mmlu': Measure('MMLU', formats.percent, _points, False, False),
    'wrong': Measure('Answers that fail', formats.percent, _points, True, True),
}

PERSONA_TASKS = ('likelihood', 'answers', 'judge', 'failures', 'multiturn', 'fidelity')


def own_figures(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of a result's only model."""
    [found] = result['models'].values()
    return found


def _likelihood(result: Mapping[str, Any]) -> list[Item]:
    [name] = result['models']
    return [
        (str(row['query_id']), row[name]['nll'], float(row['answer_tokens']))
        for row in result['examples']
    ]


def _choices(result: Mapping[str, Any]) -> list[Item]:
    own = own_figures(result)
    kind = 'acc' if own['acc_norm'] is None else 'acc_norm'
    return [
        (str(row['where']), float(row[kind] == row['gold']), 1.0)
        for row in own['questions']
    ]


def _judged(result: Mapping[str, Any]) -> list[Item]:
    """Scores; a refusal has none and counts as 0, so that items stay the same."""
    return [
        (f'{row["group"]} {row["question"]}', row['roleplay_score'] or 0.0, 1.0)
        for row in result['answers']
    ]


def _fidelity(result: Mapping[str, Any]) -> list[Item]:
    """Scores; an answer without a list of flaws has none, and is left out."""
    return [
        (f'{row["group"]} {row["question"]}', row['fidelity_score'], 1.0)
        for row in result['answers']
        if row['fidelity_score'] is not None
    ]


def _wrong(result: Mapping[str, Any]) -> list[Item]:
    return [
        (
            f'{row["group"]} {row["question"]}',
            float(row['type'] != unjudged.NOTHING_WRONG),
            1.0,
        )
        for row in result['answers']
    ]


# Task -> (measure, its items).
_OF_TASK: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[Item]]]] = {
    'likelihood': ('nll', _likelihood),
    'plain': ('plain', _likelihood),
    'judge': ('judge', _judged),
    'fidelity': ('fidelity', _fidelity),
    'answers': ('wrong', _wrong),
    **{task: (task, _choices) for task in benchmarks.TASKS},
}


def items(results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Item]]:
    """Measure -> its items.

    Args:
        results: by task, as `evaluate` has them of one model.
    """
    return {
        measure: read(results[task])
        for task, (measure, read) in _OF_TASK.items()
        if task in results
    }


def types(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many answers fail in which way (paper, Table 10), if that was measured.

    Of low-scored answers, where there was a judge, and of all by rule otherwise.
    """
    for task in ('failures', 'answers'):
        if task in results:
            own = own_figures(results[task])
            whole = own['answers'] if task == 'failures' else own['n']
            return {'task': task, 'counts': own['counts'], 'answers': whole}
    return {}


# In the order of the paper's Table 10.
TYPES = failures.TYPES


def answers(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the model said, if it was asked."""
    found = results.get('judge', results.get('answers', {})).get('answers', [])
    return [
        {
            'group': row['group'],
            'question': row['question'],
            'answer': row['answer'],
            'tokens': row['answer_tokens'],
            'score': row.get('roleplay_score'),
            'type': row.get('type', ''),
        }
        for row in found
    ]
