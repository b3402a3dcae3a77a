"""Recovery from start to end: the story that `python -m ppjax.recover` tells."""

import contextlib
import dataclasses
import functools
import pathlib

import jax

from ppjax.base import errors, flags, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration
from ppjax.exporting import pruned_source
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.learning import references as references_lib
from ppjax.learning import steps as steps_lib
from ppjax.models.weights import Weights
from ppjax.parallel import sharding
from ppjax.recovery import config as config_lib
from ppjax.recovery import methods, records, results, start_answers
from ppjax.recovery import run as run_lib
from ppjax.recovery import step as step_lib
from ppjax.recovery.neeko import results as neeko_results
from ppjax.recovery.neeko import run as neeko_run

_MAKES = (
    checkpoints_lib.FILES,
    *metrics_lib.FILES,
    'results/references.json',
    start_answers.FILE,
    records.FILE,
    'adapter/adapter_config.json',
    'adapter/adapter_model.safetensors',
    results.GAINS_FILE,
    *neeko_results.FILES,
)


def recover(
    cfg: config_lib.RecoverConfig,
    train_rows: list[calibration.Row],
    heldout_rows: list[calibration.Row],
    *,
    model_dir: pathlib.Path | None = None,
    measured: references_lib.Measured | None = None,
) -> pathlib.Path | None:
    """Finetunes a pruned model in a run directory of its own, and exports it.

    Args:
        cfg: the settings, resolved.
        train_rows: the calibration rows that `cfg.calibration` names.
        heldout_rows: those that `cfg.heldout` names, or none.
        model_dir: where the model goes; by default hf/ in the run directory.
        measured: what an earlier stage has measured of `heldout_rows`.

    Returns:
        The exported model's directory, with --neeko the file of the blocks; None if
        `cfg.stop_after` or a SIGTERM came first.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk, or
            a loss that is not finite.
    """
    if cfg.verify and processes.count() > 1:
        raise errors.InputError(
            '--verify loads the export in one process; leave it out with --coordinator.'
        )
    mesh = sharding.make_mesh(cfg.mesh, jax.devices())
    source = pruned_source.open_source(
        model=cfg.model,
        base_model_name=cfg.base_model,
        mask=cfg.mask,
        mask_sparsity=cfg.mask_sparsity,
    )
    pruned_source.refuse_inside(cfg.output_dir, source, cfg.mask)
    data = data_lib.prepare_data(
        source.files,
        train_rows,
        heldout_rows,
        max_length=cfg.max_length,
        date=cfg.date,
        short_prompt=cfg.dropped_prompt,
    )
    if cfg.neeko_start:
        pruned_source.refuse_inside(cfg.output_dir, source, cfg.neeko_start)
        data = dataclasses.replace(
            data, hashes=data.hashes | neeko_results.hashes_of(cfg.neeko_start)
        )
    processes.agree({'settings': flags.to_flagfile(cfg)} | data.hashes | source.hashes)
    directory = run_directory.RunDirectory(cfg.output_dir)
    run: run_lib.RecoveryRun
    if cfg.neeko:
        run = neeko_run.NeekoRun(
            cfg, source, data, directory, mesh, train_rows, heldout_rows
        )
    else:
        run = run_lib.RecoveryRun(cfg, source, data, directory, mesh, model_dir)
    run.abstract_state()  # A rank or mesh that does not fit leaves no folder behind.
    opened = directory.opened(
        cfg,
        data.hashes | source.hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )
    with opened as found, directory.stage('recover'):
        if processes.first_decides(lambda: _is_finished(run)):
            progress_lib.say(f'{run.made} is there already; nothing is left to do.')
        elif not _train_and_export(run, found, measured):
            return None
        # All that they were for is exported.
        if processes.is_first():
            run_directory.discard(directory.path, [checkpoints_lib.FILES])
        directory.done(step=run.total, total_steps=run.total)
    return run.made


def _is_finished(run: run_lib.RecoveryRun) -> bool:
    if isinstance(run, neeko_run.NeekoRun):
        return neeko_results.is_finished(run)
    return results.is_finished(run)


def _train_and_export(
    run: run_lib.RecoveryRun, found: bool, measured: references_lib.Measured | None
) -> bool:
    """Whether the run came to its end."""
    checkpoints = checkpoints_lib.Checkpoints(run.directory.path, keep=1)
    with contextlib.closing(checkpoints):
        return _finish(run, found, checkpoints, measured)


def _finish(
    run: run_lib.RecoveryRun,
    found: bool,
    checkpoints: checkpoints_lib.Checkpoints,
    measured: references_lib.Measured | None,
) -> bool:
    first, saved = checkpoints.newest(run.abstract_state())
    if found:
        progress_lib.say(
            f'Resuming {run.directory.path} at step {first} of {run.total}.'
        )
    run.say_plan()
    run.answer()
    trained: methods.Trained = {}
    frozen: Weights = {}
    if run.cfg.method != 'full' or not first or not run.has_references:
        trained, frozen = run.load()
    heldout = None
    references: dict[str, heldout_lib.Likelihood] = {}
    if run.data.heldout:
        [heldout] = heldout_lib.HeldOut.of_personas(
            [run.data.heldout], run.cfg.batch_size, run.mesh
        )
        references = run.references(
            heldout,
            functools.partial(run.measure_reference, heldout, trained, frozen),
            measured,
        )
    state = run.first_state(trained) if saved is None else saved
    # The state's arrays are used up by the next step.
    del trained, saved

    recovery_steps = {
        shortened: step_lib.make_recovery_step(
            run.optimizer,
            run.method,
            run.abstract_step_state(),
            run.mesh,
            shape=shape,
            remat=run.cfg.remat,
            unlikelihood=run.cfg.unlikelihood,
        )
        for shortened, shape in run.shapes.items()
    }

    def take(
        state: step_lib.RecoveryState, step: int
    ) -> tuple[step_lib.RecoveryState, step_lib.Metrics]:
        kind = run.is_shortened(step - 1)
        batch = run.packed(step, run.shapes[kind])
        own, metrics = recovery_steps[kind](run.step_state(state, step), frozen, batch)
        return run.with_step_state(state, step, own), metrics

    def likelihood(_: int, state: step_lib.RecoveryState) -> heldout_lib.Likelihood:
        assert heldout is not None
        return run.measure(heldout, state.trained, frozen)

    learner = steps_lib.Learner(
        'recover',
        'Recovery',
        [run],
        [heldout],
        run.directory,
        [{0: taken} for taken in range(run.total)],
        first,
        take=take,
        likelihood=likelihood,
        reuses_state=True,
    )
    finished = learner.learn(state, checkpoints)
    if finished is None:
        return False
    if heldout is not None:
        references['recovered'] = learner.learned(0, finished)
        progress_lib.say(
            'Held-out nats/token: '
            + ', '.join(f'{name} {x.mean:.4f}' for name, x in references.items())
        )
    if isinstance(run, neeko_run.NeekoRun):
        neeko_results.write(run, finished.trained, references)
    else:
        results.write(run, finished.trained, references)
    return True
