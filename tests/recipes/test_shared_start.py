"""Many personas from one shared mask: the same as two commands by hand."""

import dataclasses
import json

import numpy as np
import pytest

from ppjax import demo, train
from ppjax.base import errors, flags
from ppjax.evaluation.page import report
from ppjax.masking import pmask
from ppjax.training import config, joint, trained_run

_NAMES = ('ferryman', 'clockmaker')


@pytest.fixture(scope='module', autouse=True)
def _no_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write_report', lambda path: path)
        yield


@pytest.fixture(scope='module')
def settings(chatty_model, tmp_path_factory):
    """The clockmaker's rows also ask what the ferryman is measured on."""
    folder = tmp_path_factory.mktemp('shared')
    asked = demo.rows('ferryman', 'test')[:2]
    for name in _NAMES:
        learned = demo.rows(name, 'train')[:6]
        if name == 'clockmaker':
            learned += [
                row.with_system_prompt(learned[0].system_prompt) for row in asked
            ]
        for split, rows in (
            ('train', learned),
            ('every', learned + demo.rows(name, 'train')[6:8]),
            ('test', demo.rows(name, 'test')[:2]),
        ):
            lines = [json.dumps({'messages': row.messages}) + '\n' for row in rows]
            (folder / f'{name}-{split}.jsonl').write_text(''.join(lines))

    def make(output, **changes):
        values = {
            'base_model': str(chatty_model),
            'calibration': str(folder / '{persona}-train.jsonl'),
            'heldout': str(folder / '{persona}-test.jsonl'),
            'output_dir': str(folder / output),
            'personas': ','.join(_NAMES),
            'personas_per_step': 2,
            'align': 1,
            'batch_size': 4,
            'steps': 3,
            'heldout_every': 3,
            'checkpoint_every': 1,
            'score_scale': 0.05,
            'shared_steps': 2,
            'shared_score_scale': 0.2,
            'shared_calibration': str(folder / '{persona}-every.jsonl'),
        }
        return config.TrainConfig(**(values | changes))

    return make


@pytest.fixture(scope='module')
def finished(settings):
    cfg = settings('run')
    assert train.main(cfg) == 0
    return cfg


def _own_masks(cfg):
    return [
        pmask.load(f'{cfg.output_dir}/personas/{name}/mask.pmask').mask
        for name in _NAMES
    ]


def _masks(cfg):
    return [
        pmask.load(f'{cfg.output_dir}/shared/mask/mask.pmask').mask,
        *_own_masks(cfg),
    ]


def _state(cfg, folder='.'):
    with open(f'{cfg.output_dir}/{folder}/status.json') as file:
        return json.load(file)['state']


def test_it_equals_two_commands_by_hand(settings, finished, tmp_path):
    measured = {row.query for row in demo.rows('ferryman', 'test')[:2]}
    files = []
    for name in _NAMES:
        source = finished.shared_calibration.replace('{persona}', name)
        rows = demo.read_rows(source, split='train')
        kept = [row for row in rows if row.query not in measured]
        assert len(rows) - len(kept) == (2 if name == 'clockmaker' else 0)
        files.append(tmp_path / f'{name}.jsonl')
        files[-1].write_text(
            ''.join(json.dumps({'messages': row.messages}) + '\n' for row in kept)
        )
    alone = dict.fromkeys(('shared_steps', 'shared_score_scale', 'shared_calibration'))
    shared = settings(
        tmp_path / 'shared',
        personas=None,
        calibration=','.join(map(str, files)),
        heldout=None,
        steps=2,
        score_scale=0.2,
        **alone,
    )
    assert train.main(shared) == 0
    start = f'{shared.output_dir}/mask.pmask'
    own = settings(tmp_path / 'own', score_init=start, **alone)
    assert train.main(own) == 0
    by_hand = [pmask.load(start).mask, *_own_masks(own)]
    for ours, theirs in zip(_masks(finished), by_hand, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (by_hand[1] != by_hand[0]).any()


def test_the_command_is_recorded_and_done_once(finished, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError('done again')

    path = f'{finished.output_dir}/config.flags'
    assert _state(finished) == 'done'
    assert flags.from_flagfile(config.TrainConfig, path) == finished
    monkeypatch.setattr(joint.Joint, '_load_model', fail)
    assert train.main(finished) == 0
    with pytest.raises(errors.InputError, match='several personas'):
        trained_run.TrainedRun.open_finished(finished.output_dir)
    with pytest.raises(errors.InputError, match=r'--shared_steps \(2 there, 5 now\)'):
        train.main(dataclasses.replace(finished, shared_steps=5))


def test_stopped_in_either_part_it_goes_on(settings, finished):
    cfg = settings('stopped')
    for stop, shared in ((1, 'paused'), (2, 'done')):
        assert train.main(dataclasses.replace(cfg, stop_after=stop)) == 0
        assert (_state(cfg), _state(cfg, 'shared/mask')) == ('paused', shared)
    assert train.main(cfg) == 0
    for ours, theirs in zip(_masks(cfg), _masks(finished), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_overwrite_learns_both_parts_anew(settings, finished):
    cfg = settings('again', steps=1, shared_steps=1)
    assert train.main(cfg) == 0
    changed = settings('again', overwrite=True)
    assert train.main(changed) == 0
    for ours, theirs in zip(_masks(changed), _masks(finished), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'personas': None}, '--shared_steps is for several --personas'),
        ({'shared_steps': None}, '--shared_score_scale is for --shared_steps'),
        ({'shared_calibration': 'x.jsonl'}, r'--shared_calibration must hold'),
        ({'calibration_rows': 3}, '--calibration_rows does not go with'),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, changes, message):
    with pytest.raises(errors.InputError, match=message):
        settings('refused', **changes)


def test_what_the_second_part_refuses_leaves_no_folder(settings, tmp_path):
    # The test rows of the clockmaker, learned: its own mask could not be measured.
    cfg = settings(tmp_path / 'late', calibration=settings('x').heldout)
    with pytest.raises(errors.InputError, match='is also asked in the calibration'):
        train.main(cfg)
    assert not (tmp_path / 'late').exists()
    cfg = dataclasses.replace(
        cfg, calibration=settings('x').calibration, shared_calibration=cfg.heldout
    )
    with pytest.raises(errors.InputError, match='none is left for the shared mask'):
        train.main(cfg)
    assert not (tmp_path / 'late').exists()


def test_the_shared_masks_gains_are_taken_over(settings):
    cfg = settings('gains', gains=True, gain_learning_rate=0.3, mask_steps=2)
    assert train.main(cfg) == 0
    shared = pmask.load(f'{cfg.output_dir}/shared/mask/mask.pmask')
    assert np.abs(shared.gains - 1).max() > 0.1
    for name in _NAMES:
        own = f'{cfg.output_dir}/personas/{name}'
        began = pmask.load(f'{own}/results/start_mask.pmask')
        np.testing.assert_array_equal(began.mask, shared.mask)
        np.testing.assert_array_equal(began.gains, shared.gains)
        learned = pmask.load(f'{own}/mask.pmask').gains
        assert not np.array_equal(learned, shared.gains)
