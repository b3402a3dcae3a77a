"""Results as people read them in the terminal."""

import dataclasses
import json
import re
from typing import Any

import pytest

from ppjax.evaluation import config, efficiency
from ppjax.evaluation.page import terminal
from ppjax.models import config as config_lib
from ppjax.pages import texts, views


def _text(task: str, result: Any) -> str:
    return terminal.result_text(task, _as_stored(result))


def _tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Title, or the section's -> first cell -> the others; two blanks part them."""
    found = {}
    section, *parts = text.split('\n\n')
    for part in parts:
        lines = part.splitlines()
        title = '' if lines[0].startswith(' ') else lines.pop(0)
        if not lines or not lines[0].startswith('  '):
            continue  # A note.
        rows = [re.split('  +', line) for line in lines]
        assert len({len(line) for line in lines}) == 1
        found[title or section.splitlines()[0]] = {first: rest for first, *rest in rows}
    return found


def _as_stored(result: Any) -> Any:
    """As results/*.json gives it back: tuples as lists."""
    return json.loads(json.dumps(result))


def test_columns_are_aligned():
    rows = [
        ('Dense', [views.TableCell('0.5'), views.TableCell('12', 'of 20')]),
        ('A name\x1b', [views.TableCell('−0.25', '−1 to 2'), views.NOTHING]),
    ]
    table = views.Table('name', ['acc', 'n'], rows, 'Title')
    assert texts.table(table).splitlines() == [
        'Title',
        '                     acc         n',
        'Dense                0.5  12 of 20',
        'A name   -0.25 (-1 to 2)         -',
    ]
    with pytest.raises(ValueError, match='zip'):
        texts.table(views.Table('name', ['a', 'b'], [*rows[:1], ('c', [])]))


def test_every_task_has_tables(results):
    for task in config.TASKS:
        assert _tables(terminal.result_text(task, results[config.RESULTS[task]]))


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
    text = _text('likelihood', result)
    assert '6 conversations, 321 answer tokens' in ' '.join(text.split())
    assert 'Ranges: 95 % bootstrap intervals' in text
    assert _tables(text) == {
        'Persona likelihood, model by model': {
            '': ['Dense', 'Pruned'],
            'NLL, nats per token': [
                '2.5000 (2.2500 to 2.7500)',
                '3.0000 (2.7500 to 3.2500)',
            ],
            'NLL less that of dense': ['-', '+0.5000 (+0.2500 to +0.7500)'],
            'KL from dense, nats per token': ['-', '0.7500 (0.5000 to 1.0000)'],
            'Same likeliest token as dense': ['-', '62.5 % (37.5 % to 87.5 %)'],
        }
    }


def test_likelihood_of_one_model_alone():
    result = {
        'heldout': {'rows': 1, 'answer_tokens': 2},
        'models': {'pruned': {'nll': _figure(3.0)}},
    }
    (table,) = _tables(_text('likelihood', result)).values()
    assert table == {
        '': ['Pruned'],
        'NLL, nats per token': ['3.0000 (2.7500 to 3.2500)'],
    }


@pytest.mark.parametrize(
    'task, title, guess',
    [
        ('piqa', 'PIQA, {}', '0.50'),
        ('openbookqa', 'OpenBookQA, {}', '0.25'),
        ('mmlu', 'MMLU, {}, 5-shot', '0.25'),
    ],
)
def test_benchmarks(task, title, guess):
    own = {
        'acc': {'value': 0.5, 'stderr': 0.03125, 'count': 9},
        'acc_norm': None
        if task == 'mmlu'
        else {'value': 0.25, 'stderr': None, 'count': 1},
    }
    settings = {'questions': 9, 'shots': 5}
    text = _text(task, {'settings': settings, 'models': {'masked': own}})
    assert '±: one standard error' in text
    want = {
        '': ['Masked', 'Guessing', 'Questions'],
        title.format('acc'): ['0.5000 ± 0.0312', guess, '9'],
        title.format('acc_norm'): ['0.2500', guess, '1'],
    }
    if task == 'mmlu':
        del want['MMLU, acc_norm, 5-shot']
    assert _tables(text) == {'Benchmarks': want}


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
    text = _text('efficiency', _efficiency(dense=_timed(1.0), pruned=_timed(0.75)))
    assert text.endswith('How FLOPs are counted.')
    found = _tables(text)
    rows = found['Sizes and FLOPs, from the shape']
    assert rows['Parameters'] == ['3.213 B', '2.684 B', '0.836 (-16.4 %)']
    prefill = rows['Prefill of 254.7 tokens']
    assert prefill == ['1.458 TFLOP', '1.189 TFLOP', '0.815 (-18.5 %)']
    assert found['Measured speed'] == {
        '': ['Dense', 'Pruned', 'Pruned / dense', 'By the shape'],
        'Files of the weights, as stored': ['6.000 GB', '4.500 GB', '0.750', '-'],
        "XLA's count for the prefill": ['1.000 TFLOP', '750.0 GFLOP', '0.750', '-'],
        'Prefill of 254.7 tokens, s': ['4 (2 to 8)', '3 (1.5 to 6)', '0.750', '-'],
        'Decoding of 320 tokens, ms a token': [
            '500 (250 to 1000)',
            '375 (187.5 to 750)',
            '0.750',
            '-',
        ],
    }


def test_any_number_of_models_against_the_first():
    times = {'dense': 1.0, 'slicegpt': 0.5, 'wanda': 0.25, 'pruned': 0.75}
    found = _efficiency(**{name: _timed(scale) for name, scale in times.items()})
    speed = _tables(_text('efficiency', found))['Measured speed']
    labels = ['Dense', 'slicegpt', 'wanda', 'Pruned']
    assert speed[''][:4] == labels
    assert speed[''][4::2] == [f'{label} / dense' for label in labels[1:]]
    files = speed['Files of the weights, as stored']
    assert files[4::2] == ['0.500', '0.250', '0.750']
    own = {'roleplay': _summary(), 'mean_answer_tokens': 1, 'at_limit': 0.0}
    difference = {'mean': 0.5, 'interval': [0.25, 0.75]}
    other = own | {'roleplay': _summary(to_dense=difference)}
    scores = _tables(_text('judge', _judged(base=own, slicegpt=other)))['Persona score']
    assert scores['Less that of base'] == ['-', '+0.50 (+0.25 to +0.75)']
    assert scores[''] == ['base', 'slicegpt']


def test_efficiency_without_times_or_xlas_count():
    models = {'dense': _timed(1.0, xla=None), 'pruned': _timed(0.5)}
    for own in models.values():
        del own['prefill_seconds'], own['decode_seconds_per_token']
    speed = _tables(_text('efficiency', _efficiency(**models)))['Measured speed']
    del speed['']
    assert speed == {
        "XLA's count for the prefill": ['-', '500.0 GFLOP', '-', '-'],
        'Files of the weights, as stored': ['6.000 GB', '3.000 GB', '0.500', '-'],
    }


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


def _judged(**models: Any) -> dict[str, Any]:
    return {'settings': {'judge_model': 'big-judge'}, 'models': models}


def test_judge():
    lengths = {'mean_answer_tokens': 188.6, 'at_limit': 0.125}
    difference = {'n': 6, 'mean': -3.25, 'interval': [-5.0, -1.0]}
    found = _judged(
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
    text = _text('judge', found)
    assert '0 to 100 for each answer, by big-judge' in text
    found = _tables(text)
    roleplay = found['Persona score']
    assert roleplay == {
        '': ['Dense', 'Pruned'],
        'Mean over personas': ['70.12 (65.00 to 75.50)'] * 2,
        'Less that of dense': ['-', '-3.25 (-5.00 to -1.00)'],
        'Mean over answers': ['71.00'] * 2,
        'Mean, 0 where there is no score': ['60.86'] * 2,
        'Answers with a score': ['6 of 8'] * 2,
        'Refusals': ['1', '1'],
        'Without a verdict': ['1', '1'],
    }
    assert {label: row[1] for label, row in found['Coherence'].items()} == {
        '': 'Pruned',
        'Mean over personas': '-',
        'Mean over answers': '71.00',
        'Mean, 0 where there is no score': '-',
        'Answers with a score': '0 of 8',
        'Refusals': '1',
        'Without a verdict': '1',
    }
    assert found['The text of the answers'] == {
        '': ['Dense', 'Pruned'],
        'Tokens of an answer': ['189', '189'],
        'Answers stopped at the limit': ['12.5 %', '12.5 %'],
    }


def test_judge_without_coherence():
    own = {'roleplay': _summary(), 'mean_answer_tokens': 1, 'at_limit': 0.0}
    assert 'Coherence' not in _text('judge', _judged(pruned=own))


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
    text = _text('failures', result)
    assert 'a persona score below 60, and refusals' in text
    assert _tables(text) == {
        'What goes wrong': {
            '': ['Low-scored', 'assistant-like', 'repetition', 'refusal', 'incomplete'],
            'Dense': ['0 of 8', *['0 (0.0 %)'] * 4],
            'Pruned': [
                '4 of 8',
                '2 (50.0 %)',
                '1 (25.0 %)',
                '0 (0.0 %)',
                '1 (25.0 %)',
            ],
        }
    }


def test_a_name_without_a_label_is_shown_as_it_is():
    own = {'acc': {'value': 1.0, 'stderr': None}, 'acc_norm': None}
    settings = {'questions': 1, 'shots': 0}
    text = _text('piqa', {'settings': settings, 'models': {'mine': own}})
    assert _tables(text)['Benchmarks'] == {
        '': ['mine', 'Guessing', 'Questions'],
        'PIQA, acc': ['1.0000', '0.50', '-'],
    }
