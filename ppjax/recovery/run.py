"""One recovery run: its data, its devices, what it trains and starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppjax.base import atomic, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import order, packing
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import references as references_lib
from ppjax.learning import schedule as schedule_lib
from ppjax.models import base_model, loading, weights
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding
from ppjax.recovery import config as config_lib
from ppjax.recovery import lora, methods
from ppjax.recovery import source as source_lib
from ppjax.recovery import step as step_lib


class RecoveryRun:
    """What stays the same from a run's first step to its last.

    Attributes:
        cfg: its settings, resolved.
        source: what it starts from.
        data: what it learns from and is measured on.
        directory: where it keeps everything.
        mesh: its devices.
        method: what is trained.
        total: optimizer steps.
        batches: the examples of each.
        shape: of every batch.
        optimizer, schedule: AdamW, and its learning rate by step.
    """

    def __init__(
        self,
        cfg: config_lib.RecoverConfig,
        source: source_lib.RecoverySource,
        data: data_lib.Data,
        directory: run_directory.RunDirectory,
        mesh: jax.sharding.Mesh,
    ):
        self.cfg, self.source, self.data = cfg, source, data
        self.directory, self.mesh = directory, mesh
        self.method = make_method(cfg, source)
        lengths = np.array([len(example.tokens) for example in data.train])
        self.total = order.num_steps(
            steps=cfg.steps,
            epochs=cfg.epochs,
            batch_size=cfg.batch_size,
            groups=[len(lengths)],
        )
        self.batches = order.all_steps(cfg.seed, self.total, cfg.batch_size, lengths)
        self.shape = packing.plan_shape(
            data.train,
            self.batches,
            prefix=data.prefix,
            rows=sharding.row_shards(mesh),
            micro_batches=cfg.micro_batches,
        )
        self.schedule = schedule_lib.make_schedule(
            learning_rate=cfg.peak_rate, warmup=cfg.warmup, num_steps=self.total
        )
        self.optimizer = optax.adamw(self.schedule, weight_decay=cfg.weight_decay)
        self._references = directory.path / 'results' / 'references.json'

    def say_plan(self) -> None:
        """Says what will be trained, on what, and how a step is cut up."""
        cfg, shape = self.cfg, self.shape
        trained = sum(
            leaf.size for leaf in jax.tree.leaves(self.abstract_state().trained)
        )
        how = (
            f'adapters of rank {cfg.lora_rank} on {cfg.lora_targets}'
            if cfg.lora_rank
            else 'all weights'
        )
        progress_lib.say(
            f'Training {how}: {trained:,} parameters, learning rate {cfg.peak_rate:g}.'
        )
        rows = shape.rows * shape.micro_batches
        progress_lib.say(
            f'{self.total} steps of {cfg.batch_size} examples, each in {rows} rows of '
            f'{shape.tokens_per_row} tokens ({shape.micro_batches} micro-batches), '
            f'{shape.prefix} of them the shared prefix.'
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
        if not cfg.lora_rank:
            return self._read(model, 'float32'), {}
        adapters = start_adapters(cfg, model)
        return sharding.place(adapters, self.mesh), self._read(model, cfg.dtype)

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
        cfg, model = self.cfg, self.source.model
        if cfg.lora_rank:
            trained = jax.eval_shape(lambda: start_adapters(cfg, model))
        else:
            trained = weights.abstract(model.config)
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
        where = jax.tree.map(lambda x: x.sharding, self.abstract_state().optimizer)
        moments = jax.jit(self.optimizer.init, out_shardings=where)(trained)
        return step_lib.RecoveryState(trained, moments)

    def measure(
        self,
        heldout: heldout_lib.HeldOut,
        trained: methods.Trained,
        frozen: weights.Weights,
    ) -> heldout_lib.Likelihood:
        """Held-out likelihood of the model as trained so far."""
        return heldout.measure(
            self.method.model(self.method.cast(trained), frozen), masks_lib.DENSE
        )

    @property
    def has_references(self) -> bool:
        """Whether `references` need not measure any more."""
        return self._stored_references() is not None

    def _stored_references(self) -> dict[str, list[float]] | None:
        names = ['start'] if self.source.persona_mask is None else ['dense', 'start']
        return references_lib.stored(self._references, names, len(self.data.heldout))

    def references(
        self,
        heldout: heldout_lib.HeldOut,
        trained: methods.Trained,
        frozen: weights.Weights,
    ) -> dict[str, heldout_lib.Likelihood]:
        """Held-out likelihood before recovery, and of the dense model if it is known.

        Kept in results/references.json, so that a resumed run need not measure again.
        """
        stored = self._stored_references()
        if stored is None:
            found = {}
            source = self.source
            if source.persona_mask is not None:
                dense = weights.decoder_of(
                    source.files.config, self._read(source.files, self.cfg.dtype)
                )
                found['dense'] = heldout.measure(dense, masks_lib.DENSE)
                del dense
            found['start'] = self.measure(heldout, trained, frozen)
            for name, likelihood in found.items():
                progress_lib.say(f'Held-out, {name}: {likelihood.mean:.4f} nats/token')
            stored = {name: x.nll.tolist() for name, x in found.items()}
            atomic.write_json(self._references, stored)
        return {
            name: heldout_lib.Likelihood(np.array(nll), heldout.tokens)
            for name, nll in stored.items()
        }


def make_method(
    cfg: config_lib.RecoverConfig, source: source_lib.RecoverySource
) -> methods.Method:
    """What the settings ask to train."""
    if cfg.lora_rank:
        return methods.LoraFinetuning(
            source.model.config, cfg.lora_alpha / cfg.lora_rank
        )
    return methods.FullFinetuning(source.model.config, cfg.dtype)


def start_adapters(
    cfg: config_lib.RecoverConfig, model: base_model.BaseModel
) -> methods.Trained:
    """The adapters of a run's seed, before the first step.

    Raises:
        InputError: if the rank is more than a target has.
    """
    return {
        'adapters': lora.init_adapters(
            model.config,
            lora.parse_targets(cfg.lora_targets),
            cfg.lora_rank,
            jax.random.key(cfg.seed),
        )
    }
