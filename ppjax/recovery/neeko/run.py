"""A recovery run that trains Neeko's blocks: each step that of one persona."""

from collections import Counter
from collections.abc import Sequence
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import optax

from ppjax.base import errors, processes, run_directory
from ppjax.data import calibration, chat
from ppjax.exporting import pruned_source
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.models import text_states, weights
from ppjax.parallel import sharding
from ppjax.recovery import config as config_lib
from ppjax.recovery import lora, methods
from ppjax.recovery import run as run_lib
from ppjax.recovery import step as step_lib
from ppjax.recovery.neeko import blocks as blocks_lib
from ppjax.recovery.neeko import gate as gate_lib


class NeekoRun(run_lib.RecoveryRun):
    """A run whose state is a block and its optimizer for every persona.

    A step is that of LoRA, on the block of the persona whose rows it has; the other
    blocks and their moments stay as they are. The learning rate goes by the steps of
    all. Every block starts as LoRA with the run's seed does.

    Attributes:
        prompts: the persona prompts, in the order of blocks and of `groups`.
        known: blocks that there were before (`--neeko_start`), or None.
        gate: [P, D] vectors of `prompts`, float32; after `load`.
    """

    gate: np.ndarray
    _places: dict[int, np.ndarray]

    def __init__(
        self,
        cfg: config_lib.RecoverConfig,
        source: pruned_source.PrunedSource,
        data: data_lib.Data,
        directory: run_directory.RunDirectory,
        mesh: jax.sharding.Mesh,
        rows: Sequence[calibration.Row],
        heldout_rows: Sequence[calibration.Row],
    ):
        """See the attributes of `RecoveryRun`; rows are those that data are of.

        Raises:
            InputError: if a persona has too few rows for a step or no prompt, or is
                among the blocks that there were before; or these do not fit.
        """
        texts: dict[str, calibration.Row] = {}
        for row in rows:
            texts.setdefault(chat.persona_digest(row.system_prompt), row)
        counts = Counter(example.persona for example in data.train)
        for digest, count in counts.items():
            where = texts[digest].where
            if not texts[digest].system_prompt:
                raise errors.InputError(
                    f'{where}: --neeko takes the persona of a row from its system '
                    'prompt, and this row has none.'
                )
            if count < cfg.batch_size:
                raise errors.InputError(
                    f'{where}: this persona has {count} rows, fewer than '
                    f'--batch_size={cfg.batch_size}, and with --neeko a step is of '
                    'one persona.'
                )
        super().__init__(cfg, source, data, directory, mesh)
        self.prompts = tuple(texts[digest].system_prompt for digest in counts)
        self.counts = tuple(counts.values())
        self.known: blocks_lib.PersonaBlocks | None = None
        if cfg.neeko_start:
            self.known = blocks_lib.load_for(cfg.neeko_start, source.model)
            self.known.check_same_kind(
                cfg.lora_rank, cfg.lora_alpha, lora.parse_targets(cfg.lora_targets)
            )
            for digest in counts:
                if digest in self.known.digests:
                    raise errors.InputError(
                        f'{texts[digest].where}: the persona of this row has a block in '
                        f'--neeko_start={cfg.neeko_start} already.'
                    )
        own = (*self.known.prompts, *self.prompts) if self.known else self.prompts
        # Held-out personas without a block, for whom the gate chooses one.
        self._strangers: list[str] = []
        for row in heldout_rows:
            if not row.system_prompt:
                raise errors.InputError(
                    f'{row.where}: this held-out row has no system prompt, by which '
                    '--neeko chooses the block to measure it with.'
                )
            if row.system_prompt not in (*own, *self._strangers):
                self._strangers.append(row.system_prompt)
        self._texts = text_states.tokens_of(
            source.model,
            [gate_lib.text_of(text) for text in (*self.prompts, *self._strangers)],
        )

    @property
    def made(self) -> pathlib.Path:
        return self.directory.path / blocks_lib.FILE

    @property
    def how(self) -> str:
        return (
            f'{len(self.prompts)} blocks of rank {self.cfg.lora_rank}, one a persona, '
            f'on {self.cfg.lora_targets}'
        )

    def block_of(self, step: int) -> str:
        """The block that a step changes, by its name in the state."""
        # Steps without the persona prompt are of groups that follow in the same order.
        return str(self.batches[step - 1][0] % len(self.prompts))

    def steps_of(self) -> list[int]:
        """How many steps each block has."""
        found = Counter(self.block_of(step) for step in range(1, self.total + 1))
        return [found[str(number)] for number in range(len(self.prompts))]

    def step_state(
        self, state: step_lib.RecoveryState, step: int
    ) -> step_lib.RecoveryState:
        name = self.block_of(step)
        done = sharding.replicate(np.int32(step - 1), self.mesh)

        def at_step(part: Any) -> Any:
            if isinstance(part, optax.ScaleByScheduleState):
                return part._replace(count=done)
            return part

        optimizer = jax.tree.map(
            at_step,
            state.optimizer[name],
            is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
        )
        return step_lib.RecoveryState(state.trained[name], optimizer)

    def with_step_state(
        self, state: step_lib.RecoveryState, step: int, own: step_lib.RecoveryState
    ) -> step_lib.RecoveryState:
        name = self.block_of(step)
        return step_lib.RecoveryState(
            state.trained | {name: own.trained}, state.optimizer | {name: own.optimizer}
        )

    def abstract_state(self) -> step_lib.RecoveryState:
        own = self.abstract_step_state()
        names = [str(number) for number in range(len(self.prompts))]
        return step_lib.RecoveryState(
            dict.fromkeys(names, own.trained), dict.fromkeys(names, own.optimizer)
        )

    def load(self) -> tuple[methods.Trained, weights.Weights]:
        own, frozen = super().load()
        decoder = weights.decoder_of(self.source.model.config, frozen)
        vectors = text_states.means(decoder, self._texts, self.mesh)
        self.gate, others = np.split(vectors.astype(np.float32), [len(self.prompts)])
        self._places = self._places_by_block(others)
        # A step uses up what it is given, so that no two blocks may share arrays.
        more = [
            sharding.place(run_lib.start_added(self.cfg, self.source.model), self.mesh)
            for _ in self.prompts[1:]
        ]
        return {str(number): x for number, x in enumerate([own, *more])}, frozen

    def first_state(self, trained: methods.Trained) -> step_lib.RecoveryState:
        own = {
            name: super(NeekoRun, self).first_state(x) for name, x in trained.items()
        }
        return step_lib.RecoveryState(
            {name: x.trained for name, x in own.items()},
            {name: x.optimizer for name, x in own.items()},
        )

    def _places_by_block(self, strangers: np.ndarray) -> dict[int, np.ndarray]:
        """Held-out examples by the block that each is measured with.

        Blocks there were before count first. An example has its own persona's block;
        one whose persona has none that of the gate.

        Args:
            strangers: [n, D], vectors of the personas that have none.
        """
        prompts, vectors = self.prompts, self.gate
        if self.known:
            prompts = self.known.prompts + prompts
            vectors = np.concatenate([self.known.gate, vectors])
        blocks = {chat.persona_digest(text): i for i, text in enumerate(prompts)}
        for text, vector in zip(self._strangers, strangers, strict=True):
            chosen = gate_lib.choose(vectors, vector).block
            blocks[chat.persona_digest(text)] = chosen
        own = np.array([blocks[example.persona] for example in self.data.heldout], int)
        return {int(block): np.flatnonzero(own == block) for block in np.unique(own)}

    @functools.cached_property
    def _parts(self) -> dict[int, heldout_lib.HeldOut]:
        examples = self.data.heldout
        sets = [[examples[i] for i in places] for places in self._places.values()]
        packed = heldout_lib.HeldOut.of_personas(sets, self.cfg.batch_size, self.mesh)
        return dict(zip(self._places, packed, strict=True))

    def measure(
        self,
        heldout: heldout_lib.HeldOut,
        trained: methods.Trained,
        frozen: weights.Weights,
    ) -> heldout_lib.Likelihood:
        """Held-out likelihood of every example with its persona's block."""
        nll = np.zeros(len(heldout))
        for block, part in self._parts.items():
            found = super().measure(part, self._block(block, trained), frozen)
            nll[self._places[block]] = found.nll
        return heldout_lib.Likelihood(nll, heldout.tokens)

    def _block(self, number: int, trained: methods.Trained) -> methods.Trained:
        """A block, of those there were before or after them of those trained."""
        if self.known is None:
            return trained[str(number)]
        if number >= len(self.known.prompts):
            return trained[str(number - len(self.known.prompts))]
        return sharding.place({'adapters': self.known.block(number)}, self.mesh)

    def measure_reference(
        self,
        heldout: heldout_lib.HeldOut,
        trained: methods.Trained,
        frozen: weights.Weights,
        name: str,
    ) -> heldout_lib.Likelihood:
        if name == 'start':
            # A fresh block, whosever, changes nothing.
            return super().measure(heldout, trained['0'], frozen)
        return super().measure_reference(heldout, trained, frozen, name)

    def all_blocks(
        self, trained: methods.Trained, identity: str, settings: str
    ) -> blocks_lib.PersonaBlocks:
        """All blocks, those there were before and those trained, on the host.

        Of several processes all must call this together.

        Args:
            trained: after the last step.
            identity: of this run.
            settings: its flags, for people.
        """
        own = [
            jax.tree.map(
                processes.fetch, self.method.cast(trained[str(number)])['adapters']
            )
            for number in range(len(self.prompts))
        ]
        model = self.source.model
        found = blocks_lib.PersonaBlocks(
            self.gate,
            jax.tree.map(lambda *values: np.stack(values), *own),
            self.prompts,
            self.counts,
            self.cfg.lora_alpha,
            model.name,
            model.fingerprint(),
            identity,
            settings,
        )
        return self.known.with_more(found) if self.known else found
