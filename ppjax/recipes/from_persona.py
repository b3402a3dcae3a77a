"""From a persona to a pruned model, in one run directory.

Synthesis, mask learning, export or reconstruction, perhaps recovery, and report, one after
the other. The same command goes on where it stopped; a stage whose settings and inputs are
those of the last time is not done again. What is recovered from, and recovery, are run
directories of their own inside the run's: `refitted` and `recovered`.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import pathlib
import time
from typing import Any, TypeVar

from ppjax.base import progress as progress_lib
from ppjax.base import run_directory
from ppjax.compensation import config as compensation_config
from ppjax.compensation import loop as compensation
from ppjax.compensation import results as compensation_results
from ppjax.data import calibration
from ppjax.evaluation import reporting
from ppjax.exporting import config as export_config
from ppjax.exporting import export
from ppjax.learning import config as learning_config
from ppjax.learning import references
from ppjax.recipes import config as config_lib
from ppjax.recovery import config as recovery_config
from ppjax.recovery import loop as recovery
from ppjax.recovery import records as recovery_records
from ppjax.synthesis import config as synthesis_config
from ppjax.synthesis import pipeline, sources
from ppjax.training import config as train_config
from ppjax.training import loop

Settings = TypeVar('Settings')

_LORA_RANK = 16


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


def _refitted(
    cfg: config_lib.RunConfig,
    run: pathlib.Path,
    mask: pathlib.Path,
    files: Mapping[str, str | None],
    splits: loop.TwoSplits,
) -> pathlib.Path | None:
    """The refitted model: the run's own, or what recovery goes on from."""
    settings = _part(
        compensation_config.CompensateConfig,
        cfg,
        mask=str(mask),
        sparsity=None,
        stop_after=None,
        **files,
    )
    measured = references.Measured(
        run / 'results' / 'likelihood.json', {'dense': 'dense', 'start': 'learned'}
    )
    if cfg.recover == 'none':
        return compensation.compensate(
            settings, *splits, stage=compensation.STAGE, measured=measured
        )
    compensation.forget(run)
    inside = str(run / compensation_results.STAGE_FOLDER)
    # What comes of it is verified in the end.
    return compensation.compensate(
        dataclasses.replace(settings, output_dir=inside, verify=False),
        *splits,
        measured=measured,
    )


def _recovery(
    cfg: config_lib.RunConfig,
    model: pathlib.Path,
    run: pathlib.Path,
    files: Mapping[str, str | None],
) -> recovery_config.RecoverConfig:
    """The settings of recovery from a refitted model."""
    own = {field.name for field in dataclasses.fields(learning_config.StepSettings)}
    own |= {'prompt_dropout', 'short_prompt'}
    given = dataclasses.asdict(cfg)
    shared: dict[str, Any] = {name: x for name, x in given.items() if name in own}
    shared |= {
        'base_model': None,
        'steps': cfg.recover_steps,
        'epochs': learning_config.StepSettings.epochs,
        'weight_decay': learning_config.StepSettings.weight_decay,
        'stop_after': None,
        'model': str(model),
        'gains': cfg.recover == 'gains',
        'lora_rank': _LORA_RANK if cfg.recover == 'lora' else 0,
        'learning_rate': None,
        'micro_batches': cfg.micro_batches,
        'unlikelihood': cfg.recover_unlikelihood,
        'verify': cfg.verify,
        'output_dir': str(run / recovery_records.STAGE_FOLDER),
    }
    return recovery_config.RecoverConfig(**(shared | dict(files))).resolved()


def prune(cfg: config_lib.RunConfig) -> None:
    """Does all stages, or those that are left; `cfg.stop_after` or a SIGTERM pauses.

    Args:
        cfg: the settings, resolved.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk.
    """
    # Before anything is made: the likeliest mistake is in what people write.
    sources.read_persona(cfg, notes=lambda note: None)
    directory = run_directory.RunDirectory(cfg.output_dir)
    began = time.monotonic()
    recovers = cfg.recover != 'none'
    stages = 5 if recovers else 4

    def begin(number: int, stage: str, text: str) -> None:
        directory.status(state='running', stage=stage)
        spent = time.monotonic() - began
        progress_lib.say(f'\n[{number}/{stages}] {text} ({spent:.0f} s so far)')

    with _opened(cfg, directory), directory.stage('run'):
        begin(1, 'synthesize', 'Calibration data')
        made = pipeline.synthesize(
            _part(synthesis_config.SynthesisSettings, cfg), stage='synthesize'
        )
        assert made.train is not None
        begin(2, 'train', 'Mask learning' if cfg.steps != 0 else 'Mask')
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
            model = _refitted(cfg, directory.path, mask, files, splits)
            if model is not None and recovers:
                begin(4, 'recover', 'Recovery')
                model = recovery.recover(
                    _recovery(cfg, model, directory.path, files),
                    *splits,
                    model_dir=directory.path / 'hf',
                    measured=references.Measured(
                        model.parent / compensation_results.FILE, {'start': 'refitted'}
                    ),
                )
            if model is None:
                directory.status(state='paused')
                return
        begin(stages, 'report', 'Report')
        reporting.report_on(reporting.ReportConfig(output_dir=cfg.output_dir))
        directory.done(stage='run')
