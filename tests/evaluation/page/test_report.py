"""report.html: whole with any part missing, safe with any text, true to its inputs."""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import re
from typing import Any

import matplotlib
import numpy as np
import pytest

from ppjax.base import errors, flags
from ppjax.evaluation import bootstrap, efficiency
from ppjax.evaluation.page import report, run_results
from ppjax.masking import pmask
from ppjax.models import config as config_lib
from ppjax.pages import drawing, formats
from ppjax.personas import prompts
from ppjax.training import config as train_config
from tests.evaluation.page import whole_page

_LAYERS, _D_FF, _KEEP = 3, 52, 39
_STEPS = 60
_HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=y> &amp; {{ 7*7 }} \x00\x1b'
_PERSONA = 'Old Bram has poled a ferry for years. He is dry.'
_INPUTS = (
    'config.flags',
    'status.json',
    'inputs.json',
    'metrics.jsonl',
    'mask.pmask',
    'results/start_mask.pmask',
    'results/likelihood.json',
    'results/efficiency.json',
    'results/samples.json',
    'results/export.json',
    'hf/config.json',
)
_NLL = {'dense': 2.5125, 'random': 8.9125, 'one_shot': 3.125, 'learned': 2.4375}
_MODEL = config_lib.from_hf_config(
    {
        'model_type': 'llama',
        'vocab_size': 97,
        'hidden_size': 24,
        'intermediate_size': _D_FF,
        'num_hidden_layers': _LAYERS,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'rms_norm_eps': 1e-3,
        'rope_theta': 777.0,
        'tie_word_embeddings': True,
    }
)


def _mask(scores: np.ndarray, persona: str = _PERSONA) -> pmask.PersonaMask:
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(-scores, axis=1)[:, :_KEEP], True, axis=1)
    prompt = prompts.persona_prompt(persona)
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return pmask.PersonaMask(mask, 'smollm2-135m', 'ab' * 32, digest, prompt)


def _metrics() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for step in range(1, _STEPS + 1):
        entries.append(
            {
                'stage': 'train',
                'step': step,
                'loss': 2.4 + 2.0 * math.exp(-step / 6),
                'grad_norm': 0.3 + 0.1 * math.sin(step),
                'flip_fraction': 0.03 * (1 - step / _STEPS),
                'learning_rate': 0.01 * (1 - step / _STEPS),
                'examples_per_s': 2.5,
                'answer_tokens_per_s': 210.0,
            }
        )
        if step % 20 == 0:
            held = 2.45 + 1 / step
            entries.append({'stage': 'heldout', 'step': step, 'heldout_nll': held})
    return entries


def _likelihood() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 40, 30)
    noise = {name: rng.normal(0, 0.05, 30) for name in _NLL}
    nats = {
        # Centred, so that the means over tokens are the round numbers above.
        name: tokens * (value + noise[name] - (noise[name] @ tokens) / tokens.sum())
        for name, value in _NLL.items()
    }
    examples = [
        {'query_id': f'q{i}', 'answer_tokens': int(tokens[i])}
        | {name: float(nats[name][i]) for name in _NLL}
        for i in range(30)
    ]
    return {
        'heldout': {
            'source': 'demo:ferryman',
            'rows': 30,
            'answer_tokens': int(tokens.sum()),
        },
        'models': {name: {'nll': value} for name, value in _NLL.items()},
        'examples': examples,
        'settings': {},
        'versions': {'jax': '0.10.2'},
    }


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding='utf-8')


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run directory with every input."""
    run = tmp_path / 'run'
    settings = train_config.TrainConfig(
        base_model='smollm2-135m',
        calibration='bram_train.jsonl',
        heldout='bram_test.jsonl',
        output_dir='runs/bram',
    )
    for folder in (run / 'results', run / 'hf'):
        folder.mkdir(parents=True)
    (run / 'config.flags').write_text(flags.to_flagfile(settings), encoding='utf-8')
    status = {
        'state': 'done',
        'stage': 'train',
        'step': _STEPS,
        'total_steps': _STEPS,
        'started': '2026-03-04T05:06:07+00:00',
        'updated': '2026-03-04T07:08:09+00:00',
        'error': None,
    }
    _write_json(run / 'status.json', status)
    _write_json(run / 'inputs.json', {'calibration': 'c0ffee'})
    lines = ''.join(json.dumps(entry) + '\n' for entry in _metrics())
    (run / 'metrics.jsonl').write_text(lines, encoding='utf-8')
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(_LAYERS, _D_FF))
    pmask.save(run / 'results' / 'start_mask.pmask', _mask(scores))
    scores += 0.5 * rng.normal(size=scores.shape)
    pmask.save(run / 'mask.pmask', _mask(scores))
    _write_json(run / 'results' / 'likelihood.json', _likelihood())
    figures = efficiency.measure(
        _MODEL, _KEEP, dtype='float32', prompt_length=256, answer_length=128
    )
    _write_json(
        run / 'results' / 'efficiency.json',
        dataclasses.asdict(figures) | {'convention': 'A multiply-add is 2 FLOPs.'},
    )
    sample = {'query': 'Why?', 'reference': 'Aye.', 'dense': 'So.', 'pruned': 'Ah.'}
    _write_json(run / 'results' / 'samples.json', [sample])
    _write_json(
        run / 'results' / 'export.json',
        {'parameters': {'dense': 11, 'pruned': 7}, 'verify': {'kl': 1e-9}},
    )
    _write_json(run / 'hf' / 'config.json', {})
    return run


def _written(run: pathlib.Path) -> str:
    return report.write_report(run).read_text('utf-8')


def test_the_whole_page(run_dir):
    page = whole_page.parse(_written(run_dir))
    for text in (
        'Old Bram',
        'has poled a ferry for years.',
        'smollm2-135m',
        '39 of 52 channels kept in each of 3 layers; 25 % asked',
        'step 60 of 60',
        '2026-03-04 07:08 UTC',
        'python -m ppjax.train --flagfile=runs/bram/config.flags',
        'python -m ppjax.chat --model=runs/bram/hf',
        'c0ffee',
        '0.10.2',
        'verify.kl',
        'Median speed: 2.500 examples a second, 210 answer tokens a second.',
        'Mask bits flipped by each step',
        'Gradient norm',
        'Learning rate',
        'Where channels are kept',
        'Kept channels that the starting mask kept too',
    ):
        assert text in page.text
    assert 'Not there yet' not in page.text
    assert sorted(entry.name for entry in run_dir.iterdir() if entry.is_file()) == [
        'config.flags',
        'inputs.json',
        'mask.pmask',
        'metrics.jsonl',
        'report.html',
        'status.json',
    ]


def test_table_numbers_equal_the_inputs(run_dir, undrawn):
    rows = whole_page.parse(_written(run_dir)).cells['likelihood'][1:]
    figures = json.loads((run_dir / 'results' / 'efficiency.json').read_text('utf-8'))
    found = {row[0]: row[1:] for row in rows}
    # What was made of the masks has records of its own.
    masks = [(x, label) for x, label in run_results.MODELS.items() if x in _NLL]
    assert {x for x, _ in masks} == {*_NLL}
    assert list(found) == [label for _, label in masks]
    for name, label in masks:
        nll, perplexity, difference, parameters, size = found[label]
        assert float(nll) == pytest.approx(_NLL[name], abs=5e-5)
        want = math.exp(_NLL[name])
        assert float(perplexity) == pytest.approx(want, abs=5e-4 if want < 1e3 else 0.5)
        side = figures['dense' if name == 'dense' else 'pruned']
        assert parameters == formats.quantity(side['parameters'])
        assert size == formats.quantity(side['bytes'], 'B')
        if name == 'dense':
            assert difference == '–'
            continue
        difference, interval = difference.split(' | ')
        plain = float(difference.replace('−', '-'))
        assert plain == pytest.approx(_NLL[name] - _NLL['dense'], abs=5e-5)
        low, high = (float(x.replace('−', '-')) for x in interval.split(' to '))
        assert low < plain < high


def test_size_table_equals_the_figures(run_dir, undrawn):
    rows = whole_page.parse(_written(run_dir)).cells['sizes'][1:]
    stored = json.loads((run_dir / 'results' / 'efficiency.json').read_text('utf-8'))
    want = efficiency.table(stored)
    assert len(want) == 11
    for row, cells in zip(want, rows, strict=True):
        assert cells[:3] == [row.label, row.dense, row.pruned]
        ratio, change = cells[3].split(' | ')
        assert ratio == f'{row.ratio:.3f}'
        percent = float(change.removesuffix(' %').replace('−', '-'))
        assert percent == pytest.approx(100 * (row.ratio - 1), abs=0.051)


@pytest.mark.parametrize('name', _INPUTS)
def test_pages_of_one_input_alone(run_dir, name):
    for other in _INPUTS:
        if other != name:
            (run_dir / other).unlink()
    page = whole_page.parse(_written(run_dir))
    assert 'could not be read' not in page.text


@pytest.mark.parametrize('name', _INPUTS)
def test_pages_without_one_input(run_dir, name, undrawn):
    (run_dir / name).unlink()
    page = whole_page.parse(_written(run_dir))
    assert 'could not be read' not in page.text


def test_every_subset_renders(run_dir, monkeypatch, undrawn):
    monkeypatch.setattr(bootstrap, 'ratio_interval', lambda *args: (-1.0, 1.0))
    whole = run_results.read_run(run_dir)
    whole = dataclasses.replace(whole, metrics=whole.metrics[:5])
    whole.likelihood['examples'] = whole.likelihood['examples'][:2]
    fields = {
        'settings': None,
        'status': {},
        'inputs': {},
        'metrics': [],
        'mask': None,
        'start_mask': None,
        'likelihood': {},
        'efficiency': {},
        'samples': [],
        'export': {},
        'exported': False,
    }
    for size in range(len(fields) + 1):
        for names in itertools.combinations(fields, size):
            part = dataclasses.replace(whole, **{name: fields[name] for name in names})
            whole_page.Page(report.render(part))


def test_an_empty_folder_gives_a_page(tmp_path):
    page = whole_page.parse(_written(tmp_path))
    assert tmp_path.name in page.text
    assert 'Not there yet' in page.text


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(errors.InputError, match=r'nothing.* does not exist'):
        report.write_report(tmp_path / 'nothing')


def test_a_run_that_writes_its_report_is_shown_as_done(run_dir):
    for stage, state in [('report', 'done'), ('export', 'running')]:
        status = {'state': 'running', 'stage': stage}
        _write_json(run_dir / 'status.json', status)
        assert run_results.read_run(run_dir).status['state'] == state


def test_without_heldout_rows_nothing_is_awaited_of_them(run_dir, undrawn):
    settings = flags.from_flagfile(train_config.TrainConfig, run_dir / 'config.flags')
    text = flags.to_flagfile(dataclasses.replace(settings, heldout=None))
    (run_dir / 'config.flags').write_text(text, encoding='utf-8')
    for name in ('likelihood', 'samples', 'efficiency'):
        (run_dir / 'results' / f'{name}.json').unlink()
    page = whole_page.parse(_written(run_dir))
    assert 'Not there yet: sizes and FLOPs.' in page.text


def _drop(value: Any, path: tuple[Any, ...]) -> Any:
    *parents, last = path
    for key in parents:
        value = value[key]
    del value[last]


@pytest.mark.parametrize(
    'name, path',
    [
        ('status.json', ('step',)),
        ('status.json', ('state',)),
        ('status.json', ('error',)),
        ('results/likelihood.json', ('heldout',)),
        ('results/likelihood.json', ('heldout', 'answer_tokens')),
        ('results/likelihood.json', ('examples',)),
        ('results/likelihood.json', ('examples', 0, 'dense')),
        ('results/likelihood.json', ('models', 'dense')),
        ('results/likelihood.json', ('models', 'learned')),
        ('results/likelihood.json', ('models', 'random', 'nll')),
        ('results/likelihood.json', ('versions',)),
        ('results/efficiency.json', ('dense',)),
        ('results/efficiency.json', ('pruned', 'keep')),
        ('results/efficiency.json', ('pruned', 'bytes')),
        ('results/efficiency.json', ('prompt_length',)),
        ('results/efficiency.json', ('convention',)),
        ('results/samples.json', (0, 'reference')),
        ('results/samples.json', (0, 'pruned')),
        ('results/export.json', ('parameters', 'dense')),
    ],
)
def test_any_key_may_be_missing(run_dir, name, path, undrawn):
    value = json.loads((run_dir / name).read_text('utf-8'))
    _drop(value, path)
    _write_json(run_dir / name, value)
    page = whole_page.parse(_written(run_dir))
    assert 'could not be read' not in page.text


@pytest.mark.parametrize(
    'name, content',
    [
        ('config.flags', '--keep_ratio=0.5\n'),
        ('status.json', '{"state": "do'),
        ('inputs.json', '[]'),
        ('mask.pmask', 'no mask'),
        ('results/likelihood.json', '[' * 100_000),
        ('results/efficiency.json', '3'),
        ('results/samples.json', '"text"'),
        ('results/export.json', '\udcff'),
    ],
)
def test_damaged_files_are_named_and_left_out(run_dir, name, content, undrawn):
    (run_dir / name).write_text(content, encoding='utf-8', errors='surrogateescape')
    page = whole_page.parse(_written(run_dir))
    assert f'Left out, since it could not be read: {name}' in page.text


def test_metrics_may_end_in_a_torn_line(run_dir, undrawn):
    with (run_dir / 'metrics.jsonl').open('ab') as file:
        file.write(b'[1]\n\n{"stage": "train", "step": 61, "lo\xc3')
    run = run_results.read_run(run_dir)
    steps, loss = run.series('train', 'loss')
    assert list(steps) == list(range(1, _STEPS + 1))
    assert loss[0] == _metrics()[0]['loss']
    assert not run.problems


def test_values_that_are_no_numbers_are_not_drawn(run_dir):
    with (run_dir / 'metrics.jsonl').open('a') as file:
        for value in ('NaN', 'Infinity', '"2.5"', 'null', 'true', '1' + '0' * 400):
            file.write(f'{{"stage": "train", "step": 61, "loss": {value}}}\n')
    steps, _ = run_results.read_run(run_dir).series('train', 'loss')
    assert steps[-1] == _STEPS
    whole_page.parse(_written(run_dir))


@pytest.mark.parametrize('steps', [1, 2, 49, 51])
def test_runs_of_any_length_are_drawn(run_dir, steps):
    entries = [entry for entry in _metrics() if entry['step'] <= steps]
    lines = ''.join(json.dumps(entry) + '\n' for entry in entries)
    (run_dir / 'metrics.jsonl').write_text(lines, encoding='utf-8')
    (run_dir / 'results' / 'likelihood.json').unlink()
    assert 'Loss on the calibration set' in whole_page.parse(_written(run_dir)).text


def test_hostile_text_is_only_text(run_dir, undrawn):
    settings = flags.from_flagfile(train_config.TrainConfig, run_dir / 'config.flags')
    nasty = _HOSTILE.replace('\x00', '')
    changed = dataclasses.replace(
        settings, base_model=nasty, calibration=f'demo:{nasty}', output_dir=nasty
    )
    text = flags.to_flagfile(changed)
    (run_dir / 'config.flags').write_text(text, encoding='utf-8')
    scores = np.random.default_rng(0).normal(size=(_LAYERS, _D_FF))
    pmask.save(run_dir / 'mask.pmask', _mask(scores, persona=_HOSTILE))
    _write_json(run_dir / 'status.json', {'state': _HOSTILE, 'error': _HOSTILE})
    _write_json(run_dir / 'inputs.json', {_HOSTILE: {_HOSTILE: _HOSTILE}})
    _write_json(
        run_dir / 'results' / 'samples.json',
        [dict.fromkeys(('query', 'reference', 'dense', 'pruned'), _HOSTILE)],
    )
    _write_json(run_dir / 'results' / 'export.json', {'verify': {_HOSTILE: _HOSTILE}})
    likelihood = _likelihood() | {'versions': {_HOSTILE: _HOSTILE}}
    likelihood['heldout']['rows'] = _HOSTILE
    _write_json(run_dir / 'results' / 'likelihood.json', likelihood)
    stored = json.loads((run_dir / 'results' / 'efficiency.json').read_text('utf-8'))
    stored |= dict.fromkeys(('dtype', 'prompt_length', 'convention'), _HOSTILE)
    _write_json(run_dir / 'results' / 'efficiency.json', stored)
    page = whole_page.parse(_written(run_dir))
    # 4 of the sample, 2 of the status, 3 of the inputs, and more.
    assert page.text.count('<script>alert(1)</script>"') >= 15
    assert '49' not in page.text.split('Answers side by side')[1].split('Size')[0]
    assert not re.search('[\x00-\x08\x0b\x0c\x0e-\x1f]', page.text)
    assert 'img' not in page.tags


def test_lone_surrogates_and_huge_texts_are_tamed(run_dir, undrawn):
    huge = 'word ' * 400_000
    _write_json(
        run_dir / 'results' / 'samples.json',
        {'samples': [{'query': '\ud800?', 'dense': huge, 'pruned': 'x' * 2_000_000}]},
    )
    text = _written(run_dir)
    page = whole_page.parse(text)
    assert len(text) < 300_000
    assert f'({len(huge) - 20_000} more characters)' in page.text
    assert '??' in page.text  # The surrogate became a question mark.


def test_reference_lines_far_off_do_not_flatten_the_curve(run_dir, undrawn):
    rng = np.random.default_rng(0)
    curves = 2.4 + 0.1 * rng.random(500)
    low, high = drawing.readable_limits(curves, [2.45, 2.55, 9.0])
    assert low < curves.min()
    assert 2.55 < high < 2.7
    assert drawing.readable_limits(curves, [])[1] < 2.55
    single = drawing.readable_limits(np.array([2.0]), [2.0])
    assert single[0] < 2.0 < single[1]
    page = whole_page.parse(_written(run_dir))
    assert 'Random mask 8.9125, above the plot' in page.text
    assert 'Dense model 2.5125, above' not in page.text
    assert 'Dense model 2.5125' in page.text


def test_no_drawing_state_is_left_behind(run_dir):
    before = dict(matplotlib.rcParams)
    first = _written(run_dir)
    assert dict(matplotlib.rcParams) == before
    # The same inputs give the same bytes.
    assert _written(run_dir) == first


def test_drawings_have_the_page_colours_only(run_dir):
    text = _written(run_dir)
    drawings = re.findall(r'<svg.*?</svg>', text, flags=re.DOTALL)
    large = [one for one in drawings if 'aria-label' in one]
    assert len(large) == 7
    for one in large:
        assert not re.search(r'(fill|stroke): #', one)
        assert 'DejaVu' not in one


@pytest.mark.parametrize(
    'learned, said',
    [(-0.3, 'better than'), (0.3, 'less well than'), (0.0, 'No clear difference')],
)
def test_the_verdict_follows_the_interval(run_dir, learned, said, undrawn):
    likelihood = _likelihood()
    for i, example in enumerate(likelihood['examples']):
        shift = learned + (0.1 if i % 2 else -0.1)
        example['learned'] = example['dense'] + shift * example['answer_tokens']
    likelihood['models']['learned']['nll'] = _NLL['dense'] + learned
    _write_json(run_dir / 'results' / 'likelihood.json', likelihood)
    assert said in report.render(run_results.read_run(run_dir))


def test_without_efficiency_the_exports_figures_are_shown(run_dir):
    (run_dir / 'results' / 'efficiency.json').unlink()
    rows = run_results.likelihood_rows(run_results.read_run(run_dir))
    assert [row.parameters for row in rows] == [11, 7, 7, 7]
    assert [row.bytes for row in rows] == [None] * 4
