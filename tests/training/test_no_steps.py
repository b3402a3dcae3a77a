"""--steps=0: the mask of the scores that learning would start from."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.training import config, loop


def _learn(cfg: config.TrainConfig) -> pathlib.Path | None:
    train = demo.read_rows(cfg.calibration, split='train')
    return loop.learn_mask(cfg, train, demo.read_rows(str(cfg.heldout), split='test'))


def test_no_step_leaves_the_mask_of_the_start(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = config.TrainConfig(
        base_model=str(chatty_model),
        calibration=str(calibration_files[0]),
        heldout=str(calibration_files[1]),
        output_dir=str(tmp_path / 'run'),
        align=8,
        steps=0,
    )
    mask = _learn(cfg)
    assert mask == tmp_path / 'run' / 'mask.pmask'
    assert mask.read_bytes() == (mask.parent / 'results/start_mask.pmask').read_bytes()
    found = json.loads((mask.parent / 'results' / 'likelihood.json').read_text())
    nll = {name: own['nll'] for name, own in found['models'].items()}
    assert nll['learned'] == nll['one_shot'] != nll['dense']
    status = json.loads((mask.parent / 'status.json').read_text())
    assert (status['state'], status['total_steps']) == ('done', 0)
    before = pmask.load(mask)
    assert 'No step is taken' in capsys.readouterr().err
    assert _learn(cfg) == mask
    assert 'is there already' in capsys.readouterr().err
    np.testing.assert_array_equal(pmask.load(mask).mask, before.mask)


def test_fewer_are_refused() -> None:
    with pytest.raises(errors.InputError, match=r'--steps must be in \[0, 100000\]'):
        config.TrainConfig(base_model='b', calibration='c', output_dir='o', steps=-1)
