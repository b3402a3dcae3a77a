"""Mask learning from start to end: the story that `python -m ppjax.train` tells.

One persona's run, or many over one frozen base model. Many share the loaded model,
the compiled step and its batch; in all else each is a run of its own, with a run
directory of its own under `personas/`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import flags, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration, packing
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.masking import pmask, score_init, topk
from ppjax.models import base_model, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import weights as weights_lib
from ppjax.parallel import preemption, sharding
from ppjax.training import config as config_lib
from ppjax.training import run as run_lib
from ppjax.training import starts as starts_lib
from ppjax.training import step as step_lib
from ppjax.training import turns as turns_lib

_HELDOUT_MEASUREMENTS = 8

_MAKES = (
    'checkpoints',
    'metrics.jsonl',
    'tensorboard',
    'mask.pmask',
    'results/references.json',
    'results/start_mask.pmask',
    'results/likelihood.json',
)

# Calibration and held-out rows.
Rows = tuple[list[calibration.Row], list[calibration.Row]]


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
    found = _open(directory, cfg, data)
    with directory.stage('train'):
        run = run_lib.Run(cfg, base, data, directory)
        if like is not None:
            run.take_references(like)
        return run.mask_path if _learn([run], directory, found, mesh) else None


def learn_masks(
    cfg: config_lib.TrainConfig, rows: Mapping[str, Rows]
) -> dict[str, pathlib.Path] | None:
    """Learns a mask for each of many personas, in one run.

    Args:
        cfg: the settings, with `personas`.
        rows: name -> (calibration rows, held-out rows).

    Returns:
        Name -> mask file, or None if `cfg.stop_after` or a SIGTERM came first.

    Raises:
        InputError: as `learn_mask`.
    """
    base = base_model.open_base_model(cfg.base_model)
    mesh = _mesh(cfg, base)
    datas = {}
    for name, own in rows.items():
        progress_lib.say(f'{name}:')
        datas[name] = _data(cfg, base, own)
    directory = run_directory.RunDirectory(cfg.output_dir)
    hashes = {
        f'{kind} of {name}': digest
        for name, data in datas.items()
        for kind, digest in data.hashes.items()
    }
    _agree(cfg, hashes)
    found = directory.open(
        cfg, hashes, resumable=config_lib.RESUMABLE, overwrite=cfg.overwrite
    )
    runs = []
    for name, data in datas.items():
        own_cfg = cfg.of_persona(name)
        own_directory = run_directory.RunDirectory(own_cfg.output_dir)
        _open(own_directory, own_cfg, data)
        runs.append(run_lib.Run(own_cfg, base, data, own_directory, name=name))
    with directory.stage('train'):
        if not _learn(runs, directory, found, mesh):
            return None
    return {run.name: run.mask_path for run in runs}


def _mesh(cfg: config_lib.TrainConfig, base: base_model.BaseModel) -> jax.sharding.Mesh:
    """The devices; one that does not fit the model leaves no folder behind."""
    mesh = sharding.default_mesh(cfg.mesh)
    sharding.shardings(weights_lib.abstract(base.config), mesh)
    return mesh


def _agree(cfg: config_lib.TrainConfig, hashes: Mapping[str, str]) -> None:
    """Processes that differ would hang, or worse, learn a mask of no data at all."""
    processes.agree({'settings': flags.to_flagfile(cfg)} | dict(hashes))


def _data(
    cfg: config_lib.TrainConfig, base: base_model.BaseModel, rows: Rows
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


def _open(
    directory: run_directory.RunDirectory,
    cfg: config_lib.TrainConfig,
    data: data_lib.Data,
) -> bool:
    return directory.open(
        cfg,
        data.hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )


def _learn(
    runs: Sequence[run_lib.Run],
    directory: run_directory.RunDirectory,
    found: bool,
    mesh: jax.sharding.Mesh,
) -> bool:
    """Takes all runs to their end; false if something stopped them before."""
    joint = Joint(runs, directory, mesh)
    if processes.first_decides(lambda: all(run.mask_path.exists() for run in runs)):
        for run in runs:
            progress_lib.say(
                f'{run.mask_path} is there already; nothing is left to do.'
            )
        directory.done(step=joint.total, total_steps=joint.total)
        return True
    checkpoints = checkpoints_lib.Checkpoints(directory.path / 'checkpoints')
    try:
        return joint.learn(checkpoints, found)
    finally:
        checkpoints.close()


class Joint:
    """The runs of one or many personas, step by step over one model."""

    def __init__(
        self,
        runs: Sequence[run_lib.Run],
        directory: run_directory.RunDirectory,
        mesh: jax.sharding.Mesh,
    ):
        """Args:
        runs: one of each persona, with the same settings but for their data.
        directory: where the checkpoints of all are; a single run's own.
        mesh: the devices.
        """
        self._runs, self._directory = runs, directory
        # None where one device, JAX's default one, does it all.
        self._mesh = mesh if mesh.size > 1 else None
        self._cfg = runs[0].cfg
        self._slots = min(self._cfg.personas_per_step, len(runs))
        self._totals = [run.total for run in runs]
        self._turns = turns_lib.plan_turns(self._totals, self._slots)
        self.total = len(self._turns)
        sets, prefixes = [], []
        for run in runs:
            for number, group in enumerate(run.groups):
                own = [batch for drawn, batch in run.batches if drawn == number]
                sets.append((run.data.train, own))
                prefixes.append(group.prefix)
        layouts = iter(
            packing.plan_layouts(
                sets,
                prefixes,
                rows=sharding.row_shards(mesh),
                micro_batches=self._cfg.micro_batches,
            )
        )
        # Of each run's groups.
        self._layouts = [[next(layouts) for _ in run.groups] for run in runs]

    def _say_plan(self) -> None:
        cfg, layout, run = self._cfg, self._layouts[0][0], self._runs[0]
        shared = len(layout.prefix)
        row = layout.tokens_per_row * layout.rows * cfg.micro_batches
        lengths = [[len(x.tokens) for x in run.data.train] for run in self._runs]
        batches = [
            np.array([own[i] for i in batch])
            for run, own in zip(self._runs, lengths, strict=True)
            for _, batch in run.batches
        ]
        real = np.mean([batch.sum() - shared * len(batch) for batch in batches])
        padded = np.mean([batch.max() * len(batch) for batch in batches])
        size = run.base.config.num_layers, run.base.config.d_ff
        progress_lib.say(
            f'Keeping {run.granularity.text(*size, run.keep)} '
            f'({1 - run.keep / run.shape[1]:.1%} removed).'
        )
        if len(run.groups) > 1:
            progress_lib.say(
                f'{len(run.groups)} system prompts; each step draws from one of them.'
            )
        if self._mesh is not None:
            progress_lib.say(f'Devices: {sharding.text_of(self._mesh)}.')
        many = ''
        if len(self._runs) > 1:
            many = f' of each of {self._slots} personas'
            progress_lib.say(
                f'{len(self._runs)} personas, {sum(self._totals)} steps in all.'
            )
        progress_lib.say(
            f'{self.total} steps of {cfg.batch_size} examples{many}. A step runs {row} '
            f"tokens, {shared} of them the shared prefix, {real:.0f} examples' own; "
            f'padded batches would run {padded:.0f}'
            f'{", a persona" if many else ""}.'
        )

    def _load_model(self) -> decoder_lib.Decoder:
        base = self._runs[0].base
        return loading.load_decoder(
            base.reader,
            base.config,
            dtype=jnp.dtype(self._cfg.dtype),
            int8_matrices=self._cfg.int8_base,
            mesh=self._mesh,
            progress=progress_lib.counter('Loading tensors'),
        )

    def learn(self, checkpoints: checkpoints_lib.Checkpoints, found: bool) -> bool:
        """From the last checkpoint, or the start, to the masks.

        Returns:
            False if `--stop_after` or a SIGTERM came first.
        """
        self._say_plan()
        first = checkpoints.latest() or 0
        if found:
            progress_lib.say(
                f'Resuming {self._directory.path} at step {first} of {self.total}.'
            )
        model = self._load_model()
        heldouts = self._heldouts()
        starts, references = self._start(model, heldouts, first)
        state = step_lib.init_state(starts, self._runs[0].learning)
        if self._mesh is not None:
            state = sharding.spread(state, sharding.replicated(self._mesh))
        if first:
            state = checkpoints.restore(first, state)
        taken = turns_lib.steps_before(self._turns, first, len(self._runs))
        logs = [
            metrics_lib.MetricsLog(run.directory.path, resume_step=steps)
            for run, steps in zip(self._runs, taken, strict=True)
        ]
        try:
            with preemption.noticed() as notice:
                state, done, learned = self._optimise(
                    model, state, first, heldouts, checkpoints, logs, notice
                )
        finally:
            for log in logs:
                log.close()
        if done < self.total:
            self._directory.status(state='paused', step=done, total_steps=self.total)
            progress_lib.say(f'Paused after step {done}; the same command goes on.')
            return False
        for p, (run, heldout) in enumerate(zip(self._runs, heldouts, strict=True)):
            scores = state.scores[p]
            models = references[p]
            if heldout is not None:
                # A run killed between its last step and here has not measured yet.
                own = learned.get(p) or run.measure(
                    heldout, model, topk.topk_mask(scores, run.keep)
                )
                models = models | {'learned': own}
            run.finish(scores, models)
            run.directory.done(step=run.total, total_steps=run.total)
        self._directory.done(step=done, total_steps=self.total)
        return True

    def _heldouts(self) -> list[heldout_lib.HeldOut | None]:
        """Each persona's held-out examples, if it has any."""
        having = [p for p, run in enumerate(self._runs) if run.data.heldout]
        found: list[heldout_lib.HeldOut | None] = [None] * len(self._runs)
        if having:
            packed = heldout_lib.HeldOut.of_personas(
                [self._runs[p].data.heldout for p in having],
                [self._runs[p].data.heldout_prefix for p in having],
                self._cfg.batch_size,
                self._mesh,
            )
            for p, heldout in zip(having, packed, strict=True):
                found[p] = heldout
        return found

    def _start(
        self,
        model: decoder_lib.Decoder,
        heldouts: Sequence[heldout_lib.HeldOut | None],
        first: int,
    ) -> tuple[jax.Array, list[dict[str, heldout_lib.Likelihood]]]:
        """Start scores [P, R, U] (of no meaning when resuming), and references."""
        measured = starts_lib.Starts.of_personas(
            [run.data.train for run in self._runs],
            [run.data.prefix for run in self._runs],
            seed=self._cfg.seed,
            granularity=self._runs[0].granularity,
            mesh=self._mesh,
        )
        scores, references = [], []
        for run, own, heldout in zip(self._runs, measured, heldouts, strict=True):
            if run.name:
                progress_lib.say(f'{run.name}:')
            activation = None if run.has_references else own.activation(model)
            references.append(
                {} if heldout is None else run.references(model, heldout, activation)
            )
            if first:
                scores.append(jnp.zeros(run.shape))
            else:
                scores.append(run.start_scores(own, model, activation))
                pmask.save(
                    run.directory.path / 'results' / 'start_mask.pmask',
                    run.mask_file(scores[-1]),
                )
        return jnp.stack(scores), references

    def _batch(self, turn: step_lib.Turn) -> packing.PackedBatch:
        """The examples of one step, [N, ...]; zeros in slots that stay empty."""
        packed = []
        for p, step in zip(
            turn.persona[turn.active], turn.step[turn.active], strict=True
        ):
            group, batch = self._runs[p].batches[step]
            layout = self._layouts[p][group]
            packed.append(packing.pack(self._runs[p].data.train, batch, layout))
        packed += [jax.tree.map(np.zeros_like, packed[0])] * (self._slots - len(packed))
        return jax.tree.map(lambda *x: np.stack(x), *packed)

    def _optimise(
        self,
        model: decoder_lib.Decoder,
        state: step_lib.TrainState,
        first: int,
        heldouts: Sequence[heldout_lib.HeldOut | None],
        checkpoints: checkpoints_lib.Checkpoints,
        logs: Sequence[metrics_lib.MetricsLog],
        notice: preemption.Notice,
    ) -> tuple[step_lib.TrainState, int, dict[int, heldout_lib.Likelihood]]:
        """Takes steps `first` to the last, or to a notice of preemption.

        Metrics are fetched one step late, so that the host packs the next batch while
        the device works. A checkpoint is saved only of a state known to be finite.

        Returns:
            (state, steps done, persona -> held-out likelihood of its last mask).
        """
        cfg = self._cfg
        layout = self._layouts[0][0]
        train_step = step_lib.make_train_step(
            self._runs[0].learning,
            prefix=len(layout.prefix),
            chunk=layout.chunk,
            mesh=self._mesh,
        )
        schedules = [run.schedule for run in self._runs]
        taken = turns_lib.steps_before(self._turns, first, len(self._runs))
        last = min(self.total, cfg.stop_after or self.total)
        reporter = _Reporter(self._runs, self._directory, logs, first, last, self.total)
        learned: dict[int, heldout_lib.Likelihood] = {}
        for index in range(first, last):  # A notice lowers `last`.
            chosen = self._turns[index]
            turn = turns_lib.make_turn(
                chosen, taken, self._totals, schedules, self._slots
            )
            state, metrics = train_step(state, model, self._batch(turn), turn)
            for p in chosen:
                taken[p] += 1
            reporter.report()
            reporter.pending = (index + 1, turn, metrics)
            if notice.given(index + 1):
                last = index + 1
            saves = (index + 1) % cfg.checkpoint_every == 0 or index + 1 == last
            measured = [
                p
                for p in chosen
                if heldouts[p] is not None
                and (taken[p] % self._every(p) == 0 or taken[p] == self._totals[p])
            ]
            if saves or measured:
                reporter.report()
            if saves:
                checkpoints.save(index + 1, state)
            for p in measured:
                heldout, run = heldouts[p], self._runs[p]
                assert heldout is not None
                mask = topk.topk_mask(state.scores[p], run.keep)
                found = run.measure(heldout, model, mask)
                reporter.heldout(p, taken[p], found)
                if taken[p] == self._totals[p]:
                    learned[p] = found
            if index + 1 == last:
                break
        reporter.close()
        checkpoints.wait()
        return state, last, learned

    def _every(self, persona: int) -> int:
        """Steps of a persona between its held-out measurements."""
        return self._cfg.heldout_every or max(
            1, -(-self._totals[persona] // _HELDOUT_MEASUREMENTS)
        )


class _Reporter:
    """Says, logs and checks what steps return."""

    def __init__(
        self,
        runs: Sequence[run_lib.Run],
        directory: run_directory.RunDirectory,
        logs: Sequence[metrics_lib.MetricsLog],
        first: int,
        last: int,
        total: int,
    ):
        self._runs, self._directory, self._logs = runs, directory, logs
        self._total = total
        self._progress = progress_lib.Progress('Mask learning', last, initial=first)
        if first < last:
            progress_lib.say('Compiling the step; the first one takes longest.')
        self._began = time.monotonic()
        self._held_note = ''
        # A step whose metrics are still on the device.
        self.pending: tuple[int, step_lib.Turn, step_lib.StepMetrics] | None = None

    def report(self) -> None:
        """Waits for the pending step, checks it and reports it.

        Raises:
            InputError: if its loss or gradient is not finite.
        """
        if self.pending is None:
            return
        done, turn, metrics = self.pending
        self.pending = None
        fetched = jax.device_get(metrics)
        spent = time.monotonic() - self._began
        self._began = time.monotonic()
        examples, losses, flips = 0, [], []
        for slot in np.nonzero(turn.active)[0]:
            own = step_lib.StepMetrics(*(x[slot] for x in fetched))
            run, log = self._runs[turn.persona[slot]], self._logs[turn.persona[slot]]
            step = int(turn.step[slot]) + 1
            _, drawn = run.batches[step - 1]
            batch = [run.data.train[i] for i in drawn]
            metrics_lib.check_finite(
                float(own.loss),
                float(own.grad_norm),
                step,
                [example.query_id for example in batch],
                score_norm=float(own.score_norm),
            )
            tokens = sum(example.num_answer_tokens for example in batch)
            if step % run.cfg.log_every == 0 or step == run.total:
                log.write(
                    'train',
                    step,
                    loss=own.loss,
                    grad_norm=own.grad_norm,
                    flip_fraction=own.flip_fraction,
                    learning_rate=turn.learning_rate[slot],
                    examples_per_s=len(batch) / spent,
                    answer_tokens_per_s=tokens / spent,
                )
            examples += len(batch)
            losses.append(own.loss)
            flips.append(own.flip_fraction)
        self._progress.update(
            done,
            f'loss {np.mean(losses):.3f} flips {np.mean(flips):.2%} '
            f'{examples / spent:.2f} ex/s{self._held_note}',
        )
        self._directory.status(step=done, total_steps=self._total)

    def heldout(self, persona: int, step: int, found: heldout_lib.Likelihood) -> None:
        """Reports a held-out measurement."""
        self._logs[persona].write('heldout', step, heldout_nll=found.mean)
        name = self._runs[persona].name
        self._held_note = f' held-out {name} {found.mean:.4f}'.replace('  ', ' ')
        self._began = time.monotonic()

    def close(self) -> None:
        """Reports what is pending and ends the progress bar."""
        self.report()
        self._progress.close()
