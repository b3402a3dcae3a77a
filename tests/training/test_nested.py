"""One order of the channels for all sparsities of a range: learned, and dialled."""

import collections
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo, export
from ppjax.base import errors
from ppjax.chatting import config as chat_config
from ppjax.evaluation import candidates
from ppjax.evaluation import config as evaluation_config
from ppjax.evaluation.page import report
from ppjax.exporting import config as export_config
from ppjax.exporting import pruned_source
from ppjax.masking import apply, pmask, ranking
from ppjax.models import base_model, open_checkpoint
from ppjax.recovery import config as recovery_config
from ppjax.training import config, joint, loop
from ppjax.training import step as step_lib


def test_steps_draw_a_small_k_more_often():
    keeps = ranking.Keeps(8, 22, 4)
    learning = step_lib.Learning(12, 'ste', 'ce', 0.0, 0.0, 'none', 0, keeps=keeps)
    draw = jax.jit(jax.vmap(learning.drawn_keep))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    counts = collections.Counter(drawn.tolist())
    assert set(counts) == {8, 12, 16, 20}
    # The smaller of two draws: 7, 5, 3 and 1 in 16.
    for keep, share in zip((8, 12, 16, 20), (7, 5, 3, 1), strict=True):
        assert abs(counts[keep] - 250 * share) < 150
    plain = dataclasses.replace(learning, keeps=None)
    assert plain.drawn_keep(jax.random.key(0)) == 12


def _settings(model, files, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(output),
        'align': 4,
        'batch_size': 4,
        'steps': 6,
        'checkpoint_every': 2,
        'heldout_every': 6,
        'sparsity': 0.4,
        'nested': '0.2:0.6',
        'gains': True,
        'gain_learning_rate': 0.1,
    }
    return config.TrainConfig(**(values | changes))


def _rows(cfg):
    return (
        demo.read_rows(cfg.calibration, split='train'),
        demo.read_rows(cfg.heldout, split='test'),
    )


def _joint(cfg):
    base = base_model.open_base_model(cfg.base_model)
    [run] = loop._runs(cfg, base, {'': _rows(cfg)})
    return joint.Joint([run], run.directory, loop._mesh(cfg, base))


def _text(cfg, name):
    return pathlib.Path(cfg.output_dir, name).read_text()


@pytest.fixture(scope='module')
def finished(chatty_model, calibration_files, tmp_path_factory):
    cfg = _settings(
        chatty_model, calibration_files, tmp_path_factory.mktemp('nested') / 'run'
    )
    loop.learn_mask(cfg, *_rows(cfg))
    return cfg


@pytest.fixture(scope='module')
def mask(finished):
    return pmask.load(f'{finished.output_dir}/mask.pmask')


def test_each_step_is_one_of_its_own_k(finished):
    """A step's loss is that of the mask of the k that its seed and number draw."""
    own = _joint(finished)
    [run], [shape] = own.runs, own.shapes.values()
    assert run.learning.keeps == ranking.Keeps(16, 32, 4)
    lines = _text(finished, 'metrics.jsonl').splitlines()
    first = next(x for x in map(json.loads, lines) if x['stage'] == 'train')
    start = pmask.load(f'{finished.output_dir}/results/start_mask.pmask')
    key = jax.random.fold_in(jax.random.key(finished.seed), 0)
    drawn = int(run.learning.drawn_keep(jax.random.fold_in(key, 0)))
    losses = {}
    for keep in (16, 20, 24, 28, 32):
        learning = dataclasses.replace(run.learning, keep=keep, keeps=None)
        step = step_lib.make_train_step(learning, shape)
        scores = -jnp.asarray(start.ranking.ranks, jnp.float32)[None]
        state = step_lib.init_state(scores, learning)
        sent = own.sent(own.turns[0], [run.gain_rate()])
        losses[keep] = float(step(state, own._load_model(), *sent)[1].loss[0])
    assert losses[drawn] == pytest.approx(first['loss'], rel=1e-6)
    assert len({round(x, 4) for x in losses.values()}) == 5


def test_the_file_holds_all_sparsities_and_each_is_measured(finished, mask):
    assert mask.keep == 24
    assert mask.ranking.keeps == ranking.Keeps(16, 32, 4)
    assert mask.ranking.gains.shape == (2, 40)
    models = json.loads(_text(finished, 'results/likelihood.json'))['models']
    assert list(models)[-3:] == ['learned', 'learned_at_0.2', 'learned_at_0.6']
    own = _joint(finished)
    [heldout], model = own._heldouts(), own._load_model()
    for name, keep in (('', 24), ('_at_0.2', 32), ('_at_0.6', 16)):
        found = heldout.measure(model, mask.at_keep(keep).decoder_masks())
        assert models[f'learned{name}']['nll'] == pytest.approx(found.mean, rel=1e-6)
    page = report.write_report(finished.output_dir).read_text()
    assert 'Learned mask at sparsity 0.2' in page
    assert 'orders them for 16 to 32 of 40' in page
    assert 'each with a learned gain' in page


def test_a_paused_run_goes_on_to_the_same_ranks(finished, mask, tmp_path):
    cfg = dataclasses.replace(finished, output_dir=str(tmp_path / 'run'))
    paused = dataclasses.replace(cfg, stop_after=3)
    assert loop.learn_mask(paused, *_rows(cfg)) is None
    again = pmask.load(loop.learn_mask(cfg, *_rows(cfg)))
    np.testing.assert_array_equal(again.ranking.ranks, mask.ranking.ranks)
    np.testing.assert_array_equal(again.ranking.gains, mask.ranking.gains)


def test_learning_on_starts_from_ranks_and_all_gains(finished, mask, tmp_path):
    cfg = dataclasses.replace(
        finished,
        output_dir=str(tmp_path / 'run'),
        score_init=f'{finished.output_dir}/mask.pmask',
        stop_after=1,
    )
    loop.learn_mask(cfg, *_rows(cfg))
    start = pmask.load(tmp_path / 'run/results/start_mask.pmask')
    np.testing.assert_array_equal(start.ranking.ranks, mask.ranking.ranks)
    np.testing.assert_array_equal(start.ranking.gains, mask.ranking.gains)


def test_every_verb_takes_a_sparsity(finished, mask, tmp_path):
    file = f'{finished.output_dir}/mask.pmask'
    want = np.asarray(mask.at_keep(16).decoder_masks().channels)
    loaded = apply.load_masked(mask_path=file, mask_sparsity=0.6, dtype='float32')
    np.testing.assert_array_equal(loaded.masks.channels, want)

    settings = export_config.ExportConfig(
        output_dir=finished.output_dir, mask_sparsity=0.6
    )
    export.main(settings)
    reader = open_checkpoint.open_checkpoint(f'{finished.output_dir}/hf')
    assert reader.hf_config['intermediate_size'] == 16
    card = _text(finished, 'hf/README.md')
    assert 'asked for: 60.00%' in card
    assert 'nats per token' not in card

    cfg = evaluation_config.EvaluateConfig(
        output_dir=finished.output_dir, mask_sparsity=0.6
    )
    found = candidates.find(cfg)
    assert found.names == ['dense', 'masked']
    np.testing.assert_array_equal(found['masked'].load().masks.channels, want)
    other = candidates.find(dataclasses.replace(cfg, mask_sparsity=0.5))
    assert other['masked'].identity != found['masked'].identity

    resolved = recovery_config.RecoverConfig(
        output_dir=str(tmp_path), run=finished.output_dir, mask_sparsity=0.6
    ).resolved()
    source = pruned_source.open_source(
        base_model_name=resolved.base_model,
        mask=resolved.mask,
        mask_sparsity=resolved.mask_sparsity,
    )
    assert source.model.config.d_ff == 16


def test_a_sparsity_that_was_not_learned_is_refused(finished, mask, tmp_path):
    file = f'{finished.output_dir}/mask.pmask'
    with pytest.raises(errors.InputError, match=r'16 to 32 of 40.*not 12'):
        apply.load_masked(mask_path=file, mask_sparsity=0.7, dtype='float32')
    plain = tmp_path / 'plain.pmask'
    pmask.save(plain, dataclasses.replace(mask, ranking=None))
    with pytest.raises(errors.InputError, match='no ranks'):
        apply.load_masked(mask_path=str(plain), mask_sparsity=0.6, dtype='float32')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'nested': '0.6:0.2'}, 'two sparsities'),
        ({'nested': '0.2'}, 'two sparsities'),
        ({'nested': '0.2:nan'}, 'two sparsities'),
        ({'sparsity': 0.7}, 'outside --nested'),
        ({'anneal': 0.5}, '--anneal'),
        ({'granularity': 'blocks', 'gains': False}, '--nested is of channels'),
    ],
)
def test_contradictory_settings(changes, message):
    with pytest.raises(errors.InputError, match=message):
        _settings('m', ('a', 'b'), 'out', **changes)


def test_a_sparsity_needs_a_mask(tmp_path):
    for make in (
        lambda: chat_config.ChatConfig(base_model='m', mask_sparsity=0.5),
        lambda: export_config.ExportConfig(
            output_dir='o', base_model='m', from_keep_indices='k', mask_sparsity=0.5
        ),
        lambda: evaluation_config.EvaluateConfig(
            output_dir=str(tmp_path), model='m', mask_sparsity=0.5
        ),
        lambda: recovery_config.RecoverConfig(
            output_dir='o', base_model='m', calibration='c', mask_sparsity=0.5
        ),
    ):
        with pytest.raises(errors.InputError, match='--mask_sparsity'):
            make()
