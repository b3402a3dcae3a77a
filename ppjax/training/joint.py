"""The runs of one or many personas over one frozen model, step by step."""

from collections.abc import Callable, Container, Mapping, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import progress as progress_lib
from ppjax.base import run_directory
from ppjax.data import packing
from ppjax.learning import checkpoints as checkpoints_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import steps as steps_lib
from ppjax.masking import pmask
from ppjax.models import decoder as decoder_lib
from ppjax.models import loading
from ppjax.parallel import sharding
from ppjax.training import run as run_lib
from ppjax.training import starts as starts_lib
from ppjax.training import step as step_lib
from ppjax.training import turns as turns_lib


class Joint:
    """The runs of one or many personas, step by step over one model.

    Attributes:
        runs: one of each persona, with the same settings but for their data.
        directory: where the checkpoints of all are; a single run's own.
        mesh: the devices; None where one device, JAX's default one, does it all.
        cfg: the settings.
        slots: personas that take a step together, at most.
        totals: steps of each persona.
        turns: which personas take each joint step, and how many of its own each has
            taken before.
        total: joint steps.
        shapes: of their batches: of those with the persona prompt, those without it,
            and, where personas that take a step together differ in that, of both.
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
        self.shapes = {
            kinds: self._plan(kinds, sharding.row_shards(mesh))
            for kinds in dict.fromkeys(map(self._kinds, self.turns))
        }

    def _kinds(self, own: Mapping[int, int]) -> frozenset[bool]:
        """Of the batches of a step: whether they are without the persona prompt."""
        return frozenset(self.runs[p].is_shortened(taken) for p, taken in own.items())

    def _plan(self, kinds: Container[bool], rows: int) -> packing.PackedShape:
        groups = [
            (run, own)
            for run in self.runs
            for own, group in enumerate(run.groups)
            if group.shortened in kinds
        ]
        return packing.plan_common_shape(
            [
                (run.learned, [batch for drawn, batch in run.batches if drawn == own])
                for run, own in groups
            ],
            prefix=min(run.groups[own].prefix for run, own in groups),
            rows=rows,
            micro_batches=self.cfg.micro_batches,
        )

    def _abstract_state(self) -> step_lib.AnyState:
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
        run = self.runs[0]
        size = run.base.config.num_layers, run.base.config.d_ff
        kept = run.granularity.text(*size, run.keep)
        if run.budget is not None:
            kept += ' on average, each layer its own number'
        progress_lib.say(f'Keeping {kept} ({1 - run.keep / run.shape[1]:.1%} removed).')
        prompts = sum(not group.shortened for group in run.groups)
        if prompts > 1:
            progress_lib.say(
                f'{prompts} system prompts; each step draws from one of them.'
            )
        if self.mesh is not None:
            progress_lib.say(f'Devices: {sharding.text_of(self.mesh)}.')
        many = ''
        if len(self.runs) > 1:
            many = f' of each of {self.slots} personas'
            progress_lib.say(
                f'{len(self.runs)} personas, {sum(self.totals)} steps in all.'
            )
        if not self.total:
            progress_lib.say('No step is taken: the mask is that of the start.')
        for kinds, shape in self.shapes.items():
            self._say_shape(kinds, shape, many)

    def _say_shape(
        self, kinds: frozenset[bool], shape: packing.PackedShape, many: str
    ) -> None:
        cfg, shared = self.cfg, shape.prefix
        row = shape.tokens_per_row * shape.rows * cfg.micro_batches
        batches = [
            np.array([len(run.learned[i].tokens) for i in batch])
            for run in self.runs
            for own, batch in run.batches
            if run.groups[own].shortened in kinds
        ]
        real = np.mean([batch.sum() - shared * len(batch) for batch in batches])
        padded = np.mean([batch.max() * len(batch) for batch in batches])
        steps = sum(self._kinds(own) == kinds for own in self.turns)
        prompt = ''
        if True in kinds:
            prompt = ' without the persona prompt'
            prompt += ' for some of them' if len(kinds) > 1 else ''
        progress_lib.say(
            f'{steps} steps of {cfg.batch_size} examples{many}{prompt}. A step runs '
            f"{row} tokens, {shared} of them the shared prefix, {real:.0f} examples' "
            f'own; padded batches would run {padded:.0f}'
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
            learning = self.runs[0].learning
            scores, gains = (
                None if own[0] is None else jnp.stack(own)
                for own in zip(*starts, strict=True)
            )
            assert scores is not None
            state = step_lib.init_state(scores, learning, gains)
            if self.mesh is not None:
                state = sharding.spread(state, sharding.replicated(self.mesh))
        train_steps = {
            kinds: step_lib.make_train_step(
                self.runs[0].learning, shape, mesh=self.mesh
            )
            for kinds, shape in self.shapes.items()
        }
        # Now, and not between two steps.
        gain_rates = [run.gain_rate() for run in self.runs] if self.cfg.gains else None

        def take(
            state: step_lib.AnyState, step: int
        ) -> tuple[step_lib.AnyState, step_lib.MaskStepMetrics]:
            own = self.turns[step - 1]
            train_step = train_steps[self._kinds(own)]
            return train_step(state, model, *self.sent(own, gain_rates))

        def likelihood(p: int, state: step_lib.AnyState) -> heldout_lib.Likelihood:
            run, heldout = self.runs[p], heldouts[p]
            assert heldout is not None
            return measured(p, state, run.keep)

        def measured(
            p: int, state: step_lib.AnyState, keep: int
        ) -> heldout_lib.Likelihood:
            run, heldout = self.runs[p], heldouts[p]
            assert heldout is not None
            mask = run.learned_mask(*_own(state, p), keep)
            return run.measure(heldout, model, mask)

        learner = steps_lib.Learner(
            'train',
            'Mask learning',
            self.runs,
            heldouts,
            self.directory,
            self.turns,
            first,
            take=take,
            likelihood=likelihood,
            reuses_state=False,
        )
        learned = learner.learn(state, checkpoints)
        if learned is None:
            return False
        for p, run in enumerate(self.runs):
            models = references[p]
            if heldouts[p] is not None:
                models = models | {'learned': learner.learned(p, learned)}
                for name, keep in run.ends.items():
                    models[name] = measured(p, learned, keep)
            run.finish(*_own(learned, p), models)
            run.directory.done(step=run.total, total_steps=run.total)
        self.directory.done(step=self.total, total_steps=self.total)
        return True

    def _heldouts(self) -> list[heldout_lib.HeldOut | None]:
        """Each persona's held-out examples, if it has any."""
        sets = [run.data.heldout for run in self.runs]
        packed = iter(
            heldout_lib.HeldOut.of_personas(
                [own for own in sets if own], self.cfg.batch_size, self.mesh
            )
        )
        return [next(packed) if own else None for own in sets]

    def _start(
        self,
        model: decoder_lib.Decoder,
        heldouts: Sequence[heldout_lib.HeldOut | None],
        first: int,
    ) -> tuple[
        list[tuple[jax.Array, jax.Array | None]],
        list[dict[str, heldout_lib.Likelihood]],
    ]:
        """Start scores and gains [R, U] (none when resuming), and references."""
        measured = starts_lib.Starts.of_personas(
            [run.data.train for run in self.runs],
            seed=self.cfg.seed,
            granularity=self.runs[0].granularity,
            mesh=self.mesh,
        )
        starts, references = [], []
        for run, own, heldout in zip(self.runs, measured, heldouts, strict=True):
            if run.name:
                progress_lib.say(f'{run.name}:')
            activation = None if run.has_references else own.activation(model)
            found: dict[str, heldout_lib.Likelihood] = {}
            if heldout is not None:
                measure = functools.partial(
                    run.measure_reference, heldout, model, activation
                )
                found = run.references(heldout, measure)
            references.append(found)
            if not first:
                start = run.start(own, model, activation)
                starts.append(start)
                pmask.save(
                    run.directory.path / 'results' / 'start_mask.pmask',
                    run.mask_file(*start),
                )
        return starts, references

    def sent(
        self,
        own: Mapping[int, int],
        gain_rates: Sequence[Callable[[int], float]] | None,
    ) -> tuple[packing.PackedBatch, step_lib.Turn]:
        """(examples [N, ...], turn) of one step, on the devices.

        Args:
            own: the personas that take it, and the steps that each took before.
            gain_rates: learning rate of gains by step of each persona.
        """
        taken = [own.get(p, 0) for p in range(len(self.runs))]
        runs = self.runs
        turn = turns_lib.make_turn(
            [*own],
            taken,
            [run.mask_steps for run in runs],
            [run.rate for run in runs],
            self.slots,
            gain_rates,
        )
        shape = self.shapes[self._kinds(own)]
        packed = [runs[p].packed(t + 1, shape) for p, t in own.items()]
        # Zeros in slots that stay empty.
        packed += [jax.tree.map(np.zeros_like, packed[0])] * (self.slots - len(packed))
        batch = jax.tree.map(lambda *x: np.stack(x), *packed)
        if self.mesh is None:
            return jax.device_put((batch, turn))
        return (
            sharding.spread(batch, sharding.slot_rows(self.mesh)),
            sharding.spread(turn, sharding.replicated(self.mesh)),
        )


def _own(state: step_lib.AnyState, p: int) -> tuple[jax.Array, jax.Array | None]:
    """One persona's scores and gains."""
    return state.scores[p], None if state.gains is None else state.gains[p]
