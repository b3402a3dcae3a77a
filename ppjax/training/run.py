"""One persona's mask learning run: its data, its steps and what it leaves."""

import contextlib
import dataclasses
import hashlib
import pathlib

import jax
import numpy as np
import optax

from ppjax.base import atomic, errors, reading, run_directory
from ppjax.base import progress as progress_lib
from ppjax.base import versions as versions_lib
from ppjax.data import order
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import references as references_lib
from ppjax.learning import schedule as schedule_lib
from ppjax.masking import granularity as granularity_lib
from ppjax.masking import pmask, score_init, topk
from ppjax.models import base_model
from ppjax.models import decoder as decoder_lib
from ppjax.training import config as config_lib
from ppjax.training import starts as starts_lib
from ppjax.training import step as step_lib

_REFERENCES = pathlib.Path('results', 'references.json')


class LearningRun:
    """A persona's own run, alone or as one of many over one base model.

    Attributes:
        name: of the persona among many; '' alone.
        cfg: its settings.
        base: the base model's files.
        data: what it learns from and is measured on.
        directory: where it keeps everything.
        granularity: what is masked.
        shape: (R, U) of its masks.
        keep: k.
        groups: what batches are drawn from.
        total: optimizer steps.
        batches: the group and the examples of each.
        schedule: learning rate by step.
        mask_path: the persona mask, once it is learned.
    """

    def __init__(
        self,
        cfg: config_lib.TrainConfig,
        base: base_model.BaseModel,
        data: data_lib.Data,
        directory: run_directory.RunDirectory,
        *,
        name: str = '',
    ):
        self.name = name
        self.cfg, self.base, self.data, self.directory = cfg, base, data, directory
        size = base.config.num_layers, base.config.d_ff
        self.granularity = granularity_lib.KINDS[cfg.granularity]
        self.shape = self.granularity.shape(*size)
        self.keep = self.granularity.keep_size(
            *size, sparsity=cfg.sparsity, align=cfg.align
        )
        self.groups = data.prompt_groups(cfg.batch_size)
        self.total = data.num_steps(
            steps=cfg.steps, epochs=cfg.epochs, batch_size=cfg.batch_size
        )
        self.batches = order.grouped_steps(
            cfg.seed,
            self.total,
            cfg.batch_size,
            np.array([len(example.tokens) for example in data.train]),
            [group.examples for group in self.groups],
        )
        self.schedule: optax.Schedule = schedule_lib.make_schedule(
            learning_rate=cfg.learning_rate, warmup=cfg.warmup, num_steps=self.total
        )
        self.mask_path = directory.path / 'mask.pmask'
        self._references = directory.path / _REFERENCES

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
        )

    @property
    def has_references(self) -> bool:
        """Whether the held-out references are measured, or there is nothing to."""
        return not self.data.heldout or self._stored_references() is not None

    def _stored_references(self) -> dict[str, list[float]] | None:
        return references_lib.stored(
            self._references, ('dense', 'random', 'one_shot'), len(self.data.heldout)
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
        names = ('base_fingerprint', 'persona_sha256', 'granularity', 'keep')
        differ = [n for n in names if getattr(found, n) != getattr(wanted, n)]
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
        theirs = like / _REFERENCES
        if not self._references.exists() and theirs.exists():
            with contextlib.suppress(errors.InputError):  # It is damaged.
                text = reading.read_text(theirs, 'References')
                atomic.write_text(self._references, text)

    def random_scores(self) -> jax.Array:
        """Random scores [R, U] of this run's seed."""
        return score_init.random_scores(jax.random.key(self.cfg.seed), *self.shape)

    def start_scores(
        self,
        starts: starts_lib.Starts,
        model: decoder_lib.Decoder,
        activation: jax.Array | None,
    ) -> jax.Array:
        """The scores [R, U] that learning starts from.

        Args:
            starts: measures them on the calibration examples.
            model: the base model.
            activation: the activation scores, if they are known already.

        Raises:
            InputError: if `--score_init` names a mask that is unreadable or of
                another base model, or masks something else.
        """
        kind = self.cfg.score_init
        if kind == 'random':
            scores = self.random_scores()
        elif kind == 'taylor':
            scores = starts.taylor(model, self.cfg.remat)
        else:
            if activation is None:
                activation = starts.activation(model)
            scores = activation
            if kind != 'activation':
                scores = jax.numpy.asarray(
                    score_init.mask_scores(
                        read_start_masks(self.cfg, self.base),
                        np.asarray(activation),
                    )
                )
        return scores * self.cfg.score_scale

    def mask_file(self, scores: jax.Array) -> pmask.PersonaMask:
        """The persona mask of some scores [R, U].

        Raises:
            InputError: if they are not finite.
        """
        mask = topk.finite_mask(scores, self.keep)
        prompt = self.data.system_prompt
        return pmask.PersonaMask(
            mask=mask,
            base_model=self.cfg.base_model,
            base_fingerprint=self.data.hashes['base model'],
            persona_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
            system_prompt=prompt,
            granularity=self.granularity.name,
        )

    def measure(
        self,
        heldout: heldout_lib.HeldOut,
        model: decoder_lib.Decoder,
        mask: jax.Array | None,
    ) -> heldout_lib.Likelihood:
        """Held-out likelihood under a mask [R, U], or None for the dense model."""
        return heldout.measure(model, self.granularity.decoder_masks(mask))

    def references(
        self,
        model: decoder_lib.Decoder,
        heldout: heldout_lib.HeldOut,
        activation: jax.Array | None,
    ) -> dict[str, heldout_lib.Likelihood]:
        """Held-out likelihood of the dense model and of masks that were not learned.

        Kept in results/references.json, so that a resumed run need not measure again.

        Args:
            model: the base model.
            heldout: to measure on.
            activation: the activation scores; may be None once they are kept.
        """
        stored = self._stored_references()
        if stored is not None:
            return {
                name: heldout_lib.Likelihood(np.array(nll), heldout.tokens)
                for name, nll in stored.items()
            }
        assert activation is not None
        masks = {
            'dense': None,
            'random': topk.topk_mask(self.random_scores(), self.keep),
            'one_shot': topk.topk_mask(activation, self.keep),
        }
        found = {}
        progress = progress_lib.Progress('Held-out references', len(masks))
        for done, (name, mask) in enumerate(masks.items(), start=1):
            found[name] = self.measure(heldout, model, mask)
            progress.update(done, f'{name} {found[name].mean:.4f} nats/token')
        progress.close()
        nll = {name: likelihood.nll.tolist() for name, likelihood in found.items()}
        atomic.write_json(self._references, nll)
        return found

    def finish(
        self,
        scores: jax.Array,
        models: dict[str, heldout_lib.Likelihood],
    ) -> None:
        """Writes results/likelihood.json, if there is any, and the mask.

        Args:
            scores: learned, [R, U].
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
        pmask.save(self.mask_path, self.mask_file(scores))


def read_start_masks(
    cfg: config_lib.TrainConfig, base: base_model.BaseModel
) -> np.ndarray:
    """The masks that `--score_init` names, bool [M, R, U].

    Raises:
        InputError: if one is unreadable or of another base model, or masks something
            else.
    """
    masks = []
    for file in score_init.start_masks(cfg.score_init):
        persona_mask = pmask.load(file)
        if persona_mask.granularity != cfg.granularity:
            raise errors.InputError(
                f'--score_init: {file} is a mask of {persona_mask.granularity}, and '
                f'--granularity={cfg.granularity}.'
            )
        persona_mask.check_base(
            base.fingerprint(), base.config.num_layers, base.config.d_ff
        )
        masks.append(persona_mask.mask)
    return np.stack(masks)


def masks_hash(masks: np.ndarray) -> str:
    """sha256 of masks, bool [M, R, U]."""
    return hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()
