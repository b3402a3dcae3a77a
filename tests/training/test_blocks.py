"""Masks of whole blocks: where they start, whole runs, export, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax import demo, export, report
from ppjax.base import errors
from ppjax.data import chat, packing
from ppjax.evaluation import candidates, efficiency, reporting
from ppjax.evaluation import config as evaluate_config
from ppjax.exporting import config as export_config
from ppjax.exporting import hf_export, pruned_source
from ppjax.learning import heldout
from ppjax.masking import apply, granularity, pmask
from ppjax.models import attention, base_model, loading
from ppjax.models import masks as masks_lib
from ppjax.recovery import config as recover_config
from ppjax.training import config, loop, starts

_LAYERS, _KEEP = 5, 3


@pytest.fixture(scope='module')
def deep(chatty_model, tmp_path_factory):
    """A five-layer Llama with SmolLM2's tokenizer and chat template."""
    settings = transformers.AutoConfig.from_pretrained(chatty_model)
    settings.num_hidden_layers = _LAYERS
    model = transformers.LlamaForCausalLM(settings)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    path = tmp_path_factory.mktemp('deep')
    model.save_pretrained(path)
    base_model.open_base_model(str(chatty_model)).tokenizer().save_pretrained(path)
    return path


def _settings(deep, files, output, **changes):
    values = {
        'base_model': str(deep),
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(output),
        'granularity': 'blocks',
        'sparsity': 0.4,
        'batch_size': 4,
        'steps': 4,
        'checkpoint_every': 2,
        'heldout_every': 4,
        'learning_rate': 0.3,
    }
    return config.TrainConfig(**(values | changes))


def _learn(cfg):
    held = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    return loop.learn_mask(cfg, demo.read_rows(cfg.calibration, split='train'), held)


@pytest.fixture(scope='module')
def finished(deep, calibration_files, tmp_path_factory):
    run = tmp_path_factory.mktemp('runs') / 'blocks'
    _learn(_settings(deep, calibration_files, run))
    export.main(export_config.ExportConfig(output_dir=str(run), verify=True))
    return run


def _likelihood(run):
    found = json.loads((run / 'results' / 'likelihood.json').read_text())['models']
    return {name: value['nll'] for name, value in found.items()}


def test_a_run_keeps_k_blocks_and_changes_them(finished):
    mask = pmask.load(finished / 'mask.pmask')
    assert (mask.granularity, mask.mask.shape, mask.keep) == ('blocks', (1, 5), _KEEP)
    start = pmask.load(finished / 'results' / 'start_mask.pmask')
    assert start.granularity == 'blocks'
    steps = [json.loads(line) for line in (finished / 'metrics.jsonl').open()]
    assert any(entry.get('flip_fraction', 0) > 0 for entry in steps)


def test_the_export_is_what_was_measured(finished, calibration_files):
    """The exported model's held-out likelihood is the learned mask's."""
    base = base_model.open_base_model(str(finished / 'hf'))
    assert base.config.num_layers == _KEEP
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    renderer = chat.ChatRenderer(base.tokenizer(), date='2026-01-01')
    rows = demo.read_rows(str(calibration_files[1]), split='test')
    examples, _ = chat.render_rows(renderer, rows, 1024)
    [found] = heldout.HeldOut.of_personas([examples], 4)
    learned = _likelihood(finished)['learned']
    assert found.measure(model, masks_lib.DENSE).mean == pytest.approx(
        learned, rel=1e-5
    )
    assert abs(_likelihood(finished)['dense'] - learned) > 1e-3


def test_the_export_is_verified_and_says_what_it_is(finished, deep):
    record = json.loads((finished / 'results' / 'export.json').read_text())
    assert max(record['verify']['max_logit_difference'].values()) < 1e-4
    assert record['granularity'] == 'blocks'
    assert record['sparsity'] == pytest.approx(0.4)
    dense = base_model.open_base_model(str(deep))
    kept = base_model.open_base_model(str(finished / 'hf'))
    assert record['parameters'] == {
        'dense': hf_export.parameter_count(dense),
        'pruned': hf_export.parameter_count(kept),
    }
    card = (finished / 'hf' / 'README.md').read_text()
    numbers = np.flatnonzero(pmask.load(finished / 'mask.pmask').mask[0])
    listed = ', '.join(str(number) for number in numbers)
    assert f'kept: 3 of 5; their numbers in the base model, from 0 on: {listed}' in card
    assert 'Blocks removed: 40.00% (asked for: 40.00%)' in card
    assert 'hannel' not in card.split('## How it was made')[0]


def test_paused_and_resumed_is_bit_identical(
    finished, deep, calibration_files, tmp_path
):
    run = tmp_path / 'paused'
    cfg = _settings(deep, calibration_files, run, stop_after=2)
    assert _learn(cfg) is None
    _learn(dataclasses.replace(cfg, stop_after=None))
    masks, curves = [], []
    for path in (run, finished):
        masks.append(pmask.load(path / 'mask.pmask').mask)
        entries = [json.loads(line) for line in (path / 'metrics.jsonl').open()]
        curves.append([(e['step'], e.get('loss'), e.get('grad_norm')) for e in entries])
    np.testing.assert_array_equal(*masks)
    assert curves[0] == curves[1]
    assert _likelihood(run) == _likelihood(finished)


def _logits(model, masks=masks_lib.DENSE):
    tokens = jnp.arange(40, 52)[None]

    @jax.jit
    def run(model, masks):
        attend = attention.causal(1, 12)
        positions = jnp.arange(12)[None]
        hidden, _, _ = model(tokens, positions, masks, attend)
        return model.unembed(hidden)

    return np.asarray(run(model, masks))


def test_chat_and_evaluation_load_the_kept_blocks(finished, deep):
    file = finished / 'mask.pmask'
    dense = apply.load_masked(base_model=str(deep), dtype='float32')
    mask = jnp.asarray(pmask.load(file).mask[0], jnp.float32)
    want = _logits(dense.decoder, masks_lib.Masks(blocks=mask))
    masked = apply.load_masked(mask_path=str(file), dtype='float32')
    assert masked.masks == masks_lib.DENSE
    assert masked.tokenizer.chat_template
    np.testing.assert_allclose(_logits(masked.decoder), want, atol=1e-4)

    found = candidates.find(
        evaluate_config.EvaluateConfig(
            output_dir=str(finished.parent / 'evaluated'),
            base_model=str(deep),
            mask=str(file),
            tasks='efficiency',
        )
    )
    assert found.names == ['dense', 'masked']
    assert found['dense'].identity != found['masked'].identity
    np.testing.assert_allclose(_logits(found['masked'].load().decoder), want, atol=1e-4)
    assert found['masked'].base.config.num_layers == _KEEP


def test_sizes_of_fewer_blocks_are_counted(finished, deep):
    base = base_model.open_base_model(str(deep))
    small = base_model.open_base_model(str(finished / 'hf'))
    lengths = {'dtype': 'float32', 'prompt_length': 9, 'answer_length': 4}
    found = efficiency.measure(base.config, base.config.d_ff, layers=_KEEP, **lengths)
    alone = efficiency.measure(small.config, small.config.d_ff, **lengths)
    assert found.pruned == alone.dense
    assert found.pruned.parameters == hf_export.parameter_count(small)
    rows = {
        row.label: (row.dense, row.pruned)
        for row in efficiency.table(dataclasses.asdict(found))
    }
    assert rows['Transformer blocks'] == ('5', '3')
    with pytest.raises(errors.InputError, match=r'layers must be in \[1, 5\]'):
        efficiency.measure(base.config, 40, layers=6, **lengths)


def test_the_report_speaks_of_blocks(finished):
    report.main(
        reporting.ReportConfig(output_dir=str(finished), samples=1, max_new_tokens=3)
    )
    page = (finished / 'report.html').read_text()
    assert '3 of 5 transformer blocks kept; 40 % asked' in page
    kept = np.flatnonzero(pmask.load(finished / 'mask.pmask').mask[0]) + 1
    assert f'Counted from 1: {", ".join(map(str, kept))}.' in page
    assert 'FFN channel</' not in page


def test_keep_indices_of_blocks_are_refused(finished):
    with pytest.raises(errors.InputError, match='--keep_indices lists FFN channels'):
        export.main(
            export_config.ExportConfig(
                output_dir=str(finished), keep_indices=str(finished / 'kept.json')
            )
        )


def test_a_start_must_mask_the_same_kind(finished, deep, calibration_files, tmp_path):
    file = str(finished / 'mask.pmask')
    cfg = _settings(
        deep, calibration_files, tmp_path / 'x', granularity='channels', score_init=file
    )
    with pytest.raises(errors.InputError, match=r'mask of blocks.*=channels'):
        _learn(cfg)
    again = _settings(
        deep, calibration_files, tmp_path / 'y', score_init=file, steps=1, heldout=None
    )
    _learn(again)
    start = pmask.load(tmp_path / 'y' / 'results' / 'start_mask.pmask')
    np.testing.assert_array_equal(start.mask, pmask.load(file).mask)


def test_recovery_starts_from_the_kept_blocks(finished, deep, calibration_files):
    cfg = recover_config.RecoverConfig(
        base_model=str(deep),
        mask=str(finished / 'mask.pmask'),
        calibration=str(calibration_files[0]),
        output_dir=str(finished.parent / 'recovered'),
    )
    found = pruned_source.open_source(base_model_name=cfg.base_model, mask=cfg.mask)
    assert found.model.config.num_layers == _KEEP
    card = pruned_source.card_before(found, 'float32', 'recover', has_template=True)
    assert 'Transformer blocks kept: 3 of 5;' in card


def test_other_estimators_and_objectives_run(deep, calibration_files, tmp_path):
    cfg = _settings(
        deep,
        calibration_files,
        tmp_path / 'soft',
        heldout=None,
        estimator='soft_topk',
        objective='ce+kl',
        anneal=0.5,
        micro_batches=2,
        score_init='taylor',
        steps=2,
    )
    assert pmask.load(_learn(cfg)).keep == _KEEP


def test_starts_of_blocks(deep):
    """Influence and gradients by another way: unpacked, block by block."""
    base = base_model.open_base_model(str(deep))
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    renderer = chat.ChatRenderer(base.tokenizer(), date='2026-01-01')
    examples, _ = chat.render_rows(renderer, demo.rows('ferryman', 'train')[:3], 1024)
    [found] = starts.Starts.of_personas(
        [examples],
        seed=5,
        granularity=granularity.BLOCKS,
    )
    shared = packing.common_prefix(examples)
    cosines, count, losses = np.zeros(_LAYERS), 0, []

    @jax.jit
    def run(mask, tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        attend = attention.causal(1, tokens.shape[1])
        tap = lambda x, y, hidden: (x, y)
        hidden, _, seen = model(
            tokens, positions, masks_lib.Masks(blocks=mask), attend, tap=tap
        )
        return jax.nn.log_softmax(model.unembed(hidden)), seen

    for number, example in enumerate(examples):
        tokens = jnp.asarray(example.tokens)[None]
        seen = run(jnp.ones(_LAYERS), tokens)[1]
        x, y = (np.asarray(side, np.float64)[:, 0] for side in seen)
        own = slice(0 if number == 0 else shared, None)  # The prefix counts once.
        norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
        cosines += ((x * y).sum(axis=-1) / norms)[:, own].sum(axis=1)
        count += len(example.tokens[own])

        def loss(mask, tokens=tokens, start=example.answer_start):
            log_p = run(mask, tokens)[0][0, start - 1 : -1]
            return -jnp.sum(
                jnp.take_along_axis(log_p, tokens[0, start:, None], axis=-1)
            )

        losses.append(np.asarray(jax.grad(loss)(jnp.ones(_LAYERS))))

    def standardised(importance):
        log = np.log(importance)
        return (log - log.mean()) / log.std()

    answers = sum(example.num_answer_tokens for example in examples)
    got = found.activation(model)
    assert got.shape == (1, _LAYERS)
    np.testing.assert_allclose(got[0], standardised(1 - cosines / count), atol=1e-3)
    taylor = standardised(np.abs(sum(losses) / answers))
    np.testing.assert_allclose(found.taylor(model, 'dots')[0], taylor, atol=1e-2)
