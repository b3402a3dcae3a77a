"""Each rival, from a model and texts to what is left of it."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.baselines import (
    adapt_pruner,
    batches,
    biases,
    budget,
    depth,
    gradients,
    grasprune,
    one_shot,
    selection,
)
from ppjax.baselines import config as config_lib
from ppjax.baselines import texts as texts_lib
from ppjax.baselines.slicegpt import fit
from ppjax.baselines.slicegpt import model as slicegpt_model
from ppjax.learning import measure as measure_lib
from ppjax.masking import score_init
from ppjax.models import base_model, costs, folded, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import structure as structure_lib
from ppjax.parallel import execution


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a rival leaves.

    Attributes:
        model: of it; nothing is read yet.
        amount: how much that is.
        structure: what is kept of the dense model; None where that is rotated.
        facts: what else there is to tell.
    """

    model: base_model.BaseModel
    amount: budget.Amount
    structure: structure_lib.Structure | None
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be pruned, and by what.

    Attributes:
        cfg: the settings.
        base: the dense model.
        texts: that the method goes by.
        target: parameters of blocks that must be left, or None for `cfg.amount`.
        mesh: the devices.
    """

    cfg: config_lib.PruneConfig
    base: base_model.BaseModel
    texts: texts_lib.Texts
    target: costs.Parameters | None
    mesh: jax.sharding.Mesh

    def among(self) -> budget.Range:
        """The blocks that the method may touch."""
        usual = self.cfg.usual
        return budget.Range.sparing(
            self.base.config, usual.spare_first, usual.spare_last, self.cfg.method
        )

    def chosen(
        self,
        settings: Callable[[], list[budget.Amount]],
        of_amount: Callable[[float], budget.Amount],
    ) -> budget.Amount:
        """The setting that was asked for."""
        if self.target is None:
            assert self.cfg.amount is not None
            return of_amount(self.cfg.amount)
        return budget.nearest(settings(), self.target, self.cfg.method)

    def blocks_left(self) -> int:
        """Parameters of blocks that must be left, of methods that stop at a number."""
        if self.target is not None:
            return self.target.blocks
        assert self.cfg.amount is not None
        whole = costs.parameters(self.base.config, costs.uniform(self.base.config))
        return int(whole.blocks * self.share(self.cfg.amount))

    def share(self, amount: float) -> float:
        """An amount that is a share.

        Raises:
            InputError: if it is none.
        """
        if not 0 <= amount <= 1:
            raise errors.InputError(
                f'--amount of --method={self.cfg.method} must be in [0, 1], got '
                f'{amount:g}.'
            )
        return amount

    def whole(self, amount: float, least: int, most: int) -> int:
        """An amount that is a number of something.

        Raises:
            InputError: if it is none.
        """
        if amount != int(amount) or not least <= amount <= most:
            raise errors.InputError(
                f'--amount of --method={self.cfg.method} must be a whole number in '
                f'[{least}, {most}], got {amount:g}.'
            )
        return int(amount)

    def drawn(self, step: int = 0) -> batches.Batches:
        """The sequences of one step, in batches."""
        count, rows = self.cfg.usual.sequences, self.cfg.rows
        return batches.padded(self.texts.draw(count, self.cfg.seed + step), rows)

    def decoder(self) -> decoder_lib.Decoder:
        """The dense model in memory."""
        return loading.load_decoder(
            self.base.reader,
            self.base.config,
            dtype=jnp.dtype(self.cfg.dtype),
            mesh=self.mesh,
        )

    def left(
        self, kept: structure_lib.Structure, setting: float, text: str, **facts: Any
    ) -> Outcome:
        """What is left by a structure."""
        amount = budget.of_sizes(self.base.config, setting, text, kept.sizes)
        return Outcome(kept.pruned(self.base), amount, kept, facts)


def _depth(task: Task) -> Outcome:
    cfg, among = task.base.config, task.among()
    most = min(among.stop - among.start, cfg.num_layers - 1)
    amount = task.chosen(
        lambda: budget.depth_settings(cfg, among),
        lambda given: budget.depth(cfg, task.whole(given, 0, most)),
    )
    model, drawn = task.decoder(), task.drawn()
    if task.cfg.criterion == 'taylor':
        scores = gradients.measure(
            model, masks_lib.DENSE, drawn, kind='first', mesh=task.mesh
        ).blocks
    else:
        measure = measure_lib.make_measure(drawn.shape, task.mesh)

        def mean_nll(mask: np.ndarray) -> float:
            masks = masks_lib.Masks(blocks=jnp.asarray(mask))
            total = 0.0
            for rows in drawn.rows:
                whole = jax.tree.map(lambda x: x[None], rows)
                found = np.asarray(measure(model, masks, whole), np.float64)
                total += float((found * rows.weights).sum())
            return total / drawn.targets

        scores = depth.perplexities(cfg, mean_nll)
    if not np.isfinite(scores).all():
        raise _not_finite(task)
    kept = depth.kept(cfg, scores, int(amount.setting), among)
    return task.left(
        kept, amount.setting, amount.text, scores=scores.tolist(), blocks=kept.layers
    )


def _llm_pruner(task: Task) -> Outcome:
    cfg, among = task.base.config, task.among()
    amount = task.chosen(
        lambda: budget.narrow_settings(cfg, among),
        lambda given: budget.narrow(cfg, task.share(given), among),
    )
    scores = gradients.measure(
        task.decoder(),
        masks_lib.DENSE,
        task.drawn(),
        kind=task.cfg.importance,
        official_fold=task.cfg.official,
        mesh=task.mesh,
    )
    _check(task, scores.channels, scores.groups)
    sizes = selection.narrow_sizes(cfg, amount.setting, among)
    kept = selection.of_sizes(scores.channels, scores.groups, sizes)
    return task.left(kept, amount.setting, amount.text)


def _adapt_pruner(task: Task) -> Outcome:
    cfg = task.base.config
    model = task.decoder()

    def measure(kept: structure_lib.Structure, step: int) -> adapt_pruner.Measured:
        drawn, masks = task.drawn(step), kept.masks(cfg)
        scores = gradients.measure(
            model,
            masks,
            drawn,
            kind='first',
            official_fold=task.cfg.official,
            mesh=task.mesh,
        )
        _check(task, scores.channels, scores.groups)
        return adapt_pruner.Measured(scores, _cosines(model, masks, drawn, task.mesh))

    kept, steps = adapt_pruner.prune(
        cfg,
        measure,
        task.blocks_left(),
        iterations=task.cfg.iterations,
        amplitude=task.cfg.amplitude,
        official_stop=task.cfg.official,
    )
    return task.left(
        kept,
        len(steps),
        f'{len(steps)} steps',
        steps=[step._asdict() for step in steps],
    )


def _cosines(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    drawn: batches.Batches,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Of each block's input and output, mean over tokens, [L]."""

    def sums(
        model: decoder_lib.Decoder, masks: masks_lib.Masks, rows: Any
    ) -> jax.Array:
        real = (rows.segments > 0).astype(jnp.float32)
        _, _, found = model(
            rows.tokens,
            rows.positions,
            masks,
            drawn.shape.attend(rows.segments),
            tap=score_init.cosine_sum_tap(real),
        )
        return found

    compiled = jax.jit(sums)
    masks = masks.as_float32()
    total = np.zeros(model.cfg.num_layers)
    for rows in drawn.rows:
        total += np.asarray(execution.call(mesh, compiled, model, masks, rows))
    return total / sum(int((rows.segments > 0).sum()) for rows in drawn.rows)


def _one_shot(task: Task) -> Outcome:
    cfg, own = task.base.config, task.cfg
    among = task.among()
    criterion = one_shot.CRITERIA[own.method]
    model, drawn = task.decoder(), task.drawn()
    overall = own.method == 'flap' and own.structure == 'AL-AM'
    amount, sizes = None, None
    if not overall:
        amount = task.chosen(
            lambda: budget.narrow_settings(cfg, among, heads=own.heads),
            lambda given: budget.narrow(cfg, task.share(given), among, heads=own.heads),
        )
        sizes = selection.narrow_sizes(cfg, amount.setting, among, heads=own.heads)
    found = one_shot.measure(model, drawn, criterion, sizes, mesh=task.mesh)
    _check(task, found.channels, found.groups)
    if sizes is None or amount is None:
        standard = found.standardised()
        groups = standard.groups if own.heads else np.full_like(found.groups, np.inf)
        kept = selection.over_layers(
            cfg, standard.channels, groups, task.blocks_left(), among
        )
        setting = costs.parameters(cfg, kept.sizes).blocks
        outcome = task.left(kept, setting, 'one threshold for all layers')
    else:
        kept = selection.of_sizes(found.channels, found.groups, sizes)
        outcome = task.left(kept, amount.setting, amount.text)
    if own.method != 'flap' or not biases.wanted(own.bias, task.base):
        return outcome
    means = one_shot.mean_outputs(model, kept, found.statistics)
    pruned = biases.with_biases(outcome.model, means, kept.layers)
    # Of the dense model's widths, with the biases of the pruned one.
    biased = biases.config_with(cfg)
    return dataclasses.replace(
        outcome,
        model=pruned,
        amount=budget.of_sizes(
            biased, outcome.amount.setting, outcome.amount.text, kept.sizes
        ),
        facts=outcome.facts | {'biases': sorted(means)},
    )


def _grasprune(task: Task) -> Outcome:
    own = task.cfg
    try:
        learned = grasprune.learn(
            task.decoder(),
            task.drawn(),
            task.blocks_left(),
            heads=own.heads,
            steps=own.steps,
            gain_steps=own.gain_steps,
            rate=own.learning_rate or grasprune.LEARNING_RATE,
            seed=own.seed,
            mesh=task.mesh,
        )
    except FloatingPointError:
        raise _not_finite(task) from None
    kept = learned.structure
    setting = costs.parameters(task.base.config, kept.sizes).blocks
    outcome = task.left(kept, setting, 'one budget for all layers', **learned.facts)
    scaled = folded.folded_model(task.base, learned.gains.masks(task.base.config))
    return dataclasses.replace(outcome, model=kept.pruned(scaled))


def _slicegpt(task: Task) -> Outcome:
    cfg = task.base.config
    amount = task.chosen(
        lambda: budget.slice_settings(cfg),
        lambda given: budget.slicegpt(cfg, task.whole(given, 1, cfg.d_model)),
    )
    width, drawn = int(amount.setting), task.drawn()
    if task.cfg.rotation == 'single':
        found = fit.fit_single(task.base, drawn, width, mesh=task.mesh)
    else:
        found = fit.fit(
            task.base, drawn, width, centred=task.cfg.official, mesh=task.mesh
        )
    return Outcome(
        slicegpt_model.sliced_base(task.base, found),
        amount,
        None,
        {'carried': found.carried},
    )


def _check(task: Task, *scores: np.ndarray) -> None:
    if not all(np.isfinite(x).all() for x in scores):
        raise _not_finite(task)


def _not_finite(task: Task) -> errors.InputError:
    more = '; try --dtype=float32' if task.cfg.dtype != 'float32' else ''
    return errors.InputError(
        f'--method={task.cfg.method}: scores of these texts are not finite{more}.'
    )


_METHODS = {
    'depth': _depth,
    'slicegpt': _slicegpt,
    'llm_pruner': _llm_pruner,
    'adapt_pruner': _adapt_pruner,
    'wanda_sp': _one_shot,
    'flap': _one_shot,
    'minitron': _one_shot,
    'grasprune': _grasprune,
}


def prune(task: Task) -> Outcome:
    """What the method that the settings name leaves.

    Raises:
        InputError: for an amount that the method does not have, or scores that are
            not finite.
    """
    return _METHODS[task.cfg.method](task)
