"""One persona's mask learning run: its data, its steps and what it leaves."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import optax

from ppjax.base import atomic, errors, reading, run_directory
from ppjax.base import versions as versions_lib
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import references as references_lib
from ppjax.learning import run as learning_run
from ppjax.learning import schedule as schedule_lib
from ppjax.masking import budget as budget_lib
from ppjax.masking import gains as gains_lib
from ppjax.masking import granularity as granularity_lib
from ppjax.masking import pmask, score_init, topk
from ppjax.masking import ranking as ranking_lib
from ppjax.models import base_model
from ppjax.models import decoder as decoder_lib
from ppjax.training import config as config_lib
from ppjax.training import starts as starts_lib
from ppjax.training import step as step_lib


class LearningRun(learning_run.Run):
    """A persona's own run, alone or as one of many over one base model.

    Attributes:
        base: the base model's files.
        granularity: what is masked.
        shape: (R, U) of its masks.
        keep: k.
        keeps: those that a nested mask is learned for, or None.
        budget: where layers keep numbers of their own, or None.
        mask_path: the persona mask, once it is learned.
        mask_steps: its steps in which the mask is learned, which `schedule` spans;
            what follow are of gains alone.
    """

    cfg: config_lib.TrainConfig
    reference_names = ('dense', 'random', 'one_shot')
    measurements = 8

    def __init__(
        self,
        cfg: config_lib.TrainConfig,
        base: base_model.BaseModel,
        data: data_lib.Data,
        directory: run_directory.RunDirectory,
        *,
        name: str = '',
    ):
        super().__init__(
            cfg,
            data,
            directory,
            data.prompt_groups(cfg.batch_size),
            cfg.learning_rate,
            name,
        )
        self.base = base
        size = base.config.num_layers, base.config.d_ff
        self.granularity = granularity_lib.KINDS[cfg.granularity]
        self.shape = self.granularity.shape(*size)
        self.keep = self.granularity.keep_size(
            *size, sparsity=cfg.sparsity, align=cfg.align
        )
        self.keeps = None
        if cfg.nested:
            self.keeps = ranking_lib.Keeps.of_sparsities(
                *cfg.nested_range, base.config.d_ff, cfg.align
            )
        self.budget = None
        if cfg.budget == 'global':
            self.budget = budget_lib.Budget(cfg.align, cfg.width_floor)
            self.budget.check(self.keep)
        self.mask_path = directory.path / 'mask.pmask'
        self.mask_steps = self.total
        if cfg.mask_steps is not None:
            self.mask_steps = min(cfg.mask_steps, self.total)
            self.schedule = self._schedule(cfg.learning_rate, self.mask_steps)

    def _schedule(self, learning_rate: float, num_steps: int) -> optax.Schedule:
        return schedule_lib.make_schedule(
            learning_rate=learning_rate, warmup=self.cfg.warmup, num_steps=num_steps
        )

    def gain_rate(self) -> Callable[[int], float]:
        """Learning rate of gains by step, on the host."""
        schedule = self._schedule(self.cfg.gain_learning_rate, self.total)
        return schedule_lib.on_host(schedule, self.total)

    @property
    def learning(self) -> step_lib.Learning:
        """What its steps minimise and how its mask is made."""
        cfg = self.cfg
        return step_lib.Learning(
            keep=self.keep,
            estimator=cfg.estimator,
            objective=cfg.objective,
            anneal=cfg.anneal,
            weight_decay=cfg.weight_decay,
            remat=cfg.remat,
            seed=cfg.seed,
            granularity=cfg.granularity,
            gains=cfg.gains,
            mask_steps=cfg.mask_steps,
            keeps=self.keeps,
            budget=self.budget,
        )

    def is_learned(self) -> bool:
        """Whether the mask is there already.

        Raises:
            InputError: if it is damaged, or the mask of something else.
        """
        if not self.mask_path.exists():
            return False
        found = pmask.load(self.mask_path)
        wanted = self.mask_file(jax.numpy.zeros(self.shape))
        names = ['base_fingerprint', 'persona_sha256', 'granularity']
        names.append('keep' if self.budget is None else 'total')
        differ = [n for n in names if getattr(found, n) != getattr(wanted, n)]
        if self.budget is None and (found.gains is not None) != self.cfg.gains:
            differ.append('gains')
        if (found.kept is None) != (self.budget is None):
            differ.append('budget')
        if (found.ranking and found.ranking.keeps) != self.keeps:
            differ.append('ranks')
        if differ:
            raise errors.InputError(
                f'{self.mask_path} is no mask of this run (it has another '
                f'{", ".join(differ)}); move it away, and the same command goes on.'
            )
        return True

    def take_references(self, like: pathlib.Path) -> None:
        """Copies the references of a run that measured the same, unless there are some.

        Args:
            like: its directory.
        """
        ours = self.references_file
        theirs = like / ours.relative_to(self.directory.path)
        if not ours.exists() and theirs.exists():
            with contextlib.suppress(errors.InputError):  # It is damaged.
                atomic.write_text(ours, reading.read_text(theirs, 'References'))

    def random_scores(self) -> jax.Array:
        """Random scores [R, U] of this run's seed."""
        return score_init.random_scores(jax.random.key(self.cfg.seed), *self.shape)

    def start(
        self,
        starts: starts_lib.Starts,
        model: decoder_lib.Decoder,
        activation: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The scores [R, U] and gains, if any, that learning starts from.

        Args:
            starts: measures them on the calibration examples.
            model: the base model.
            activation: the activation scores, if they are known already.

        Raises:
            InputError: if `--score_init` names a mask that is unreadable or of
                another base model, or masks something else.
        """
        kind = self.cfg.score_init
        gains = jax.numpy.ones(self.shape) if self.cfg.gains else None
        if kind == 'random':
            scores = self.random_scores()
        elif kind == 'taylor':
            scores = starts.taylor(model, self.cfg.remat)
        else:
            if activation is None:
                activation = starts.activation(model)
            scores = activation
            if kind != 'activation':
                masks = read_start_masks(self.cfg, self.base)
                found = score_init.mask_scores(_votes(masks), np.asarray(activation))
                if self.budget is not None:
                    widths = np.mean([x.chosen.sum(axis=1) for x in masks], axis=0)
                    found = budget_lib.start_scores(found, widths)
                scores = jax.numpy.asarray(found)
                if gains is not None:
                    known = zip(*(own.known_gains() for own in masks), strict=True)
                    gains = jax.numpy.asarray(gains_lib.of_masks(*map(np.stack, known)))
        return scores * self.cfg.score_scale, gains

    def mask_file(
        self, scores: jax.Array, gains: jax.Array | None = None
    ) -> pmask.PersonaMask:
        """The persona mask of some scores [R, U], and gains if there are some.

        Raises:
            InputError: if they are not finite.
        """
        mask = topk.finite_mask(scores, self.learning.widths(scores, self.keep))
        stored = None if gains is None else gains_lib.stored(gains)
        ranking = None
        if self.keeps is not None:
            ranks = ranking_lib.of_scores(np.asarray(scores))
            ranking = ranking_lib.Ranking(ranks, self.keeps, stored)
        prompt = self.data.system_prompt
        identity: dict[str, Any] = {
            'base_model': self.cfg.base_model,
            'base_fingerprint': self.data.hashes['base model'],
            'persona_sha256': hashlib.sha256(prompt.encode()).hexdigest(),
            'system_prompt': prompt,
        }
        if self.budget is not None:
            return pmask.PersonaMask.of_widths(mask, stored, **identity)
        return pmask.PersonaMask(
            mask=mask,
            granularity=self.granularity.name,
            gains=None if stored is None else stored[mask].reshape(len(mask), -1),
            ranking=ranking,
            **identity,
        )

    def learned_mask(
        self, scores: jax.Array, gains: jax.Array | None, keep: int
    ) -> jax.Array:
        """What `mask_file` says of the same at some k, as floats [R, U]."""
        mask = topk.hard_mask(scores, self.learning.widths(scores, keep))
        return mask if gains is None else mask * gains_lib.rounded(gains)

    @property
    def ends(self) -> dict[str, int]:
        """Name -> k of what else is measured in the end, of a nested mask."""
        if self.keeps is None:
            return {}
        return {
            f'{references_lib.AT}{1 - keep / self.shape[1]:.4g}': keep
            for keep in (self.keeps.most, self.keeps.least)
            if keep != self.keep
        }

    def measure(
        self,
        heldout: heldout_lib.HeldOut,
        model: decoder_lib.Decoder,
        mask: jax.Array | None,
    ) -> heldout_lib.Likelihood:
        """Held-out likelihood under a mask [R, U], or None for the dense model."""
        return heldout.measure(model, self.granularity.decoder_masks(mask))

    def measure_reference(
        self,
        heldout: heldout_lib.HeldOut,
        model: decoder_lib.Decoder,
        activation: jax.Array | None,
        name: str,
    ) -> heldout_lib.Likelihood:
        """Held-out likelihood of the dense model, or under a mask not learned.

        Args:
            heldout: to measure on.
            model: the base model.
            activation: the activation scores.
            name: one of `reference_names`.
        """
        scores = self.random_scores() if name == 'random' else activation
        if name == 'dense' or scores is None:
            return self.measure(heldout, model, None)
        return self.measure(heldout, model, topk.topk_mask(scores, self.keep))

    def finish(
        self,
        scores: jax.Array,
        gains: jax.Array | None,
        models: dict[str, heldout_lib.Likelihood],
    ) -> None:
        """Writes results/likelihood.json, if there is any, and the mask.

        Args:
            scores: learned, [R, U].
            gains: learned, or None.
            models: name -> held-out likelihood; may be empty.
        """
        if models:
            found = references_lib.likelihood(
                self.cfg.heldout,
                self.data.heldout,
                models,
                told=('query_id', 'persona'),
            )
            atomic.write_json(
                self.directory.path / 'results' / 'likelihood.json',
                found
                | {
                    'settings': dataclasses.asdict(self.cfg),
                    'versions': versions_lib.versions(),
                },
            )
        pmask.save(self.mask_path, self.mask_file(scores, gains))


def read_start_masks(
    cfg: config_lib.TrainConfig, base: base_model.BaseModel
) -> list[pmask.PersonaMask]:
    """The masks that `--score_init` names.

    Raises:
        InputError: if one is unreadable or of another base model, or masks something
            else.
    """
    masks = []
    for file in score_init.start_masks(cfg.score_init):
        persona_mask = pmask.load_for(file, base)
        if persona_mask.granularity != cfg.granularity:
            raise errors.InputError(
                f'--score_init: {file} is a mask of {persona_mask.granularity}, and '
                f'--granularity={cfg.granularity}.'
            )
        masks.append(persona_mask)
    return masks


def _votes(masks: Sequence[pmask.PersonaMask]) -> np.ndarray:
    """Of each mask its ranks, the first the highest, if all have some, or its bits."""
    ranked = [own.ranking for own in masks if own.ranking is not None]
    if len(ranked) == len(masks):
        return np.stack([-own.ranks.astype(np.int64) for own in ranked])
    return np.stack([own.chosen for own in masks])


def masks_hash(masks: Sequence[pmask.PersonaMask], *, gains: bool) -> str:
    """sha256 of masks with ranks, and of gains where these are learned on."""
    content = np.packbits(np.stack([own.chosen for own in masks])).tobytes()
    for own in masks:
        if own.ranking is not None:
            content += own.ranking.ranks.tobytes()
        if gains and own.gains is not None:
            content += own.known_gains()[1].tobytes()
    return hashlib.sha256(content).hexdigest()
