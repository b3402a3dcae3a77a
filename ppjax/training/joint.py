"""The runs of one or many personas over one frozen model, step by step."""

from collections.abc import Sequence
import time

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import progress as progress_lib
from ppjax.base import run_directory
from ppjax.data import packing
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.learning import steps as steps_lib
from ppjax.masking import pmask, topk
from ppjax.models import decoder as decoder_lib
from ppjax.models import loading
from ppjax.parallel import sharding
from ppjax.training import run as run_lib
from ppjax.training import starts as starts_lib
from ppjax.training import step as step_lib
from ppjax.training import turns as turns_lib

_HELDOUT_MEASUREMENTS = 8


class Joint:
    """The runs of one or many personas, step by step over one model.

    Attributes:
        runs: one of each persona, with the same settings but for their data.
        directory: where the checkpoints of all are; a single run's own.
        mesh: the devices; None where one device, JAX's default one, does it all.
        cfg: the settings.
        slots: personas that take a step together, at most.
        totals: steps of each persona.
        turns: which personas take each joint step.
        total: joint steps.
        shape: of all their batches.
    """

    def __init__(
        self,
        runs: Sequence[run_lib.LearningRun],
        directory: run_directory.RunDirectory,
        mesh: jax.sharding.Mesh,
    ):
        """See the attributes; `mesh` may be of one device."""
        self.runs, self.directory = runs, directory
        self.mesh = mesh if mesh.size > 1 else None
        self.cfg = runs[0].cfg
        self.slots = min(self.cfg.personas_per_step, len(runs))
        self.totals = [run.total for run in runs]
        self.turns = turns_lib.plan_turns(self.totals, self.slots)
        self.total = len(self.turns)
        self.shape = packing.plan_common_shape(
            [
                (
                    run.data.train,
                    [batch for drawn, batch in run.batches if drawn == own],
                )
                for run in runs
                for own in range(len(run.groups))
            ],
            prefix=min(group.prefix for run in runs for group in run.groups),
            rows=sharding.row_shards(mesh),
            micro_batches=self.cfg.micro_batches,
        )

    def _abstract_state(self) -> step_lib.TrainState:
        """Shapes and places of the state, without arrays."""
        learning, shape = self.runs[0].learning, self.runs[0].shape
        state = jax.eval_shape(
            lambda: step_lib.init_state(jnp.zeros((len(self.runs), *shape)), learning)
        )
        if self.mesh is None:
            return state
        where = sharding.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state
        )

    def _say_plan(self) -> None:
        cfg, shape, run = self.cfg, self.shape, self.runs[0]
        shared = shape.prefix
        row = shape.tokens_per_row * shape.rows * cfg.micro_batches
        lengths = [[len(x.tokens) for x in run.data.train] for run in self.runs]
        batches = [
            np.array([own[i] for i in batch])
            for run, own in zip(self.runs, lengths, strict=True)
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
        if self.mesh is not None:
            progress_lib.say(f'Devices: {sharding.text_of(self.mesh)}.')
        many = ''
        if len(self.runs) > 1:
            many = f' of each of {self.slots} personas'
            progress_lib.say(
                f'{len(self.runs)} personas, {sum(self.totals)} steps in all.'
            )
        progress_lib.say(
            f'{self.total} steps of {cfg.batch_size} examples{many}. A step runs {row} '
            f"tokens, {shared} of them the shared prefix, {real:.0f} examples' own; "
            f'padded batches would run {padded:.0f}'
            f'{", a persona" if many else ""}.'
        )

    def _load_model(self) -> decoder_lib.Decoder:
        base = self.runs[0].base
        return loading.load_decoder(
            base.reader,
            base.config,
            dtype=jnp.dtype(self.cfg.dtype),
            int8_matrices=self.cfg.int8_base,
            mesh=self.mesh,
            progress=progress_lib.counter('Loading tensors'),
        )

    def learn(self, checkpoints: checkpoints_lib.Checkpoints, found: bool) -> bool:
        """From the last checkpoint, or the start, to the masks.

        Returns:
            False if `--stop_after` or a SIGTERM came first.
        """
        self._say_plan()
        first, saved = checkpoints.newest(self._abstract_state())
        if found:
            progress_lib.say(
                f'Resuming {self.directory.path} at step {first} of {self.total}.'
            )
        model = self._load_model()
        heldouts = self._heldouts()
        starts, references = self._start(model, heldouts, first)
        if saved is not None:
            state = saved
        else:
            state = step_lib.init_state(starts, self.runs[0].learning)
            if self.mesh is not None:
                state = sharding.spread(state, sharding.replicated(self.mesh))
        last = min(self.total, self.cfg.stop_after or self.total)
        learner = _Learner(self, model, heldouts, first, last)
        try:
            state, done = steps_lib.run_steps(
                learner,
                state,
                first=first,
                last=last,
                checkpoints=checkpoints,
                reuses_state=False,
            )
        finally:
            learner.close()
        if done < self.total:
            self.directory.paused(done, self.total)
            return False
        for p, (run, heldout) in enumerate(zip(self.runs, heldouts, strict=True)):
            scores = state.scores[p]
            models = references[p]
            if heldout is not None:
                # A run killed between its last step and here has not measured yet.
                own = learner.learned.get(p) or run.measure(
                    heldout, model, topk.topk_mask(scores, run.keep)
                )
                models = models | {'learned': own}
            run.finish(scores, models)
            run.directory.done(step=run.total, total_steps=run.total)
        self.directory.done(step=done, total_steps=self.total)
        return True

    def _heldouts(self) -> list[heldout_lib.HeldOut | None]:
        """Each persona's held-out examples, if it has any."""
        having = [p for p, run in enumerate(self.runs) if run.data.heldout]
        found: list[heldout_lib.HeldOut | None] = [None] * len(self.runs)
        if having:
            packed = heldout_lib.HeldOut.of_personas(
                [self.runs[p].data.heldout for p in having],
                self.cfg.batch_size,
                self.mesh,
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
            [run.data.train for run in self.runs],
            seed=self.cfg.seed,
            granularity=self.runs[0].granularity,
            mesh=self.mesh,
        )
        scores, references = [], []
        for run, own, heldout in zip(self.runs, measured, heldouts, strict=True):
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

    def batch(self, turn: step_lib.Turn) -> packing.PackedBatch:
        """The examples of one step, [N, ...]; zeros in slots that stay empty."""
        packed = []
        for p, step in zip(
            turn.persona[turn.active], turn.step[turn.active], strict=True
        ):
            _, batch = self.runs[p].batches[step]
            packed.append(packing.pack(self.runs[p].data.train, batch, self.shape))
        packed += [jax.tree.map(np.zeros_like, packed[0])] * (self.slots - len(packed))
        return jax.tree.map(lambda *x: np.stack(x), *packed)


class _Learner:
    """Steps of mask learning, as `learning.steps` takes them.

    Attributes:
        learned: persona -> held-out likelihood of its last mask, once it is measured.
    """

    def __init__(
        self,
        joint: Joint,
        model: decoder_lib.Decoder,
        heldouts: Sequence[heldout_lib.HeldOut | None],
        first: int,
        last: int,
    ):
        self._joint, self._model, self._heldouts = joint, model, heldouts
        self.learned: dict[int, heldout_lib.Likelihood] = {}
        self._step = step_lib.make_train_step(
            joint.runs[0].learning, joint.shape, mesh=joint.mesh
        )
        self._schedules = [run.schedule for run in joint.runs]
        self._taken = turns_lib.steps_before(joint.turns, first, len(joint.runs))
        self._logs = [
            metrics_lib.MetricsLog(run.directory.path, resume_step=steps)
            for run, steps in zip(joint.runs, self._taken, strict=True)
        ]
        self._progress = progress_lib.Progress('Mask learning', last, initial=first)
        if first < last:
            progress_lib.say('Compiling the step; the first one takes longest.')
        self._began = time.monotonic()
        self._held_note = ''

    def take(
        self, state: step_lib.TrainState, step: int
    ) -> tuple[step_lib.TrainState, tuple[step_lib.Turn, step_lib.MaskStepMetrics]]:
        """See `steps.Learner`."""
        joint = self._joint
        chosen = joint.turns[step - 1]
        turn = turns_lib.make_turn(
            chosen, self._taken, joint.totals, self._schedules, joint.slots
        )
        state, metrics = self._step(state, self._model, joint.batch(turn), turn)
        for p in chosen:
            self._taken[p] += 1
        return state, (turn, metrics)

    def saves_after(self, step: int) -> bool:
        """See `steps.Learner`."""
        return step % self._joint.cfg.checkpoint_every == 0

    def measures(self, step: int) -> bool:
        """See `steps.Learner`; of the newest step alone."""
        return bool(self._measured(step))

    def _measured(self, step: int) -> list[int]:
        """The personas that are measured after a step."""
        totals = self._joint.totals
        return [
            p
            for p in self._joint.turns[step - 1]
            if self._heldouts[p] is not None
            and (self._taken[p] % self._every(p) == 0 or self._taken[p] == totals[p])
        ]

    def _every(self, persona: int) -> int:
        """Steps of a persona between its held-out measurements."""
        return self._joint.cfg.heldout_every or max(
            1, -(-self._joint.totals[persona] // _HELDOUT_MEASUREMENTS)
        )

    def measure(self, step: int, state: step_lib.TrainState) -> None:
        """See `steps.Learner`."""
        for p in self._measured(step):
            run, heldout, taken = self._joint.runs[p], self._heldouts[p], self._taken[p]
            assert heldout is not None
            if self._logs[p].has('heldout', taken):
                continue
            mask = topk.topk_mask(state.scores[p], run.keep)
            found = run.measure(heldout, self._model, mask)
            self._logs[p].write('heldout', taken, heldout_nll=found.mean)
            if taken == self._joint.totals[p]:
                self.learned[p] = found
            note = f' held-out {run.name} {found.mean:.4f}'
            self._held_note = note.replace('  ', ' ')
        self._began = time.monotonic()

    def report(
        self, step: int, metrics: tuple[step_lib.Turn, step_lib.MaskStepMetrics]
    ) -> None:
        """See `steps.Learner`."""
        turn, found = metrics
        fetched = jax.device_get(found)
        spent = time.monotonic() - self._began
        self._began = time.monotonic()
        examples, losses, flips = 0, [], []
        for slot in np.nonzero(turn.active)[0]:
            own = step_lib.MaskStepMetrics(*(x[slot] for x in fetched))
            p = turn.persona[slot]
            run = self._joint.runs[p]
            own_step = int(turn.step[slot]) + 1
            _, drawn = run.batches[own_step - 1]
            batch = [run.data.train[i] for i in drawn]
            metrics_lib.check_finite(
                float(own.loss),
                float(own.grad_norm),
                own_step,
                [example.query_id for example in batch],
                score_norm=float(own.score_norm),
            )
            tokens = sum(example.num_answer_tokens for example in batch)
            if own_step % run.cfg.log_every == 0 or own_step == run.total:
                self._logs[p].write(
                    'train',
                    own_step,
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
            step,
            f'loss {np.mean(losses):.3f} flips {np.mean(flips):.2%} '
            f'{examples / spent:.2f} ex/s{self._held_note}',
        )
        self._joint.directory.status(step=step, total_steps=self._joint.total)

    def close(self) -> None:
        """Ends the progress bar and closes the logs."""
        self._progress.close()
        for log in self._logs:
            log.close()
