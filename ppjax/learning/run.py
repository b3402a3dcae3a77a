"""One run of optimizer steps: what it learns from, and when, and how fast."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import numpy as np

from ppjax.base import atomic, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import chat, order, packing
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import references as references_lib
from ppjax.learning import schedule as schedule_lib


class Run:
    """What stays the same from a run's first step to its last.

    Attributes:
        cfg: its settings: `config.StepSettings`, and how often it saves and measures.
        data: what it learns from and is measured on.
        directory: where it keeps everything.
        groups: what batches are drawn from; those without the persona prompt last.
        learned: the examples that groups and batches count: `Data.train`, then
            `Data.shortened`.
        name: of the persona, where it is one of many; '' alone.
        total: optimizer steps.
        batches: the group and the examples of each.
        schedule: learning rate by step.
        references_file: where held-out references are kept.
        reference_names: the models that these are of.
        measurements: of held-out examples, unless the settings say.
    """

    cfg: Any
    reference_names: Sequence[str]
    measurements: int

    def __init__(
        self,
        cfg: Any,
        data: data_lib.Data,
        directory: run_directory.RunDirectory,
        groups: Sequence[data_lib.PromptGroup],
        learning_rate: float,
        name: str = '',
    ):
        """See the attributes; `learning_rate` is the schedule's peak.

        Raises:
            InputError: see `order.num_steps`.
        """
        self.cfg, self.data, self.directory = cfg, data, directory
        self.groups, self.name = [*groups], name
        self.learned = [*data.train, *data.shortened]
        self.total = order.num_steps(
            steps=cfg.steps,
            epochs=cfg.epochs,
            batch_size=cfg.batch_size,
            groups=[len(group.examples) for group in groups],
        )
        self.batches = order.grouped_steps(
            cfg.seed,
            self.total,
            cfg.batch_size,
            np.array([len(example.tokens) for example in data.train]),
            [group.examples for group in groups],
        )
        if data.shortened:
            self.groups += [data.shortened_group(group) for group in groups]
            dropped = order.shortened_steps(cfg.seed, self.total, cfg.prompt_dropout)
            for step in np.flatnonzero(dropped):
                own, batch = self.batches[step]
                self.batches[step] = own + len(groups), batch + len(data.train)
        self.schedule = schedule_lib.make_schedule(
            learning_rate=learning_rate, warmup=cfg.warmup, num_steps=self.total
        )
        self.references_file = directory.path / 'results' / 'references.json'

    @functools.cached_property
    def rate(self) -> Callable[[int], float]:
        """`schedule` on the host."""
        return schedule_lib.on_host(self.schedule, self.total)

    def is_shortened(self, taken: int) -> bool:
        """Whether the step after so many is without the persona prompt."""
        return self.groups[self.batches[taken][0]].shortened

    @property
    def heldout_every(self) -> int:
        """Steps between held-out measurements."""
        return self.cfg.heldout_every or max(1, -(-self.total // self.measurements))

    def examples(self, step: int) -> list[chat.Example]:
        """Those of a step, which count from 1."""
        return [self.learned[i] for i in self.batches[step - 1][1]]

    def packed(self, step: int, shape: packing.PackedShape) -> packing.PackedBatch:
        """`examples` of a step as a batch."""
        return packing.pack(self.learned, self.batches[step - 1][1], shape)

    def _stored_references(self) -> dict[str, list[float]] | None:
        size = len(self.data.heldout)
        return references_lib.stored(self.references_file, self.reference_names, size)

    @property
    def has_references(self) -> bool:
        """Whether held-out references are measured, or there is nothing to."""
        return not self.data.heldout or self._stored_references() is not None

    def references(
        self,
        heldout: heldout_lib.HeldOut,
        measure: Callable[[str], heldout_lib.Likelihood],
        measured: references_lib.Measured | None = None,
    ) -> dict[str, heldout_lib.Likelihood]:
        """Held-out likelihood of the models that the run is compared with.

        Kept in results/references.json, so that a resumed run need not measure again.

        Args:
            heldout: what they are measured on.
            measure: called with each of `reference_names`.
            measured: what is known of them already.
        """
        found = self._stored_references()
        if found is None:
            found = {}
            known = measured.of(self.data.heldout) if measured else {}
            for name in self.reference_names:
                likelihood = known.get(name)
                if likelihood is None:
                    likelihood = measure(name)
                    progress_lib.say(
                        f'Held-out, {name}: {likelihood.mean:.4f} nats/token'
                    )
                found[name] = likelihood.nll.tolist()
            atomic.write_json(self.references_file, found)
        return {
            name: heldout_lib.Likelihood(np.array(nll), heldout.tokens)
            for name, nll in found.items()
        }
