"""Figures survive kills and damage; losses that are no numbers stop a run."""

import json

import numpy as np
import pytest

from ppjax.base import errors, reading
from ppjax.learning import metrics


@pytest.mark.parametrize(
    ('loss', 'grad_norm', 'named'),
    [('nan', 1, 'loss nan, gradient norm 1.0'), (2, 'inf', 'gradient norm inf')],
)
def test_non_finite_figures_name_step_and_examples(loss, grad_norm, named):
    with pytest.raises(errors.InputError, match=rf'Step 7: .*{named}.*a-1, b-2'):
        metrics.check_finite(np.float32(loss), np.float32(grad_norm), 7, ['a-1', 'b-2'])


def test_scores_that_are_no_numbers_stop_a_run():
    with pytest.raises(errors.InputError, match=r'Step 7: .*, norm of scores inf.*a-1'):
        metrics.check_finite(2.0, 1.0, 7, ['a-1'], score_norm=float('inf'))


def test_finite_figures_pass():
    metrics.check_finite(np.float32(2), np.float32(1), 7, [])


def _entries(run):
    return [json.loads(line) for line in (run / 'metrics.jsonl').open()]


def test_entries_of_steps_to_come_are_dropped(tmp_path):
    log = metrics.MetricsLog(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        log.write('train', step, loss=step)
    log.write('heldout', 2, heldout_nll=0.5)
    # On disk before it is closed.
    assert len(_entries(tmp_path)) == 4
    log.close()
    log = metrics.MetricsLog(tmp_path, resume_step=2)
    assert log.has('heldout', 2)
    assert not log.has('train', 3)
    log.write('train', 3, loss=3.5)
    log.close()
    assert [(e['stage'], e['step']) for e in _entries(tmp_path)] == [
        ('train', 1),
        ('train', 2),
        ('heldout', 2),
        ('train', 3),
    ]


@pytest.mark.parametrize(
    'line',
    [
        b'[]',
        b'3',
        b'\xff\xfe',
        b'{"stage": "train"}',
        b'{"step": "2", "stage": 1}',
        b'{',
        b'[' * 100_000,
    ],
)
def test_damaged_lines_are_left_out_and_said(tmp_path, line, capsys):
    whole = b'{"stage": "train", "step": 1, "loss": 2.0}\n'
    (tmp_path / 'metrics.jsonl').write_bytes(whole + line + b'\n' + whole)
    log = metrics.MetricsLog(tmp_path, resume_step=5)
    log.write('train', 2, loss=1.0)
    log.close()
    assert [entry['step'] for entry in _entries(tmp_path)] == [1, 1, 2]
    assert '1 damaged lines were left out' in capsys.readouterr().err


@pytest.mark.parametrize('torn', [b'{"stage": "tr', b'{"stage": "train", "step": 2}'])
def test_a_torn_last_line_is_no_damage(tmp_path, torn, capsys):
    whole = b'{"stage": "train", "step": 1, "loss": 2.0}\n'
    (tmp_path / 'metrics.jsonl').write_bytes(whole + torn)
    log = metrics.MetricsLog(tmp_path, resume_step=5)
    log.write('train', 3, loss=1.0)
    log.close()
    steps = [entry['step'] for entry in _entries(tmp_path)]
    assert steps == ([1, 3] if torn.endswith(b'r') else [1, 2, 3])
    assert 'damaged' not in capsys.readouterr().err


def test_a_folder_in_its_place_is_one_line(tmp_path):
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(errors.InputError, match=r'metrics\.jsonl is a folder'):
        metrics.MetricsLog(tmp_path, resume_step=0)


def test_a_log_larger_than_what_people_bring_is_gone_on_with(tmp_path, monkeypatch):
    log = metrics.MetricsLog(tmp_path, resume_step=0)
    log.write('train', 1, loss=2.0)
    log.close()
    monkeypatch.setattr(reading, 'MAX_FILE_BYTES', 8)
    assert metrics.MetricsLog(tmp_path, resume_step=1).has('train', 1)
