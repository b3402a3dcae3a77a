"""Whole runs of every rival on a tiny model: artefacts, resuming, refusals."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from ppjax import evaluate, prune
from ppjax.base import errors, flags
from ppjax.baselines import biases, config, gradients, methods, results, run, selection
from ppjax.evaluation import config as evaluate_config
from ppjax.exporting import verify
from ppjax.masking import apply, pmask
from ppjax.models import base_model

_METHODS = [
    ('depth', {'match': None, 'amount': 1.0, 'spare_first': 0, 'spare_last': 0}),
    (
        'depth',
        {'match': None, 'amount': 1.0, 'spare_first': 0, 'spare_last': 0}
        | {'criterion': 'taylor'},
    ),
    ('llm_pruner', {'spare_first': 0, 'spare_last': 0}),
    ('llm_pruner', {'spare_first': 1, 'spare_last': 0, 'importance': 'mix'}),
    ('adapt_pruner', {'iterations': 10, 'sequences': 6}),
    ('wanda_sp', {}),
    ('minitron', {'heads': False}),
    ('flap', {}),
    ('flap', {'structure': 'UL-UM', 'bias': False}),
    ('flap', {'structure': 'UL-UM'}),
    ('grasprune', {'steps': 4, 'gain_steps': 2, 'learning_rate': 0.1}),
    ('slicegpt', {'rotation': 'single'}),
    ('slicegpt', {}),
]


@pytest.fixture
def settings(chatty_model, calibration_files, tmp_path) -> config.PruneConfig:
    return config.PruneConfig(
        base_model=str(chatty_model),
        method='depth',
        match='0.5',
        align=4,
        calibration=str(calibration_files[0]),
        output_dir=str(tmp_path / 'run'),
        spare_first=0,
        spare_last=0,
        verify=False,
    )


def _of(settings, method, **changes) -> config.PruneConfig:
    spared = {'spare_first': None, 'spare_last': None}
    return dataclasses.replace(settings, method=method, **(spared | changes))


def _figures(cfg) -> dict[str, Any]:
    return json.loads(pathlib.Path(cfg.output_dir, results.FILE).read_text())


@pytest.mark.parametrize('method, changes', _METHODS)
def test_every_rival_from_chats_to_a_model(
    method, changes, settings, calibration_files, capsys
):
    cfg = _of(settings, method, heldout=str(calibration_files[1]), **changes)
    folder = run.prune(cfg)
    found = _figures(cfg)
    amounts = {name: x['parameters'] for name, x in found['amounts'].items()}
    if cfg.match:
        assert amounts['pruned']['blocks'] >= amounts['match']['blocks']
    assert amounts['pruned']['blocks'] < amounts['dense']['blocks']
    assert set(found['models']) == {'dense', 'pruned'}
    assert found['models']['pruned']['nll'] != found['models']['dense']['nll']
    loaded = apply.load_masked(model=str(folder), dtype=np.float32)
    tokens = np.random.default_rng(1).integers(3, 900, (2, 12)).astype(np.int32)
    ours = verify.logits(loaded.decoder, tokens, loaded.masks)
    rotated = method == 'slicegpt' and cfg.rotation == 'sites'
    assert found['is_stock'] == (not rotated)
    if rotated:
        with pytest.raises(ValueError, match='slicegpt'):
            transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert 'no stock architecture' in (folder / 'README.md').read_text()
        # As many as there are, whatever is rotated.
        assert sum(x.size for x in _weights(folder)) == amounts['pruned']['unique']
    else:
        hf = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        )
        with torch.no_grad():
            theirs = hf(torch.tensor(tokens), attention_mask=torch.ones(tokens.shape))
        np.testing.assert_allclose(theirs.logits, ours, atol=1e-4)
    if method != 'slicegpt':
        assert (pathlib.Path(cfg.output_dir) / results.STRUCTURE).is_file()
        stored = sum(x.size for x in _weights(folder))
        card = (folder / 'README.md').read_text()
        assert ('zeros' in card) == (not found['is_uniform'])
        if found['is_uniform']:
            assert stored == amounts['pruned']['unique']
    # Again: nothing is made anew.
    before = (folder / 'model.safetensors').stat().st_mtime_ns
    assert run.prune(cfg) == folder
    assert (folder / 'model.safetensors').stat().st_mtime_ns == before
    assert 'is there already' in capsys.readouterr().err


def _weights(folder):
    base = base_model.open_base_model(str(folder))
    return [base.reader.read(name) for name in base.reader.names()]


def test_the_export_is_verified(settings):
    cfg = _of(settings, 'slicegpt', verify=True)
    run.prune(cfg)
    found = _figures(cfg)['verify']['max_logit_difference']
    assert found['ppjax'] < 1e-4
    assert found['transformers'] is None
    cfg = _of(settings, 'wanda_sp', verify=True, output_dir=f'{settings.output_dir}-2')
    run.prune(cfg)
    found = _figures(cfg)['verify']['max_logit_difference']
    assert found['transformers'] < 1e-4


def test_texts_of_other_kinds(settings, tmp_path):
    plain = tmp_path / 'plain.txt'
    plain.write_text('A long line about bread and boats. ' * 20 + '\n\nShort.\n')
    cfg = dataclasses.replace(
        settings, calibration=None, text=str(plain), sequence_length=40, sequences=3
    )
    cfg = dataclasses.replace(cfg, match=None, amount=1.0)
    run.prune(cfg)
    first = _figures(cfg)['method_facts']['scores']
    rows = tmp_path / 'rows.jsonl'
    rows.write_text(json.dumps({'text': plain.read_text().split('\n\n')[0]}) + '\n')
    cfg = dataclasses.replace(cfg, text=str(rows), output_dir=str(tmp_path / 'run-2'))
    run.prune(cfg)
    assert _figures(cfg)['method_facts']['scores'] == first
    cfg = dataclasses.replace(
        cfg,
        text=None,
        sequence_length=None,
        instructions='demo',
        output_dir=str(tmp_path / 'run-3'),
    )
    run.prune(cfg)
    assert _figures(cfg)['method_facts']['scores'] != first
    cfg = dataclasses.replace(
        cfg, instructions=None, text=str(plain), output_dir=str(tmp_path / 'run-4')
    )
    cfg = dataclasses.replace(cfg, sequence_length=500)
    with pytest.raises(errors.InputError, match='no document has 500 tokens'):
        run.prune(cfg)
    assert not pathlib.Path(cfg.output_dir).exists()


def test_a_mask_file_is_matched(settings, chatty_model, tmp_path):
    base = base_model.open_base_model(str(chatty_model))
    kept = np.zeros((2, 40), bool)
    kept[0, :30] = kept[1, :10] = True
    mask = pmask.PersonaMask.of_widths(
        kept,
        base_model=str(chatty_model),
        base_fingerprint=base.fingerprint(),
        persona_sha256='0' * 64,
    )
    pmask.save(tmp_path / 'mask.pmask', mask)
    cfg = _of(settings, 'slicegpt', match=str(tmp_path / 'mask.pmask'))
    run.prune(cfg)
    found = _figures(cfg)['amounts']
    # 24 wide, 20 channels a layer on average.
    gone = 2 * 3 * 24 * 20
    dense, match = (found[x]['parameters']['blocks'] for x in ('dense', 'match'))
    assert dense - match == gone


def test_interrupted_it_ends_with_the_same_bits(settings, monkeypatch):
    cfg = _of(settings, 'adapt_pruner', iterations=10, sequences=6)
    whole = run.prune(dataclasses.replace(cfg, output_dir=f'{cfg.output_dir}-whole'))
    real, calls = gradients.measure, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(methods.gradients, 'measure', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.prune(cfg)
    status = json.loads(pathlib.Path(cfg.output_dir, 'status.json').read_text())
    assert status['state'] == 'interrupted'
    folder = run.prune(cfg)
    name = 'model.safetensors'
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_gates_interrupted_are_learned_anew(settings, monkeypatch):
    cfg = _of(settings, 'grasprune', steps=4, gain_steps=2, learning_rate=0.1)
    whole = run.prune(dataclasses.replace(cfg, output_dir=f'{cfg.output_dir}-whole'))
    real, calls = selection.over_layers, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(selection, 'over_layers', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.prune(cfg)
    assert not pathlib.Path(cfg.output_dir, 'hf').exists()
    folder = run.prune(cfg)
    name = 'model.safetensors'
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_killed_it_ends_with_the_same_bits(settings, tmp_path):
    """SIGKILL while the export is written, and then the same command."""
    cfg = _of(settings, 'wanda_sp')
    whole = run.prune(dataclasses.replace(cfg, output_dir=f'{cfg.output_dir}-whole'))
    flagfile = tmp_path / 'flags'
    flagfile.write_text(flags.to_flagfile(cfg))
    command = [sys.executable, '-m', 'ppjax.prune', f'--flagfile={flagfile}']
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    output = pathlib.Path(cfg.output_dir)
    while child.poll() is None and not list(output.glob('.hf*')):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (output / results.FILE).exists()
    folder = run.prune(cfg)
    name = 'model.safetensors'
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not list(output.glob('.*tmp*'))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'match': None}, 'Say how much to remove'),
        ({'amount': 2.0}, 'Say how much to remove'),
        ({'match': '1.5'}, r'--match must be in \[0, 1\)'),
        ({'match': 'half'}, 'a sparsity or a .pmask file'),
        ({'match': '0.1,0.2'}, 'must be one'),
        ({'calibration': None}, 'one of --calibration'),
        ({'instructions': 'demo'}, 'one of --calibration'),
        ({'rotation': 'single'}, 'is of --method=slicegpt, not of depth'),
        ({'gain_steps': 2}, 'is of --method=grasprune, not of depth'),
        ({'spare_first': 2}, 'lower --spare_first'),
        ({'match': None, 'amount': 0.5}, 'must be a whole number'),
        ({'match': None, 'amount': 2.0}, 'must be a whole number'),
        ({'sequence_length': 8}, 'is of --text'),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(changes, message, settings):
    with pytest.raises(errors.InputError, match=message):
        run.prune(dataclasses.replace(settings, **changes))
    assert not pathlib.Path(settings.output_dir).exists()


def test_a_bias_is_refused_where_no_stock_model_holds_it(settings, tiny_models):
    base = tiny_models('qwen2').base
    assert not biases.wanted(None, base)
    with pytest.raises(errors.InputError, match='no stock qwen2 model'):
        biases.wanted(True, base)


def test_losses_that_are_no_numbers_are_refused(settings, monkeypatch):
    real = methods.loading.load_decoder

    def broken(*args, **options):
        return jax.tree.map(lambda x: x * np.nan, real(*args, **options))

    monkeypatch.setattr(methods.loading, 'load_decoder', broken)
    with pytest.raises(errors.InputError, match='scores of these texts are not finite'):
        run.prune(_of(settings, 'grasprune', steps=4))
    assert not pathlib.Path(settings.output_dir).exists()


def test_scores_that_are_no_numbers_are_refused(settings, monkeypatch):
    monkeypatch.setattr(
        methods.gradients,
        'measure',
        lambda *args, **options: gradients.Scores(
            np.full((2, 40), np.nan), np.ones((2, 2)), np.ones(2)
        ),
    )
    with pytest.raises(errors.InputError, match='scores of these texts are not finite'):
        run.prune(_of(settings, 'llm_pruner', spare_first=0, spare_last=0))
    assert not pathlib.Path(settings.output_dir).exists()


def test_the_budget_is_printed_from_a_config_alone(chatty_model, tmp_path, capsys):
    file = tmp_path / 'config.json'
    file.write_text((chatty_model / 'config.json').read_text())
    cfg = config.PruneConfig(
        base_model=str(file),
        print_budget=True,
        match='0.25,0.5',
        align=4,
        spare_first=0,
        spare_last=0,
    )
    assert prune.main(cfg) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 2 * 6
    with pytest.raises(errors.InputError, match='is not METHOD=AMOUNT'):
        dataclasses.replace(cfg, amounts='depth:3')


def test_the_smallest_model_is_that_of_fewest_parameters_of_blocks(
    settings, chatty_model, calibration_files
):
    """A rotated model has all blocks and all channels, and a narrower stream."""
    cfg = _of(settings, 'slicegpt')
    folder = run.prune(cfg)
    found = _figures(cfg)['amounts']
    output = pathlib.Path(cfg.output_dir).parent / 'evaluated'
    evaluate.main(
        evaluate_config.EvaluateConfig(
            base_model=str(chatty_model),
            model=str(folder),
            tasks='efficiency',
            timing=False,
            output_dir=str(output),
        )
    )
    closed = json.loads((output / 'results' / 'measured_efficiency.json').read_text())
    for name in ('dense', 'pruned'):
        own = closed['closed_form'][name]
        assert own['parameters'] == found[name]['parameters']['unique']
        assert own['parameters_blocks'] == found[name]['parameters']['blocks']
