"""A mask without learning, refitted: channels with the largest activations stay."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.compensation import config, loop
from ppjax.masking import pmask
from ppjax.models import open_checkpoint
from ppjax.training import config as train_config
from ppjax.training import loop as train_loop


@pytest.fixture
def settings(
    chatty_model: pathlib.Path, calibration_files: Any, tmp_path: pathlib.Path
) -> config.CompensateConfig:
    return config.CompensateConfig(
        base_model=str(chatty_model),
        sparsity=0.4,
        align=8,
        calibration=str(calibration_files[0]),
        output_dir=str(tmp_path / 'run'),
        damping='0.01,1',
        verify=False,
    )


def _compensate(cfg: config.CompensateConfig) -> pathlib.Path | None:
    return loop.compensate(cfg, demo.read_rows(str(cfg.calibration), split='train'), [])


def test_the_mask_is_the_one_that_learning_starts_from(
    settings: config.CompensateConfig, tmp_path: pathlib.Path
) -> None:
    done = _compensate(settings)
    assert done == tmp_path / 'run' / 'hf'
    learning = train_config.TrainConfig(
        base_model=settings.base_model,
        calibration=settings.calibration,
        sparsity=0.4,
        align=8,
        steps=1,
        batch_size=2,
        output_dir=str(tmp_path / 'train'),
    )
    rows = demo.read_rows(str(settings.calibration), split='train')
    train_loop.learn_mask(learning, rows, [])
    start = pmask.load(tmp_path / 'train' / 'results' / 'start_mask.pmask')
    found = pmask.load(tmp_path / 'run' / 'mask.pmask')
    np.testing.assert_array_equal(found.mask, start.mask)
    assert found == dataclasses.replace(start, mask=found.mask)
    assert (
        open_checkpoint.open_checkpoint(str(done)).hf_config['intermediate_size']
        == start.keep
        == 24
    )


def test_a_paused_run_goes_on_from_the_same_mask(
    settings: config.CompensateConfig, tmp_path: pathlib.Path
) -> None:
    whole = dataclasses.replace(settings, output_dir=str(tmp_path / 'whole'))
    _compensate(whole)
    assert _compensate(dataclasses.replace(settings, stop_after=1)) is None
    before = (tmp_path / 'run' / 'mask.pmask').stat().st_mtime_ns
    _compensate(settings)
    assert (tmp_path / 'run' / 'mask.pmask').stat().st_mtime_ns == before
    weights = [
        (tmp_path / name / 'hf' / 'model.safetensors').read_bytes()
        for name in ('run', 'whole')
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    'changed, said',
    [
        ({'sparsity': None}, 'one of --mask, --sparsity'),
        ({'mask': 'x.pmask'}, 'one of --mask, --sparsity'),
        ({'sparsity': 0.5, 'align': 64}, 'use a smaller --align'),
    ],
)
def test_refusals_come_before_a_folder(
    settings: config.CompensateConfig,
    tmp_path: pathlib.Path,
    changed: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(errors.InputError, match=said):
        _compensate(dataclasses.replace(settings, **changed))
    assert not (tmp_path / 'run').exists()
