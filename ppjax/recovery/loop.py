"""Recovery from start to end: the story that `python -m ppjax.recover` tells."""

import pathlib
import time

import jax

from ppjax.base import flags, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration, packing
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.learning import steps as steps_lib
from ppjax.models.weights import Weights
from ppjax.parallel import sharding
from ppjax.recovery import config as config_lib
from ppjax.recovery import methods, results
from ppjax.recovery import run as run_lib
from ppjax.recovery import source as source_lib
from ppjax.recovery import step as step_lib

_HELDOUT_MEASUREMENTS = 4
_MAKES = (
    checkpoints_lib.FILES,
    *metrics_lib.FILES,
    'results/references.json',
    'results/recovery.json',
    'adapter/adapter_config.json',
    'adapter/adapter_model.safetensors',
)


def recover(
    cfg: config_lib.RecoverConfig,
    train_rows: list[calibration.Row],
    heldout_rows: list[calibration.Row],
) -> pathlib.Path | None:
    """Finetunes a pruned model in a run directory of its own, and exports it.

    Args:
        cfg: the settings, resolved.
        train_rows: the calibration rows that `cfg.calibration` names.
        heldout_rows: those that `cfg.heldout` names, or none.

    Returns:
        The exported model's directory, or None if `cfg.stop_after` or a SIGTERM came
        first.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk, or
            a loss that is not finite.
    """
    mesh = sharding.make_mesh(cfg.mesh, jax.devices())
    source = source_lib.open_source(cfg)
    source_lib.refuse_inside_output(cfg, source)
    data = data_lib.prepare_data(
        source.files,
        train_rows,
        heldout_rows,
        max_length=cfg.max_length,
        date=cfg.date,
    )
    processes.agree({'settings': flags.to_flagfile(cfg)} | data.hashes | source.hashes)
    directory = run_directory.RunDirectory(cfg.output_dir)
    run = run_lib.RecoveryRun(cfg, source, data, directory, mesh)
    run.abstract_state()  # A rank or mesh that does not fit leaves no folder behind.
    opened = directory.opened(
        cfg,
        data.hashes | source.hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )
    with opened as found, directory.stage('recover'):
        if processes.first_decides(lambda: results.is_finished(run)):
            progress_lib.say(
                f'{results.model_dir(run)} is there already; nothing is left to do.'
            )
        elif not _train_and_export(run, found):
            return None
        # All that they were for is exported.
        if processes.is_first():
            run_directory.discard(directory.path, [checkpoints_lib.FILES])
        directory.done(step=run.total, total_steps=run.total)
    return results.model_dir(run)


def _train_and_export(run: run_lib.RecoveryRun, found: bool) -> bool:
    """Whether the run came to its end."""
    checkpoints = checkpoints_lib.Checkpoints(run.directory.path, keep=1)
    try:
        return _finish(run, found, checkpoints)
    finally:
        checkpoints.close()


def _finish(
    run: run_lib.RecoveryRun, found: bool, checkpoints: checkpoints_lib.Checkpoints
) -> bool:
    first, saved = checkpoints.newest(run.abstract_state())
    if found:
        progress_lib.say(
            f'Resuming {run.directory.path} at step {first} of {run.total}.'
        )
    run.say_plan()
    measures = bool(run.data.heldout)
    trained: methods.Trained = {}
    frozen: Weights = {}
    if run.cfg.lora_rank or not first or (measures and not run.has_references):
        trained, frozen = run.load()
    heldout = None
    references: dict[str, heldout_lib.Likelihood] = {}
    if measures:
        [heldout] = heldout_lib.HeldOut.of_personas(
            [run.data.heldout], run.cfg.batch_size, run.mesh
        )
        references = run.references(heldout, trained, frozen)
    state = run.first_state(trained) if saved is None else saved
    # The state's arrays are used up by the next step.
    del trained, saved

    last = min(run.total, run.cfg.stop_after or run.total)
    learner = _Learner(run, frozen, heldout, first, last)
    try:
        state, done = steps_lib.run_steps(
            learner,
            state,
            first=first,
            last=last,
            checkpoints=checkpoints,
            reuses_state=True,
        )
    finally:
        learner.close()
    if done < run.total:
        run.directory.paused(done, run.total)
        return False
    if heldout is not None:
        # A run killed between its last checkpoint and here has not measured yet.
        references['recovered'] = learner.found or run.measure(
            heldout, state.trained, frozen
        )
        progress_lib.say(
            'Held-out nats/token: '
            + ', '.join(f'{name} {x.mean:.4f}' for name, x in references.items())
        )
    results.write(run, state.trained, references)
    return True


class _Learner:
    """Steps of recovery, as `learning.steps` takes them.

    Attributes:
        found: held-out likelihood after the run's last step, once it is measured.
    """

    def __init__(
        self,
        run: run_lib.RecoveryRun,
        frozen: Weights,
        heldout: heldout_lib.HeldOut | None,
        first: int,
        last: int,
    ):
        self._run, self._frozen, self._heldout = run, frozen, heldout
        self.found: heldout_lib.Likelihood | None = None
        self._step = step_lib.make_recovery_step(
            run.optimizer,
            run.method,
            run.abstract_state(),
            run.mesh,
            shape=run.shape,
            remat=run.cfg.remat,
        )
        self._every = run.cfg.heldout_every or max(
            1, -(-run.total // _HELDOUT_MEASUREMENTS)
        )
        self._log = metrics_lib.MetricsLog(run.directory.path, resume_step=first)
        self._progress = progress_lib.Progress('Recovery', last, initial=first)
        if first < last:
            progress_lib.say('Compiling the step; the first one takes longest.')
        self._began = time.monotonic()
        self._held_note = ''

    def take(
        self, state: step_lib.RecoveryState, step: int
    ) -> tuple[step_lib.RecoveryState, step_lib.RecoveryMetrics]:
        """See `steps.Learner`."""
        run = self._run
        batch = packing.pack(run.data.train, run.batches[step - 1], run.shape)
        return self._step(state, self._frozen, batch)

    def saves_after(self, step: int) -> bool:
        """See `steps.Learner`."""
        return step % self._run.cfg.checkpoint_every == 0

    def measures(self, step: int) -> bool:
        """See `steps.Learner`."""
        due = step % self._every == 0 or step == self._run.total
        return due and self._heldout is not None

    def measure(self, step: int, state: step_lib.RecoveryState) -> None:
        """See `steps.Learner`."""
        if self._log.has('heldout', step):
            return
        assert self._heldout is not None
        found = self._run.measure(self._heldout, state.trained, self._frozen)
        self._log.write('heldout', step, heldout_nll=found.mean)
        self._held_note = f' held-out {found.mean:.4f}'
        if step == self._run.total:
            self.found = found
        self._began = time.monotonic()

    def report(self, step: int, metrics: step_lib.RecoveryMetrics) -> None:
        """See `steps.Learner`."""
        run = self._run
        fetched = jax.device_get(metrics)
        examples = [run.data.train[i] for i in run.batches[step - 1]]
        metrics_lib.check_finite(
            float(fetched.loss),
            float(fetched.grad_norm),
            step,
            [example.query_id for example in examples],
        )
        spent, self._began = time.monotonic() - self._began, time.monotonic()
        tokens = sum(example.num_answer_tokens for example in examples)
        if step % run.cfg.log_every == 0 or step == run.total:
            self._log.write(
                'recover',
                step,
                loss=fetched.loss,
                grad_norm=fetched.grad_norm,
                learning_rate=float(run.schedule(step - 1)),
                examples_per_s=len(examples) / spent,
                answer_tokens_per_s=tokens / spent,
            )
        self._progress.update(
            step,
            f'loss {fetched.loss:.3f} gradient {fetched.grad_norm:.2g} '
            f'{len(examples) / spent:.2f} ex/s{self._held_note}',
        )
        run.directory.status(step=step, total_steps=run.total)

    def close(self) -> None:
        """Ends the progress bar and closes the log."""
        self._progress.close()
        self._log.close()
