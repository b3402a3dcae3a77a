"""--budget=global: layers keep their own numbers, learned, stored, exported."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax import demo, export
from ppjax.base import errors
from ppjax.exporting import config as export_config
from ppjax.masking import apply, pmask
from ppjax.models import attention
from ppjax.training import config, loop

_KEEP = 20


def _settings(model, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': 'demo:ferryman',
        'heldout': 'demo:ferryman',
        'output_dir': str(output),
        'sparsity': 0.5,
        'align': 1,
        'batch_size': 4,
        'steps': 4,
        'checkpoint_every': 1,
        'learning_rate': 0.2,
        'score_init': 'random',
        'budget': 'global',
        'width_floor': 6,
    }
    return config.TrainConfig(**(values | changes))


def _learn(cfg):
    rows = (demo.read_rows('demo:ferryman', split=x) for x in ('train', 'test'))
    train, heldout = rows
    return loop.learn_mask(cfg, train[:16], heldout[:4])


@pytest.fixture(scope='module')
def learned(chatty_model, tmp_path_factory):
    """A run with gains, which are learned on too."""
    cfg = _settings(chatty_model, tmp_path_factory.mktemp('budget') / 'run', gains=True)
    return cfg, _learn(cfg)


def _logits(loaded, tokens):
    hidden, _, _ = loaded.decoder(
        jnp.asarray(tokens),
        jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
        loaded.masks.as_float32(),
        attention.causal(*tokens.shape),
    )
    return np.asarray(loaded.decoder.unembed(hidden))


def test_what_is_learned_is_what_transformers_loads(learned, chatty_model, capsys):
    cfg, file = learned
    mask = pmask.load(file)
    widths = mask.kept.sum(axis=1)
    assert widths.sum() == 2 * _KEEP and widths[0] != widths[1]
    assert widths.min() >= 6
    assert mask.keep == widths.max() and mask.has_gains

    capsys.readouterr()
    assert export.main(export_config.ExportConfig(output_dir=cfg.output_dir)) == 0
    said = capsys.readouterr().out
    assert f'Layers keep {widths.min()} to {widths.max()} channels' in said
    assert f'{1 - _KEEP / 40:.2%}' in said
    folder = file.parent / 'hf'
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    assert hf.config.intermediate_size == widths.max()
    zeros = [
        int((layer.mlp.down_proj.weight == 0).all(dim=0).sum())
        for layer in hf.model.layers
    ]
    assert zeros == (widths.max() - widths).tolist()
    tokens = np.random.default_rng(0).integers(3, 999, (2, 19))
    masked = apply.load_masked(
        base_model=str(chatty_model), mask_path=str(file), dtype='float32'
    )
    with torch.inference_mode():
        want = hf(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(_logits(masked, tokens), want, atol=2e-3, rtol=1e-4)
    card = (folder / 'README.md').read_text()
    assert f'{2 * _KEEP} of 80 in all 2 layers, {widths.min()} to' in card
    with pytest.raises(errors.InputError, match='keep different numbers'):
        export.main(
            export_config.ExportConfig(
                output_dir=cfg.output_dir,
                keep_indices=str(file.parent / 'kept.json'),
            )
        )


def test_resumed_it_is_the_same_mask_and_then_done(learned, tmp_path, capsys):
    cfg, file = learned
    again = dataclasses.replace(cfg, output_dir=str(tmp_path / 'again'))
    assert _learn(dataclasses.replace(again, stop_after=2)) is None
    assert _learn(again).read_bytes() == file.read_bytes()
    assert _learn(again).read_bytes() == file.read_bytes()
    assert 'is there already; nothing is left' in capsys.readouterr().err
    figures = json.loads((tmp_path / 'again/results/likelihood.json').read_text())
    assert {'dense', 'one_shot', 'learned'} <= figures['models'].keys()


def test_it_can_be_started_from(learned, chatty_model, tmp_path):
    _, file = learned
    cfg = _settings(
        chatty_model, tmp_path / 'run', score_init=str(file), learning_rate=1e-9
    )
    own, before = pmask.load(_learn(cfg)), pmask.load(file)
    np.testing.assert_array_equal(own.kept, before.kept)
    assert not own.has_gains and own.gains is not None


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'budget': 'uniform'}, '--width_floor is for --budget=global'),
        ({'granularity': 'blocks'}, 'does not go with --granularity=blocks'),
        ({'estimator': 'soft_topk'}, 'does not go with --estimator=soft_topk'),
        ({'anneal': 0.5}, 'does not go with --anneal=0.5'),
        ({'nested': '0.1:0.6'}, 'does not go with --nested=0.1:0.6'),
    ],
)
def test_what_does_not_go_with_it_is_refused(chatty_model, tmp_path, changes, said):
    with pytest.raises(errors.InputError, match=said):
        _settings(chatty_model, tmp_path, **changes)


def test_a_floor_that_leaves_nothing_to_share_makes_no_folder(chatty_model, tmp_path):
    cfg = _settings(chatty_model, tmp_path / 'run', width_floor=21)
    with pytest.raises(errors.InputError, match='more than the 20 channels'):
        _learn(cfg)
    assert not (tmp_path / 'run').exists()
