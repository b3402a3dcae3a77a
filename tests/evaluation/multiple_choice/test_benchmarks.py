"""Questions, prompts and accuracies; the harness itself is in test_lm_eval.py."""

import math

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.evaluation.multiple_choice import benchmark_sources, benchmarks

_MMLU = {
    'subject': 'high_school_physics',
    'question': ' Which falls first? ',
    'choices': ['lead', 'cork', 'both', 'none'],
    'answer': 2,
}


def _rows(*values):
    return [(f'row {number}', value) for number, value in enumerate(values)]


def test_piqa():
    row = {'goal': 'How do I cut bread?', 'sol1': 'Use a knife.', 'sol2': 'Use ice.'}
    (question,) = benchmarks.piqa(_rows(row | {'label': 0}))
    assert question.context == 'Question: How do I cut bread?\nAnswer:'
    assert question.continuations == [' Use a knife.', ' Use ice.']
    assert question.gold == 0


@pytest.mark.parametrize(
    'row',
    [
        {'question': 'Predators eat', 'choices': list('wxyz'), 'label': 2},
        {
            'question_stem': 'Predators eat',
            'choices': {'text': list('wxyz'), 'label': list('ABCD')},
            'answerKey': ' C',
        },
        {
            'question_stem': 'Predators eat',
            'choices': {'text': list('wxyz'), 'label': list('PQCB')},
            'answerKey': 'C',
        },
        {
            'question': {'stem': 'Predators eat'}
            | {f'choice_{a}': b for a, b in zip('ABCD', 'wxyz', strict=True)},
            'answerKey': np.int64(2),
        },
        {
            'question': 'Predators eat',
            'choices': np.array(list('wxyz'), object),
            'label': 'C',
        },
    ],
)
def test_openbookqa_in_every_form(row):
    (question,) = benchmarks.openbookqa(_rows(row))
    assert question.context == 'Predators eat'
    assert question.choices == ('w', 'x', 'y', 'z')
    assert question.gold == 2


def test_mmlu_with_and_without_shots():
    shots = [_MMLU | {'question': f'q{i}', 'answer': i} for i in range(4)]
    other = _MMLU | {'subject': 'law', 'question': 'other'}
    head = (
        'The following are multiple choice questions (with answers) about '
        'high school physics.\n\n'
    )
    listed = '\nA. lead\nB. cork\nC. both\nD. none\nAnswer:'
    (plain,) = benchmarks.mmlu(_rows(_MMLU))
    assert plain.context == f'{head}Which falls first?{listed}'
    assert plain.continuations == [' A', ' B', ' C', ' D']
    assert (plain.gold, plain.group) == (2, 'high_school_physics')
    (shown,) = benchmarks.mmlu(_rows(_MMLU), _rows(other, *shots), num_shots=2)
    assert shown.context == (
        f'{head}q0{listed} A\n\nq1{listed} B\n\nWhich falls first?{listed}'
    )
    with pytest.raises(
        errors.InputError, match=r"row 0: 5 worked .* have 4 of .*'high"
    ):
        benchmarks.mmlu(_rows(_MMLU), _rows(other, *shots), num_shots=5)


@pytest.mark.parametrize(
    ('read', 'row', 'message'),
    [
        (benchmarks.piqa, [], 'no JSON object'),
        (benchmarks.piqa, {'goal': 'g', 'sol1': 'a'}, "'sol2' is missing"),
        (benchmarks.piqa, {'goal': ' ', 'sol1': 'a', 'sol2': 'b'}, "'goal' is missing"),
        (
            benchmarks.piqa,
            {'goal': 'g', 'sol1': 'a', 'sol2': 'b', 'label': -1},
            'must be 0 to 1 or a letter from A, got -1; test splits',
        ),
        (
            benchmarks.piqa,
            {'goal': 'g', 'sol1': 'a', 'sol2': 'b', 'label': True},
            'got True',
        ),
        (
            benchmarks.openbookqa,
            {'question': 'q', 'choices': ['a', 'b'], 'label': 0},
            'must be a list of 4 texts',
        ),
        (
            benchmarks.openbookqa,
            {'question': 'q', 'choices': list('abcd'), 'label': 'E'},
            "got 'E'",
        ),
        (
            benchmarks.openbookqa,
            {'question': 'q', 'choices': list('abcd'), 'label': ''},
            "got ''",
        ),
        (benchmarks.mmlu, _MMLU | {'subject': None}, "'subject' is missing"),
        (benchmarks.mmlu, _MMLU | {'answer': 4}, 'got 4'),
        (benchmarks.mmlu, _MMLU | {'choices': [*'abc', 4]}, 'list of 4 texts'),
    ],
)
def test_bad_rows_are_named(read, row, message):
    with pytest.raises(errors.InputError, match=f'^row 0: .*{message}'):
        read(_rows(row))


def test_predictions_by_likelihood_and_by_character():
    question = benchmarks.ChoiceQuestion('', '', ('four', 'nine eight'), 0)
    tied = benchmarks.ChoiceQuestion('', '', ('ab', 'cd', 'ef'), 1)
    plain, by_character = benchmarks.predictions(
        [question, tied], [[-4.0, -9.0], [-2.0, -1.0, -1.0]]
    )
    assert plain == [0, 1]
    # -4 / 4 < -9 / 10; and of equal ones the first.
    assert by_character == [1, 1]


def test_accuracies_and_their_errors():
    one = benchmarks.accuracy([True, False, True, True])
    assert (one.value, one.count) == (0.75, 4)
    assert one.stderr == pytest.approx(math.sqrt(0.25 / 4))
    two = benchmarks.accuracy([False] * 5 + [True])
    both = benchmarks.pooled([one, two])
    assert both.value == pytest.approx(4 / 10)
    variance = (3 * 0.25 + 5 * (1 / 6)) / 8
    assert both.stderr == pytest.approx(math.sqrt(variance / 10))
    assert benchmarks.accuracy([True]).stderr is None
    assert benchmarks.pooled([one, benchmarks.accuracy([True])]).stderr is None


def test_sources_by_name():
    hub = benchmark_sources.parse('openbookqa', 'hub:7')
    assert (hub.kind, hub.name, hub.config) == ('hub', 'allenai/openbookqa', 'main')
    assert (hub.split, hub.count) == ('test', 7)
    assert benchmark_sources.parse('piqa', 'tfds').split == 'validation'
    own = benchmark_sources.parse('mmlu', 'owner/name:dev')
    assert (own.name, own.split, own.config) == ('owner/name', 'dev', '')


@pytest.mark.parametrize(
    ('name', 'spec', 'message'),
    [
        ('mmlu', 'tfds', '--mmlu=tfds: no such data set'),
        ('piqa', 'a/b,c/d', 'takes one source'),
        ('piqa', 'nothing.jsonl', 'Benchmark file nothing.jsonl does not exist'),
        ('piqa', 'hub:0', "Benchmark source 'hub:0'|the count must be"),
        ('piqa', 'hub:many', "Benchmark source 'hub:many'"),
    ],
)
def test_bad_sources(name, spec, message):
    with pytest.raises(errors.InputError, match=message):
        benchmark_sources.parse(name, spec)


def test_questions_of_a_file(tmp_path):
    file = tmp_path / 'rows.jsonl'
    row = '{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}\n'
    file.write_text(row * 3 + '{"goal": 1}\n')
    found = benchmark_sources.questions('piqa', f'{file}:3')
    assert [question.where for question in found] == [
        'rows.jsonl:1',
        'rows.jsonl:2',
        'rows.jsonl:3',
    ]
    with pytest.raises(errors.InputError, match=r"rows.jsonl:4: field 'goal'"):
        benchmark_sources.questions('piqa', str(file))
    file.write_text('\n')
    with pytest.raises(errors.InputError, match='has no rows'):
        benchmark_sources.questions('piqa', str(file))
