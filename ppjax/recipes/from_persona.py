"""From a persona to a pruned model, in one run directory.

Synthesis, mask learning, export or reconstruction, and report, one after the other. The same command goes
on where it stopped; a stage whose settings and inputs are those of the last time is not
done again.
"""

import contextlib
import dataclasses
import time
from typing import Any, TypeVar

from ppjax.base import progress as progress_lib
from ppjax.base import run_directory
from ppjax.compensation import config as compensation_config
from ppjax.compensation import loop as compensation
from ppjax.data import calibration
from ppjax.evaluation import reporting
from ppjax.exporting import config as export_config
from ppjax.exporting import export
from ppjax.recipes import config as config_lib
from ppjax.synthesis import config as synthesis_config
from ppjax.synthesis import pipeline, sources
from ppjax.training import config as train_config
from ppjax.training import loop

Settings = TypeVar('Settings')


def _part(settings: type[Settings], cfg: config_lib.RunConfig, **more: Any) -> Settings:
    """The settings of one stage."""
    names = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    given = dataclasses.asdict(cfg)
    return settings(**{name: given[name] for name in names & given.keys()} | more)


def _opened(
    cfg: config_lib.RunConfig, directory: run_directory.RunDirectory
) -> contextlib.AbstractContextManager[bool]:
    # With --overwrite each stage decides for itself what still holds.
    every = frozenset(field.name for field in dataclasses.fields(cfg))
    return directory.opened(
        cfg,
        {},
        resumable=every if cfg.overwrite else config_lib.RESUMABLE,
        overwrite=False,
        makes=(),
    )


def prune(cfg: config_lib.RunConfig) -> None:
    """Does all stages, or those that are left; `cfg.stop_after` or a SIGTERM pauses.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk.
    """
    # Before anything is made: the likeliest mistake is in what people write.
    sources.read_persona(cfg, notes=lambda note: None)
    directory = run_directory.RunDirectory(cfg.output_dir)
    began = time.monotonic()

    def begin(number: int, stage: str, text: str) -> None:
        directory.status(state='running', stage=stage)
        spent = time.monotonic() - began
        progress_lib.say(f'\n[{number}/4] {text} ({spent:.0f} s so far)')

    with _opened(cfg, directory), directory.stage('run'):
        begin(1, 'synthesize', 'Calibration data')
        made = pipeline.synthesize(
            _part(synthesis_config.SynthesisSettings, cfg), stage='synthesize'
        )
        assert made.train is not None
        begin(2, 'train', 'Mask learning')
        files = {
            'calibration': str(made.train),
            'heldout': None if made.test is None else str(made.test),
        }
        splits = (
            calibration.read_rows(made.train),
            [] if made.test is None else calibration.read_rows(made.test),
        )
        mask = loop.learn_mask(
            _part(train_config.TrainConfig, cfg, **files), *splits, stage='train'
        )
        if mask is None:
            directory.status(state='paused')
            return
        if cfg.compensate == 'none':
            begin(3, 'export', 'Export')
            compensation.forget(directory.path)
            export.export(
                export_config.ExportConfig(
                    output_dir=cfg.output_dir,
                    verify=cfg.verify,
                    overwrite=cfg.overwrite,
                ),
                again=False,
            )
        else:
            begin(3, compensation.STAGE, 'Reconstruction')
            refit = _part(
                compensation_config.CompensateConfig,
                cfg,
                mask=str(mask),
                sparsity=None,
                stop_after=None,
                **files,
            )
            if (
                compensation.compensate(refit, *splits, stage=compensation.STAGE)
                is None
            ):
                directory.status(state='paused')
                return
        begin(4, 'report', 'Report')
        reporting.report_on(reporting.ReportConfig(output_dir=cfg.output_dir))
        directory.done(stage='run')
