"""Results as people read them in the terminal."""

import dataclasses
import json
from typing import Any

import pytest

from ppjax.evaluation import config, efficiency, tables
from ppjax.models import config as config_lib


def _cells(text: str) -> list[list[str]]:
    """Cells of every line after the title; two blanks part them."""
    return [
        [cell.strip() for cell in line.split('  ') if cell.strip()]
        for line in text.splitlines()[1:]
    ]


def _as_stored(result: Any) -> Any:
    """As results/*.json gives it back: tuples as lists."""
    return json.loads(json.dumps(result))


def test_columns_are_aligned():
    rows = [('', 'acc', 'n'), ('Dense', '0.5', '12'), ('A long name', '0.25', '1')]
    assert tables.render(rows, 'Title').splitlines() == [
        'Title',
        '              acc   n',
        'Dense         0.5  12',
        'A long name  0.25   1',
    ]
    with pytest.raises(ValueError, match='zip'):
        tables.render([('a', 'b'), ('c',)], 'Title')


def test_every_task_has_a_table():
    assert set(tables.TABLES) == set(config.TASKS)


def _figure(mean: float) -> dict[str, Any]:
    return {'mean': mean, 'interval': (mean - 0.25, mean + 0.25)}


def test_likelihood():
    result = {
        'heldout': {'rows': 6, 'answer_tokens': 321},
        'models': {
            'dense': {
                'nll': _figure(2.5),
                'kl_to_dense': _figure(0.0),
                'agreement': _figure(1.0),
            },
            'pruned': {
                'nll': _figure(3.0),
                'kl_to_dense': _figure(0.75),
                'agreement': _figure(0.625),
                'nll_difference': _figure(0.5),
            },
        },
    }
    text = tables.TABLES['likelihood'](_as_stored(result))
    assert '6 held-out conversations, 321 answer tokens [95 % interval]' in text
    assert _cells(text) == [
        ['NLL', 'to dense', 'KL from dense', 'same top token'],
        ['Dense', '2.5000 [2.2500, 2.7500]', '-', '-', '-'],
        [
            'Pruned',
            '3.0000 [2.7500, 3.2500]',
            '0.5000 [0.2500, 0.7500]',
            '0.7500 [0.5000, 1.0000]',
            '0.625 [0.375, 0.875]',
        ],
    ]


def test_likelihood_of_one_model_alone():
    result = {
        'heldout': {'rows': 1, 'answer_tokens': 2},
        'models': {'pruned': {'nll': _figure(3.0)}},
    }
    text = tables.TABLES['likelihood'](result)
    assert _cells(text)[1] == ['Pruned', '3.0000 [2.7500, 3.2500]', '-', '-', '-']


@pytest.mark.parametrize(
    'task, title',
    [
        ('piqa', 'PIQA: 9 questions (± standard error)'),
        ('openbookqa', 'OpenBookQA: 9 questions (± standard error)'),
        ('mmlu', 'MMLU: 9 questions, 5-shot (± standard error)'),
    ],
)
def test_benchmarks(task, title):
    own = {
        'acc': {'value': 0.5, 'stderr': 0.03125, 'count': 9},
        'acc_norm': None
        if task == 'mmlu'
        else {'value': 0.25, 'stderr': None, 'count': 1},
    }
    settings = {'questions': 9, 'shots': 5}
    text = tables.TABLES[task]({'settings': settings, 'models': {'masked': own}})
    assert text.splitlines()[0] == title
    assert _cells(text) == [
        ['acc', 'acc_norm'],
        ['Masked', '0.5000 ± 0.0312', '-' if task == 'mmlu' else '0.2500'],
    ]


def _efficiency(**models: dict[str, Any]) -> dict[str, Any]:
    cfg = config_lib.from_hf_config(
        {
            'model_type': 'llama',
            'hidden_size': 3072,
            'intermediate_size': 8192,
            'num_hidden_layers': 28,
            'num_attention_heads': 24,
            'num_key_value_heads': 8,
            'head_dim': 128,
            'rms_norm_eps': 1e-5,
            'max_position_embeddings': 131072,
            'vocab_size': 128256,
            'tie_word_embeddings': True,
            'rope_theta': 500000.0,
        }
    )
    found = efficiency.measure(
        cfg, 6144, dtype='bfloat16', prompt_length=254.7, answer_length=320
    )
    return {
        'closed_form': _as_stored(dataclasses.asdict(found)),
        'convention': 'How FLOPs are counted.',
        'models': models,
    }


def _timed(scale: float, xla: float | None = 1e12) -> dict[str, Any]:
    def spread(value: float) -> dict[str, float]:
        return {'median': value, 'min': value / 2, 'max': value * 2}

    return {
        'stored_bytes': int(6e9 * scale),
        'xla_prefill_flops': xla and xla * scale,
        'prefill_seconds': spread(4 * scale),
        'decode_seconds_per_token': spread(0.5 * scale),
    }


def test_efficiency():
    text = tables.TABLES['efficiency'](
        _efficiency(dense=_timed(1.0), pruned=_timed(0.75))
    )
    closed, measured = text.split('\n\n')
    assert closed.splitlines()[-1] == 'How FLOPs are counted.'
    rows = {row[0]: row[1:] for row in _cells(closed) if len(row) == 4}
    assert rows['Parameters'] == ['3.213 B', '2.684 B', '0.836']
    prefill = rows['Prefill of 254.7 tokens']
    assert prefill == ['1.458 TFLOP', '1.189 TFLOP', '0.815']
    assert _cells(measured) == [
        ['Dense', 'Pruned', 'Pruned / dense'],
        ['Files of the weights', '6.000 GB', '4.500 GB', '0.750'],
        [
            "XLA's count of the blocks, 254.7 tokens",
            '1.000 TFLOP',
            '750.0 GFLOP',
            '0.750',
        ],
        [
            'Prefill of 254.7 tokens, s',
            '4.000 (2.000 to 8.000)',
            '3.000 (1.500 to 6.000)',
            '0.750',
        ],
        [
            'Decoding, ms a token of 320',
            '500.000 (250.000 to 1000.000)',
            '375.000 (187.500 to 750.000)',
            '0.750',
        ],
    ]


def test_any_number_of_models_against_the_first():
    times = {'dense': 1.0, 'slicegpt': 0.5, 'wanda': 0.25, 'pruned': 0.75}
    found = _efficiency(**{name: _timed(scale) for name, scale in times.items()})
    header, files, *_ = _cells(tables.TABLES['efficiency'](found).split('\n\n')[1])
    labels = ['Dense', 'slicegpt', 'wanda', 'Pruned']
    assert header == labels + [f'{label} / dense' for label in labels[1:]]
    assert files[5:] == ['0.500', '0.250', '0.750']
    own = {'roleplay': _summary(), 'mean_answer_tokens': 1, 'at_limit': 0.0}
    judged = _judged(False, base=own, slicegpt=own)
    rows = _cells(tables.TABLES['judge'](judged))
    assert 'to base' in rows[0]
    assert [row[0] for row in rows[1:]] == ['base', 'slicegpt']


def test_efficiency_without_times_or_xlas_count():
    models = {'dense': _timed(1.0, xla=None), 'pruned': _timed(0.5)}
    for own in models.values():
        del own['prefill_seconds'], own['decode_seconds_per_token']
    text = tables.TABLES['efficiency'](_efficiency(**models))
    assert _cells(text.split('\n\n')[1])[1:] == [
        ['Files of the weights', '6.000 GB', '3.000 GB', '0.500']
    ]


def _summary(**changes: Any) -> dict[str, Any]:
    summary = {
        'n': 8,
        'n_failed': 1,
        'n_scored': 6,
        'n_refused': 1,
        'mean': 71.0,
        'mean_with_zeros': 60.857,
        'persona_means': {'a': 70.125},
        'mean_over_personas': 70.125,
        'std_over_personas': None,
        'interval': [65.0, 75.5],
    }
    return summary | changes


def _judged(coherence: bool, **models: Any) -> dict[str, Any]:
    settings = {'coherence': coherence, 'judge_model': 'big-judge'}
    return {'settings': settings, 'models': models}


def test_judge():
    lengths = {'mean_answer_tokens': 188.6, 'at_limit': 0.125}
    difference = {'n': 6, 'mean': -3.25, 'interval': [-5.0, -1.0]}
    found = _judged(
        True,
        dense={'roleplay': _summary(), 'coherence': _summary(n_refused=0)} | lengths,
        pruned={
            'roleplay': _summary(to_dense=difference),
            'coherence': _summary(
                n_scored=0,
                mean_over_personas=None,
                mean_with_zeros=None,
                interval=None,
                to_dense={'n': 0, 'mean': None, 'interval': None},
            ),
        }
        | lengths,
    )
    roleplay, coherence = tables.TABLES['judge'](found).split('\n\n')
    assert roleplay.splitlines()[0] == 'Persona score, 0 to 100, by big-judge'
    assert coherence.splitlines()[0] == 'Coherence, 0 to 100, by big-judge'
    header, dense, pruned = _cells(roleplay)
    assert len(header) == 8
    assert dense == [
        'Dense',
        '70.12',
        '65.00 to 75.50',
        '60.86',
        '6/8',
        '1',
        '-',
        '189',
        '12%',
    ]
    assert pruned[6] == '-3.25'
    none = _cells(coherence)[2]
    assert none == ['Pruned', '-', '-', '-', '0/8', '1', '-', '189', '12%']
    for table in (roleplay, coherence):
        assert len({len(line) for line in table.splitlines()[1:]}) == 1


def test_judge_without_coherence():
    own = {'roleplay': _summary(), 'mean_answer_tokens': 1, 'at_limit': 0.0}
    assert '\n\n' not in tables.TABLES['judge'](_judged(False, pruned=own))


def test_failures():
    counts = {'assistant_like': 2, 'repetition': 1, 'refusal': 0, 'incomplete': 1}
    none = dict.fromkeys(counts, 0)
    shares = {name: value / 4 for name, value in counts.items()}
    result = {
        'threshold': 60.0,
        'models': {
            'dense': {'n': 0, 'answers': 8, 'counts': none, 'shares': none},
            'pruned': {'n': 4, 'answers': 8, 'counts': counts, 'shares': shares},
        },
    }
    text = tables.TABLES['failures'](result)
    assert text.splitlines()[0].endswith('answers below 60 points')
    assert _cells(text) == [
        ['low-scored', 'assistant-like', 'repetition', 'refusal', 'incomplete'],
        ['Dense', '0 of 8', *['0 (0.0%)'] * 4],
        ['Pruned', '4 of 8', '2 (50.0%)', '1 (25.0%)', '0 (0.0%)', '1 (25.0%)'],
    ]


def test_a_name_without_a_label_is_shown_as_it_is():
    own = {'acc': {'value': 1.0, 'stderr': None}, 'acc_norm': None}
    settings = {'questions': 1, 'shots': 0}
    text = tables.TABLES['piqa']({'settings': settings, 'models': {'mine': own}})
    assert _cells(text)[1] == ['mine', '1.0000', '-']
