"""Recovery from start to end: the story that `python -m ppjax.recover` tells."""

import pathlib
import shutil
import time

import jax

from ppjax.base import flags, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration, packing
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.models.weights import Weights
from ppjax.parallel import preemption, sharding
from ppjax.recovery import config as config_lib
from ppjax.recovery import methods, results
from ppjax.recovery import run as run_lib
from ppjax.recovery import source as source_lib
from ppjax.recovery import step as step_lib

_HELDOUT_MEASUREMENTS = 4


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
    run = run_lib.Run(cfg, source, data, directory, mesh)
    run.abstract_state()  # A rank or mesh that does not fit leaves no folder behind.
    found = directory.open(
        cfg,
        data.hashes | source.hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
    )
    with directory.stage('recover'):
        if processes.first_decides(lambda: results.is_finished(run)):
            progress_lib.say(
                f'{results.model_dir(run)} is there already; nothing is left to do.'
            )
        elif not _train_and_export(run, found):
            return None
        # All that they were for is exported.
        if processes.is_first():
            shutil.rmtree(directory.path / 'checkpoints', ignore_errors=True)
        directory.done(step=run.total, total_steps=run.total)
    return results.model_dir(run)


def _train_and_export(run: run_lib.Run, found: bool) -> bool:
    """Whether the run came to its end."""
    checkpoints = checkpoints_lib.Checkpoints(
        run.directory.path / 'checkpoints', keep=1
    )
    try:
        return _finish(run, found, checkpoints)
    finally:
        checkpoints.close()


def _finish(
    run: run_lib.Run, found: bool, checkpoints: checkpoints_lib.Checkpoints
) -> bool:
    first = checkpoints.latest() or 0
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
        heldout = heldout_lib.HeldOut(
            run.data.heldout, run.data.heldout_prefix, run.cfg.batch_size, run.mesh
        )
        references = run.references(heldout, trained, frozen)
    if first:
        state = checkpoints.restore(first, run.abstract_state())
    else:
        state = run.first_state(trained)
    # The state's arrays are used up by the next step.
    del trained

    log = metrics_lib.MetricsLog(run.directory.path, resume_step=first)
    try:
        loop = _Loop(run, checkpoints, log, heldout)
        with preemption.noticed() as notice:
            state = loop.optimise(state, frozen, first, notice)
    finally:
        log.close()
    if loop.last < run.total:
        run.directory.status(state='paused', step=loop.last, total_steps=run.total)
        progress_lib.say(f'Paused after step {loop.last}; the same command goes on.')
        return False
    if heldout is not None:
        # A run killed between its last checkpoint and here has not measured yet.
        references['recovered'] = loop.found or run.measure(
            heldout, state.trained, frozen
        )
        progress_lib.say(
            'Held-out nats/token: '
            + ', '.join(f'{name} {x.mean:.4f}' for name, x in references.items())
        )
    results.write(run, state.trained, references)
    return True


class _Loop:
    """The optimizer steps of one call, and what is said and kept of them.

    Attributes:
        last: the step that this call ends with.
        found: held-out likelihood after the run's last step, once it is measured.
    """

    def __init__(
        self,
        run: run_lib.Run,
        checkpoints: checkpoints_lib.Checkpoints,
        log: metrics_lib.MetricsLog,
        heldout: heldout_lib.HeldOut | None,
    ):
        self._run, self._checkpoints, self._log = run, checkpoints, log
        self._heldout = heldout
        self._held_note = ''
        self.last = min(run.total, run.cfg.stop_after or run.total)
        self.found: heldout_lib.Likelihood | None = None

    def optimise(
        self,
        state: step_lib.RecoveryState,
        frozen: Weights,
        first: int,
        notice: preemption.Notice,
    ) -> step_lib.RecoveryState:
        """Takes the steps from `first` on; checkpoints hold only finite states.

        A notice of preemption makes the step after which it is seen the last.
        Metrics are fetched one step late, so that the host packs the next batch while
        the device works.
        """
        run, cfg = self._run, self._run.cfg
        step = step_lib.make_recovery_step(
            run.optimizer,
            run.method,
            run.abstract_state(),
            run.mesh,
            layout=run.layout,
            remat=cfg.remat,
        )
        every = cfg.heldout_every or max(1, -(-run.total // _HELDOUT_MEASUREMENTS))
        self._progress = progress_lib.Progress('Recovery', self.last, initial=first)
        if first < self.last:
            progress_lib.say('Compiling the step; the first one takes longest.')
        self._began = time.monotonic()
        pending: tuple[int, step_lib.StepMetrics] | None = None
        for index in range(first, self.last):
            batch = packing.pack(run.data.train, run.batches[index], run.layout)
            state, metrics = step(state, frozen, batch)
            if pending is not None:
                self._report(*pending)
            done = index + 1
            pending = (done, metrics)
            if notice.given(done):
                self.last = done
            saves = done % cfg.checkpoint_every == 0 or done == self.last
            measures = done % every == 0 or done == run.total
            if saves or measures:
                self._report(*pending)
                pending = None
            if saves:
                self._checkpoints.save(done, state)
                # The next step would overwrite what is being saved.
                self._checkpoints.wait()
            if measures and self._heldout is not None:
                self.found = run.measure(self._heldout, state.trained, frozen)
                self._log.write('heldout', done, heldout_nll=self.found.mean)
                self._held_note = f' held-out {self.found.mean:.4f}'
            if saves or measures:
                self._began = time.monotonic()
            if done == self.last:
                break
        self._progress.close()
        return state

    def _report(self, done: int, metrics: step_lib.StepMetrics) -> None:
        run = self._run
        fetched = jax.device_get(metrics)
        examples = [run.data.train[i] for i in run.batches[done - 1]]
        metrics_lib.check_finite(
            float(fetched.loss),
            float(fetched.grad_norm),
            done,
            [example.query_id for example in examples],
        )
        spent, self._began = time.monotonic() - self._began, time.monotonic()
        tokens = sum(example.num_answer_tokens for example in examples)
        if done % run.cfg.log_every == 0 or done == self.last:
            self._log.write(
                'recover',
                done,
                loss=fetched.loss,
                grad_norm=fetched.grad_norm,
                learning_rate=float(run.schedule(done - 1)),
                examples_per_s=len(examples) / spent,
                answer_tokens_per_s=tokens / spent,
            )
        self._progress.update(
            done,
            f'loss {fetched.loss:.3f} gradient {fetched.grad_norm:.2g} '
            f'{len(examples) / spent:.2f} ex/s{self._held_note}',
        )
        run.directory.status(step=done, total_steps=run.total)
