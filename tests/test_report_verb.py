"""`python -m ppjax.report` on a run of a tiny model, answers against transformers."""

from collections.abc import Callable
import dataclasses
import hashlib
import json
import pathlib
import shutil
import string
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from ppjax import report as verb
from ppjax.base import errors, flags
from ppjax.evaluation import efficiency, reporting
from ppjax.masking import pmask
from ppjax.models import base_model, generation
from ppjax.pages import formats
from ppjax.personas import prompts
from ppjax.training import config as train_config

_KEEP = 26
_NEW_TOKENS = 9
_SPECIAL = ['<p>', '<b>', '<e>', '<x>']
_ROWS = [
    (f'What of {word}?', f'Aye, {word}.')
    for word in ['eels', 'mud', 'fog', 'oars', 'rope']
]
_PROMPT = prompts.persona_prompt('Old Bram is a ferryman.')


@dataclasses.dataclass(frozen=True)
class _Run:
    path: pathlib.Path
    base: base_model.BaseModel
    mask: np.ndarray
    hf: transformers.PreTrainedModel
    pruned_hf: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase


def _tokenizer() -> transformers.PreTrainedTokenizerBase:
    """One token a character, as many as the tiny model embeds."""
    letters = sorted(set(string.printable[:95]))[:93]
    vocab = {token: i for i, token in enumerate([*_SPECIAL, *letters])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token='<e>',
        additional_special_tokens=['<x>'],
        chat_template='{% for m in messages %}<x>{{ m.content }}<e>{% endfor %}'
        '{% if add_generation_prompt %}<x>{% endif %}',
    )


@pytest.fixture
def make_run(tiny_models, tmp_path: pathlib.Path) -> Callable[..., _Run]:
    def make(**changes: Any) -> _Run:
        tiny = tiny_models('llama')
        model = tmp_path / 'base'
        shutil.copytree(tiny.path, model)
        tokenizer = _tokenizer()
        tokenizer.save_pretrained(model)
        heldout = tmp_path / 'heldout.jsonl'
        lines = [
            {
                'messages': [
                    {'role': 'system', 'content': _PROMPT},
                    {'role': 'user', 'content': query},
                    {'role': 'assistant', 'content': answer},
                ]
            }
            for query, answer in _ROWS
        ]
        text = '\n'.join(json.dumps(line) for line in lines)
        heldout.write_text(text, encoding='utf-8')
        run = tmp_path / 'run'
        settings = train_config.TrainConfig(
            **{
                'base_model': str(model),
                'calibration': 'train.jsonl',
                'heldout': str(heldout),
                'output_dir': str(run),
                'sparsity': 0.5,
                'align': 1,
            }
            | changes
        )
        (run / 'results').mkdir(parents=True)
        (run / 'config.flags').write_text(flags.to_flagfile(settings), encoding='utf-8')
        base = base_model.open_base_model(str(model))
        rng = np.random.default_rng(0)
        mask = np.zeros((base.config.num_layers, base.config.d_ff), bool)
        for row in mask:
            row[rng.permutation(base.config.d_ff)[:_KEEP]] = True
        persona_mask = pmask.PersonaMask(
            mask,
            str(model),
            base.fingerprint(),
            hashlib.sha256(_PROMPT.encode()).hexdigest(),
            _PROMPT,
        )
        pmask.save(run / 'mask.pmask', persona_mask)
        return _Run(run, base, mask, tiny.hf, tiny.pruned_hf(mask), tokenizer)

    return make


def _config(run: _Run, **changes: Any) -> reporting.ReportConfig:
    settings = {'output_dir': str(run.path), 'max_new_tokens': _NEW_TOKENS}
    return reporting.ReportConfig(**(settings | changes))


def _stored(run: _Run, name: str) -> Any:
    return json.loads((run.path / 'results' / f'{name}.json').read_text('utf-8'))


def _hf_answer(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    query: str,
) -> str:
    ids = tokenizer.encode(f'<x>{_PROMPT}<e><x>{query}<e><x>', add_special_tokens=False)
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


@pytest.fixture
def no_answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts calls of `generate` instead of generating."""
    calls: list[int] = []

    def generate(model: Any, masks: Any, rows: Any, **options: Any) -> Any:
        calls.append(len(rows))
        return [[9, 10] for _ in rows]

    monkeypatch.setattr(generation, 'generate', generate)
    return calls


def test_answers_are_those_of_transformers(make_run, capsys):
    run = make_run()
    assert verb.main(_config(run, samples=2)) == 0
    samples = _stored(run, 'samples')['samples']
    assert [sample['query'] for sample in samples] == [_ROWS[1][0], _ROWS[3][0]]
    assert [sample['reference'] for sample in samples] == [_ROWS[1][1], _ROWS[3][1]]
    for sample in samples:
        for name, model in (('dense', run.hf), ('pruned', run.pruned_hf)):
            want = _hf_answer(model, run.tokenizer, sample['query'])
            assert sample[name] == want
        assert sample['dense'] != sample['pruned']
    out = capsys.readouterr().out
    assert f'Q: {_ROWS[1][0]}' in out
    assert 'dense model' in out
    assert out.endswith(f'Report: {run.path / "report.html"}\n')
    assert f'Mask:   {run.path / "mask.pmask"}' in out
    page = (run.path / 'report.html').read_text('utf-8')
    assert 'Answers side by side' in page
    assert 'Old Bram' in page


def test_efficiency_is_of_the_runs_model_and_dtype(make_run):
    run = make_run(dtype='bfloat16')
    verb.main(_config(run, samples=0, prompt_length=19, answer_length=7))
    stored = _stored(run, 'efficiency')
    want = efficiency.measure(
        run.base.config, _KEEP, dtype='bfloat16', prompt_length=19, answer_length=7
    )
    assert {key: stored[key] for key in dataclasses.asdict(want)} == dataclasses.asdict(
        want
    )
    assert stored['settings']['prompt_length'] == 19
    assert 'jax' in stored['versions']
    assert not (run.path / 'results' / 'samples.json').exists()


def test_the_table_on_stdout(make_run, no_answers, capsys):
    run = make_run()
    nll = {'dense': 2.5, 'random': 900.0, 'one_shot': 3.25, 'learned': 2.375}
    likelihood = {
        'models': {name: {'nll': value} for name, value in nll.items()},
        'examples': [{'answer_tokens': 4} | {k: 4 * v for k, v in nll.items()}] * 3,
    }
    (run.path / 'results' / 'likelihood.json').write_text(json.dumps(likelihood))
    (run.path / 'hf').mkdir()
    (run.path / 'hf' / 'config.json').write_text('{}')
    verb.main(_config(run))
    out = capsys.readouterr().out
    head, *lines = out.split('\n\n')[0].splitlines()
    assert head.split()[:3] == ['NLL,', 'nats', 'per']
    assert head.endswith('Weights in float32')
    assert len({len(line) for line in (head, *lines)}) == 1
    cells = [line.split() for line in lines]
    assert cells[0][:4] == ['Dense', 'model', '2.5000', '12.182']
    assert '+' not in lines[0]
    assert cells[1][2:5] == ['900.0000', 'inf', '+897.5000']
    assert cells[3][2:5] == ['2.3750', '10.751', '-0.1250']
    assert cells[3][5:8] == ['(-0.1250', 'to', '-0.1250)']
    figures = _stored(run, 'efficiency')
    for line, side in zip(lines, ('dense', *3 * ('pruned',)), strict=True):
        assert formats.quantity(figures[side]['parameters']) in line
        assert line.endswith(formats.quantity(figures[side]['bytes'], 'B'))
    assert f'Model:  {run.path / "hf"}' in out


def test_results_of_the_same_settings_are_reused(make_run, no_answers):
    run = make_run()
    verb.main(_config(run))
    assert no_answers == [3, 3]
    shutil.move(run.path.parent / 'base', run.path.parent / 'moved')
    verb.main(_config(run))
    assert no_answers == [3, 3]
    shutil.move(run.path.parent / 'moved', run.path.parent / 'base')
    verb.main(_config(run, overwrite=True))
    assert no_answers == [3, 3, 3, 3]
    verb.main(_config(run, samples=99))
    assert no_answers[4:] == [5, 5]
    verb.main(_config(run, samples=99, max_new_tokens=1))
    assert no_answers[6:] == [5, 5]
    heldout = run.path.parent / 'heldout.jsonl'
    heldout.write_text(heldout.read_text('utf-8').replace('Aye', 'Nay'), 'utf-8')
    verb.main(_config(run, samples=99, max_new_tokens=1))
    assert no_answers[8:] == [5, 5]


def test_queries_over_the_length_limit_are_passed_over(make_run, no_answers):
    run = make_run(max_length=10)
    verb.main(_config(run))
    assert no_answers == [0, 0]
    assert _stored(run, 'samples')['samples'] == []


def test_a_run_that_is_still_learning(make_run, capsys):
    run = make_run()
    (run.path / 'mask.pmask').unlink()
    assert verb.main(_config(run)) == 0
    captured = capsys.readouterr()
    assert 'The mask is not learned yet' in captured.err
    assert captured.out.startswith('Held-out persona likelihood: not measured.')
    assert (run.path / 'report.html').is_file()


def test_a_run_without_heldout_rows(make_run, capsys):
    run = make_run(heldout=None)
    assert verb.main(_config(run)) == 0
    assert 'no --heldout' in capsys.readouterr().err
    assert not (run.path / 'results' / 'samples.json').exists()


def test_answers_cannot_steer_the_terminal(make_run, no_answers, capsys):
    run = make_run()
    verb.main(_config(run))
    stored = _stored(run, 'samples')
    stored['samples'][0]['pruned'] = 'red \x1b[31m\x07' + 'long ' * 200
    (run.path / 'results' / 'samples.json').write_text(json.dumps(stored))
    capsys.readouterr()
    verb.main(_config(run))
    out = capsys.readouterr().out
    assert '\x1b' not in out
    assert '\x07' not in out
    assert max(map(len, out.split('Mask:')[0].splitlines())) <= 140


def test_a_mask_of_another_base_is_refused(make_run):
    run = make_run()
    other = dataclasses.replace(
        pmask.load(run.path / 'mask.pmask'), base_fingerprint='00' * 32
    )
    pmask.save(run.path / 'mask.pmask', other)
    with pytest.raises(errors.InputError, match='other weights, or another precision'):
        verb.main(_config(run))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'output_dir': None}, '--output_dir must be given'),
        ({'samples': -1}, '--samples must not be negative, got -1'),
        ({'max_new_tokens': 0}, '--max_new_tokens must be at least 1, got 0'),
        ({'prompt_length': 0}, '--prompt_length must be at least 1, got 0'),
        ({'answer_length': 0}, '--answer_length must be at least 1, got 0'),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(errors.InputError, match=message):
        reporting.ReportConfig(**({'output_dir': 'run'} | changes))


def test_another_folder_is_one_line_and_exit_code_1(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'ppjax.report', f'--output_dir={tmp_path}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ''
    assert done.stderr == (
        f'ERROR: --output_dir={tmp_path} is no run directory: it has no config.flags, '
        'which python -m ppjax.train writes.\n'
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'count, wanted, indices',
    [
        (10, 3, [1, 5, 8]),
        (5, 2, [1, 3]),
        (3, 3, [0, 1, 2]),
        (2, 9, [0, 1]),
        (1, 1, [0]),
        (0, 3, []),
        (7, 0, []),
    ],
)
def test_spread(count, wanted, indices):
    assert reporting.spread(count, wanted) == indices
