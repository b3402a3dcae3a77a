"""Mask learning from start to end: the story that `python -m ppjax.train` tells.

One persona's run, or many over one frozen base model. Many share the loaded model,
the compiled step and its batch; in all else each is a run of its own, with a run
directory of its own under `personas/`.
"""

from collections.abc import Mapping, Sequence
import contextlib
import pathlib

import jax

from ppjax.base import flags, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import data as data_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.masking import score_init
from ppjax.models import base_model
from ppjax.models import weights as weights_lib
from ppjax.parallel import sharding
from ppjax.training import config as config_lib
from ppjax.training import joint as joint_lib
from ppjax.training import run as run_lib

MAKES = (
    checkpoints_lib.FILES,
    *metrics_lib.FILES,
    'mask.pmask',
    'results/references.json',
    'results/start_mask.pmask',
    'results/likelihood.json',
    # Of `report`, which may look at a run while it is held.
    'results/efficiency.json',
    'results/samples.json',
    'report.html',
)

# Calibration and held-out rows.
TwoSplits = tuple[list[calibration.Row], list[calibration.Row]]


def learn_mask(
    cfg: config_lib.TrainConfig,
    train_rows: list[calibration.Row],
    heldout_rows: list[calibration.Row],
    *,
    stage: str | None = None,
    like: pathlib.Path | None = None,
) -> pathlib.Path | None:
    """Learns a persona mask in a run directory.

    Args:
        cfg: the settings.
        train_rows: the calibration rows that `cfg.calibration` names.
        heldout_rows: those that `cfg.heldout` names, or none.
        stage: its name, where it is one of a run of several.
        like: a finished run of the same data and, but for how its mask is learned,
            the same settings (`TrainConfig.reference_settings`), whose references
            need not be measured again.

    Returns:
        The mask file, or None if `cfg.stop_after` or a SIGTERM came first.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk, or
            a loss that is not finite.
    """
    base = base_model.open_base_model(cfg.base_model)
    mesh = _mesh(cfg, base)
    [run] = _runs(cfg, base, {'': (train_rows, heldout_rows)}, stage)
    _agree(cfg, run.data.hashes)
    with _opened(run) as found, run.directory.stage('train'):
        if like is not None:
            run.take_references(like)
        return run.mask_path if _learn([run], run.directory, found, mesh) else None


def learn_masks(
    cfg: config_lib.TrainConfig,
    rows: Mapping[str, TwoSplits],
    *,
    stage: str | None = None,
) -> dict[str, pathlib.Path] | None:
    """Learns a mask for each of many personas, in one run.

    Args:
        cfg: the settings, with `personas`.
        rows: name -> (calibration rows, held-out rows).
        stage: its name, where it is one of a run of several.

    Returns:
        Name -> mask file, or None if `cfg.stop_after` or a SIGTERM came first.

    Raises:
        InputError: as `learn_mask`.
    """
    base = base_model.open_base_model(cfg.base_model)
    mesh = _mesh(cfg, base)
    runs = _runs(cfg, base, rows)
    hashes = {
        f'{kind} of {run.name}': digest
        for run in runs
        for kind, digest in run.data.hashes.items()
    }
    _agree(cfg, hashes)
    directory = run_directory.RunDirectory(cfg.output_dir, stage=stage)
    with contextlib.ExitStack() as held:
        found = held.enter_context(
            directory.opened(
                cfg,
                hashes,
                resumable=config_lib.RESUMABLE,
                overwrite=cfg.overwrite,
                makes=(checkpoints_lib.FILES, 'personas/*'),
            )
        )
        for run in runs:
            held.enter_context(_opened(run))
        with directory.stage('train'):
            if not _learn(runs, directory, found, mesh):
                return None
    return {run.name: run.mask_path for run in runs}


def check(cfg: config_lib.TrainConfig, rows: Mapping[str, TwoSplits]) -> None:
    """What `learn_masks` would refuse of its rows, before what must come first.

    Raises:
        InputError: as `learn_masks`.
    """
    _runs(cfg, base_model.open_base_model(cfg.base_model), rows)


def _mesh(cfg: config_lib.TrainConfig, base: base_model.BaseModel) -> jax.sharding.Mesh:
    """The devices; one that does not fit the model leaves no folder behind."""
    mesh = sharding.default_mesh(cfg.mesh)
    sharding.shardings(weights_lib.abstract(base.config), mesh)
    return mesh


def _agree(cfg: config_lib.TrainConfig, hashes: Mapping[str, str]) -> None:
    """Processes that differ would hang, or worse, learn a mask of no data at all."""
    processes.agree({'settings': flags.to_flagfile(cfg)} | dict(hashes))


def _runs(
    cfg: config_lib.TrainConfig,
    base: base_model.BaseModel,
    rows: Mapping[str, TwoSplits],
    stage: str | None = None,
) -> list[run_lib.LearningRun]:
    """The run of each of many personas, or of '', which is the settings' own."""
    runs, start_hash = [], ''
    if score_init.start_masks(cfg.score_init):
        masks = run_lib.read_start_masks(cfg, base)
        start_hash = run_lib.masks_hash(masks, gains=cfg.gains)
        if not cfg.gains and any(own.gains is not None for own in masks):
            progress_lib.say(
                'Note: --score_init has gains, which are left out; with --gains they '
                'are learned on.'
            )
    for name, (train, heldout) in rows.items():
        own = cfg
        if name:
            progress_lib.say(f'{name}:')
            own = cfg.of_persona(name)
        if cfg.calibration_rows is not None:
            train = data_lib.subset(train, cfg.calibration_rows, cfg.seed)
        data = data_lib.prepare_data(
            base,
            train,
            heldout,
            max_length=cfg.max_length,
            date=cfg.date,
            short_prompt=own.dropped_prompt,
        )
        if start_hash:
            data.hashes['start masks'] = start_hash
        directory = run_directory.RunDirectory(own.output_dir, stage=stage)
        runs.append(run_lib.LearningRun(own, base, data, directory, name=name))
    return runs


def _opened(run: run_lib.LearningRun) -> contextlib.AbstractContextManager[bool]:
    return run.directory.opened(
        run.cfg,
        run.data.hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=run.cfg.overwrite,
        makes=MAKES,
    )


def _learn(
    runs: Sequence[run_lib.LearningRun],
    directory: run_directory.RunDirectory,
    found: bool,
    mesh: jax.sharding.Mesh,
) -> bool:
    """Takes all runs to their end; false if something stopped them before."""
    joint = joint_lib.Joint(runs, directory, mesh)
    if processes.first_decides(lambda: all(run.is_learned() for run in runs)):
        for run in runs:
            progress_lib.say(
                f'{run.mask_path} is there already; nothing is left to do.'
            )
            # One that was killed after its mask had not said so yet.
            run.directory.done(step=run.total, total_steps=run.total)
        directory.done(step=joint.total, total_steps=joint.total)
        return True
    checkpoints = checkpoints_lib.Checkpoints(directory.path)
    with contextlib.closing(checkpoints):
        return joint.learn(checkpoints, found)
