"""Mask learning from start to end: the story that `python -m ppjax.train` tells.

One persona's run, or many over one frozen base model. Many share the loaded model,
the compiled step and its batch; in all else each is a run of its own, with a run
directory of its own under `personas/`.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
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
    data = _data(cfg, base, (train_rows, heldout_rows))
    _agree(cfg, data.hashes)
    directory = run_directory.RunDirectory(cfg.output_dir, stage=stage)
    with _opened(directory, cfg, data) as found, directory.stage('train'):
        run = run_lib.LearningRun(cfg, base, data, directory)
        if like is not None:
            run.take_references(like)
        return run.mask_path if _learn([run], directory, found, mesh) else None


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
    datas = _datas(cfg, base, rows)
    directory = run_directory.RunDirectory(cfg.output_dir, stage=stage)
    hashes = {
        f'{kind} of {name}': digest
        for name, data in datas.items()
        for kind, digest in data.hashes.items()
    }
    _agree(cfg, hashes)
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
        runs = []
        for name, data in datas.items():
            own_cfg = cfg.of_persona(name)
            own_directory = run_directory.RunDirectory(own_cfg.output_dir)
            held.enter_context(_opened(own_directory, own_cfg, data))
            runs.append(
                run_lib.LearningRun(own_cfg, base, data, own_directory, name=name)
            )
        with directory.stage('train'):
            if not _learn(runs, directory, found, mesh):
                return None
    return {run.name: run.mask_path for run in runs}


def check(cfg: config_lib.TrainConfig, rows: Mapping[str, TwoSplits]) -> None:
    """What `learn_masks` would refuse of its rows, before what must come first.

    Raises:
        InputError: as `learn_masks`.
    """
    _datas(cfg, base_model.open_base_model(cfg.base_model), rows)


def _datas(
    cfg: config_lib.TrainConfig,
    base: base_model.BaseModel,
    rows: Mapping[str, TwoSplits],
) -> dict[str, data_lib.Data]:
    datas = {}
    for name, own in rows.items():
        progress_lib.say(f'{name}:')
        datas[name] = _data(cfg, base, own)
    return datas


def _mesh(cfg: config_lib.TrainConfig, base: base_model.BaseModel) -> jax.sharding.Mesh:
    """The devices; one that does not fit the model leaves no folder behind."""
    mesh = sharding.default_mesh(cfg.mesh)
    sharding.shardings(weights_lib.abstract(base.config), mesh)
    return mesh


def _agree(cfg: config_lib.TrainConfig, hashes: Mapping[str, str]) -> None:
    """Processes that differ would hang, or worse, learn a mask of no data at all."""
    processes.agree({'settings': flags.to_flagfile(cfg)} | dict(hashes))


def _data(
    cfg: config_lib.TrainConfig, base: base_model.BaseModel, rows: TwoSplits
) -> data_lib.Data:
    train, heldout = rows
    if cfg.calibration_rows is not None:
        train = data_lib.subset(train, cfg.calibration_rows, cfg.seed)
    data = data_lib.prepare_data(
        base, train, heldout, max_length=cfg.max_length, date=cfg.date
    )
    # Too many steps leave no folder behind.
    data.num_steps(steps=cfg.steps, epochs=cfg.epochs, batch_size=cfg.batch_size)
    if score_init.start_masks(cfg.score_init):
        digest = run_lib.masks_hash(run_lib.read_start_masks(cfg, base))
        data = dataclasses.replace(data, hashes=data.hashes | {'start masks': digest})
    return data


def _opened(
    directory: run_directory.RunDirectory,
    cfg: config_lib.TrainConfig,
    data: data_lib.Data,
) -> contextlib.AbstractContextManager[bool]:
    return directory.opened(
        cfg,
        data.hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
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
    try:
        return joint.learn(checkpoints, found)
    finally:
        checkpoints.close()
