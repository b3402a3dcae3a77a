"""One recovery run: its data, its devices, what it trains and starts from."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppjax.base import progress as progress_lib
from ppjax.base import run_directory
from ppjax.data import packing
from ppjax.exporting import pruned_source
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import run as learning_run
from ppjax.models import base_model, loading, weights
from ppjax.models import config as model_config
from ppjax.models import masks as masks_lib
from ppjax.models import structure as structure_lib
from ppjax.parallel import sharding
from ppjax.recovery import config as config_lib
from ppjax.recovery import gains, lora, methods, rates, start_answers
from ppjax.recovery import step as step_lib


class RecoveryRun(learning_run.Run):
    """A run of recovery; its settings are resolved.

    Attributes:
        source: what it starts from.
        mesh: its devices.
        model_dir: where the model goes.
        peak_rate: of the schedule: the learning rate given, or the usual one.
        structure: what of the model that it starts from does something.
        method: what is trained.
        shapes: of its batches, by whether they are without the persona prompt.
        optimizer: AdamW, or the gains' own.
        answers: which answers of its start each step takes, to make what they repeat
            unlikely; None if none does.
    """

    cfg: config_lib.RecoverConfig
    measurements = 4

    def __init__(
        self,
        cfg: config_lib.RecoverConfig,
        source: pruned_source.PrunedSource,
        data: data_lib.Data,
        directory: run_directory.RunDirectory,
        mesh: jax.sharding.Mesh,
        model_dir: pathlib.Path | None = None,
    ):
        groups = data.prompt_groups(cfg.batch_size)
        self.peak_rate = cfg.learning_rate
        if self.peak_rate is None:
            size = weights.num_parameters(source.model.config)
            self.peak_rate = rates.usual(cfg.method, size)
        super().__init__(cfg, data, directory, groups, self.peak_rate)
        self.reference_names = (
            ('start',) if source.persona_mask is None else ('dense', 'start')
        )
        self.source, self.mesh = source, mesh
        self.model_dir = model_dir or directory.path / 'hf'
        self.structure = structure_lib.of_weights(source.model)
        self.method = make_method(cfg, source.model.config, self.structure)
        self.answers = (
            start_answers.plan(
                self.learned,
                self.groups,
                self.batches,
                positions=source.model.config.max_position,
                seed=cfg.seed,
            )
            if cfg.unlikelihood
            else None
        )
        # Until there are some: of the same lengths.
        self._start_answers = self.answers.blanks if self.answers else []
        self.shapes = {
            shortened: self._shape(shortened)
            for shortened in dict.fromkeys(map(self.is_shortened, range(self.total)))
        }
        if cfg.gains:
            # Not decayed: a gain says nothing at 1, and not at 0.
            self.optimizer = optax.adam(self.schedule)
        else:
            self.optimizer = optax.adamw(self.schedule, weight_decay=cfg.weight_decay)

    def _shape(self, shortened: bool) -> packing.PackedShape:
        """Of the batches with the persona prompt, or without: of all their groups."""
        drawn = [
            (self.groups[own].prefix, self._packed_places(step))
            for step, (own, _) in enumerate(self.batches)
            if self.groups[own].shortened == shortened
        ]
        return packing.plan_shape(
            [*self.learned, *self._start_answers],
            [batch for _, batch in drawn],
            prefix=min(prefix for prefix, _ in drawn),
            rows=sharding.row_shards(self.mesh),
            micro_batches=self.cfg.pieces,
        )

    def _packed_places(self, taken: int) -> np.ndarray:
        """What the step after so many packs: its examples, and answers to avoid.

        Those count on from `learned`.
        """
        batch = self.batches[taken][1]
        if self.answers is None:
            return batch
        return np.concatenate([batch, len(self.learned) + self.answers.steps[taken]])

    def packed(self, step: int, shape: packing.PackedShape) -> packing.PackedBatch:
        """`examples` of a step as a batch, and what of the start's answers it takes."""
        examples = [*self.learned, *self._start_answers]
        return packing.pack(examples, self._packed_places(step - 1), shape)

    def answer(self) -> None:
        """Has the model that recovery starts from answer `answers`, if not yet done.

        Raises:
            DiskError: if the answers cannot be kept.
        """
        if self.answers is not None:
            self._start_answers = start_answers.answered(
                self.answers,
                self.source.model,
                self.directory.path,
                dtype=self.cfg.dtype,
                mesh=sharding.inference_mesh(self.cfg.mesh),
            )

    @property
    def made(self) -> pathlib.Path:
        """What it leaves to be used."""
        return self.model_dir

    @property
    def how(self) -> str:
        """What is trained, for people."""
        cfg = self.cfg
        return {
            'full': 'all weights',
            'lora': f'adapters of rank {cfg.lora_rank} on {cfg.lora_targets}',
            'gains': f'gains of {cfg.gain_targets}',
        }[cfg.method]

    def say_plan(self) -> None:
        """Says what will be trained, on what, and how a step is cut up."""
        cfg = self.cfg
        trained = sum(
            leaf.size for leaf in jax.tree.leaves(self.abstract_state().trained)
        )
        progress_lib.say(
            f'Training {self.how}: {trained:,} parameters, learning rate '
            f'{self.peak_rate:g}.'
        )
        rows = sharding.row_shards(self.mesh) * cfg.pieces
        for shortened, shape in self.shapes.items():
            steps = sum(self.groups[x].shortened == shortened for x, _ in self.batches)
            progress_lib.say(
                f'{steps} steps of {cfg.batch_size} examples'
                f'{" without the persona prompt" if shortened else ""}, each in {rows} '
                f'rows of {shape.tokens_per_row} tokens ({shape.micro_batches} '
                f'micro-batches), {shape.prefix} of them the shared prefix.'
            )
        if self.mesh.size > 1:
            progress_lib.say(f'Devices: {sharding.text_of(self.mesh)}.')
        if rows > cfg.batch_size:
            progress_lib.say(
                f'Note: {rows} rows are more than --batch_size={cfg.batch_size}; some '
                'hold nothing. Lower --micro_batches.'
            )

    def load(self) -> tuple[methods.Trained, weights.Weights]:
        """Reads the weights to start from, and puts them where they belong.

        Returns:
            (what is trained, before the first step; what is frozen).
        """
        cfg, model = self.cfg, self.source.model
        if cfg.method == 'full':
            return self._read(model, 'float32'), {}
        added = start_added(cfg, model)
        return sharding.place(added, self.mesh), self._read(model, cfg.dtype)

    def _read(self, model: base_model.BaseModel, dtype: str) -> weights.Weights:
        decoder = loading.load_decoder(
            model.reader,
            model.config,
            dtype=jnp.dtype(dtype),
            mesh=self.mesh,
            progress=progress_lib.counter('Loading tensors'),
        )
        return weights.weights_of(decoder)

    def abstract_state(self) -> step_lib.RecoveryState:
        """Shapes and places of the state, without arrays."""
        return self.abstract_step_state()

    def step_state(
        self, state: step_lib.RecoveryState, step: int
    ) -> step_lib.RecoveryState:
        """The part of the state that a step changes: here all of it."""
        del step
        return state

    def with_step_state(
        self, state: step_lib.RecoveryState, step: int, own: step_lib.RecoveryState
    ) -> step_lib.RecoveryState:
        """The state with the part that a step has changed."""
        del state, step
        return own

    def abstract_step_state(self) -> step_lib.RecoveryState:
        """Shapes and places of what one step changes, without arrays."""
        cfg, model = self.cfg, self.source.model
        if cfg.method == 'full':
            trained = weights.abstract(model.config)
        else:
            trained = jax.eval_shape(lambda: start_added(cfg, model))
        state = step_lib.RecoveryState(
            trained, jax.eval_shape(self.optimizer.init, trained)
        )

        def placed(value: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> object:
            return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where)

        return step_lib.RecoveryState(
            *(jax.tree.map(placed, x, sharding.shardings(x, self.mesh)) for x in state)
        )

    def first_state(self, trained: methods.Trained) -> step_lib.RecoveryState:
        """The state before the first step."""
        where = jax.tree.map(lambda x: x.sharding, self.abstract_step_state().optimizer)
        moments = jax.jit(self.optimizer.init, out_shardings=where)(trained)
        return step_lib.RecoveryState(trained, moments)

    def measure(
        self,
        heldout: heldout_lib.HeldOut,
        trained: methods.Trained,
        frozen: weights.Weights,
    ) -> heldout_lib.Likelihood:
        """Held-out likelihood of the model as trained so far."""
        cast = self.method.cast(trained)
        return heldout.measure(self.method.model(cast, frozen), self.method.masks(cast))

    def measure_reference(
        self,
        heldout: heldout_lib.HeldOut,
        trained: methods.Trained,
        frozen: weights.Weights,
        name: str,
    ) -> heldout_lib.Likelihood:
        """Held-out likelihood before recovery, or of the dense model."""
        if name == 'start':
            return self.measure(heldout, trained, frozen)
        files = self.source.files
        dense = weights.decoder_of(files.config, self._read(files, self.cfg.dtype))
        return heldout.measure(dense, masks_lib.DENSE)


def make_method(
    cfg: config_lib.RecoverConfig,
    model: model_config.ModelConfig,
    structure: structure_lib.Structure,
) -> methods.Method:
    """What the settings ask to train.

    Args:
        cfg: the settings.
        model: constants of the model that is trained.
        structure: what of it does something; all else stays as it is.
    """
    if cfg.gains:
        # Whatever multiplies zeros.
        return methods.GainFinetuning(model)
    kept = structure.masks(model)
    if cfg.lora_rank:
        return methods.LoraFinetuning(model, cfg.lora_alpha / cfg.lora_rank, kept)
    return methods.FullFinetuning(model, cfg.dtype, kept)


def start_added(
    cfg: config_lib.RecoverConfig, model: base_model.BaseModel
) -> methods.Trained:
    """What is trained beside frozen weights, before the first step.

    Raises:
        InputError: if the rank of adapters is more than a target has.
    """
    if cfg.gains:
        targets = gains.parse_targets(cfg.gain_targets)
        return {'gains': gains.init_gains(model.config, targets)}
    return {
        'adapters': lora.init_adapters(
            model.config,
            lora.parse_targets(cfg.lora_targets),
            cfg.lora_rank,
            jax.random.key(cfg.seed),
        )
    }
