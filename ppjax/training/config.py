"""The settings of mask learning."""

import dataclasses
import math
import os
import re
from typing import Any

from ppjax.base import errors, flags, settings
from ppjax.data import order
from ppjax.learning import config, loss
from ppjax.masking import budget as budget_lib
from ppjax.masking import estimators, score_init
from ppjax.masking import granularity as granularity_lib

# In --calibration, --heldout and --shared_calibration, replaced by each of --personas.
PERSONA = '{persona}'

_SHARED_SCORE_SCALE = 0.1


@dataclasses.dataclass(frozen=True)
class LearningSettings(config.StepSettings):
    """How a mask is learned; the defaults are the paper's (A.1)."""

    steps: int | None = flags.setting(
        None,
        'Optimizer steps, instead of --epochs; the schedule spans them. 0 learns '
        'nothing: the mask is that of the scores it would start from.',
        within=order.STEPS_OR_NONE,
    )
    granularity: str = flags.setting(
        granularity_lib.CHANNELS.name,
        'What is removed: FFN channels of every layer, or whole transformer blocks.',
        choices=tuple(granularity_lib.KINDS),
    )
    sparsity: float = flags.setting(
        0.25,
        'Share of FFN channels removed from every layer, or of blocks.',
        within='[0, 1)',
    )
    align: int = flags.setting(
        64,
        'The number of channels kept is rounded to a multiple of this; 1 keeps it '
        'exact. Blocks are not aligned.',
        least=1,
    )
    score_init: str = flags.setting(
        'activation',
        'How scores start: from channel activations (or how much each block changes '
        'its input) or from first-order gradients (taylor) on the calibration data, '
        'random, or from learned masks of the same base: .pmask files with commas '
        'between them. Activation is the default by measurement: on one RoleBench role '
        '24 steps from there end at 3.05 nats a token held-out, from random scores at '
        '3.82 (dense 2.84). A mask learned from several personas is better still.',
        path=True,
    )
    score_scale: float = flags.setting(
        0.1,
        'Standard deviation of the starting scores in each layer, or over blocks; the '
        'smaller, the more of them a step can exchange.',
        within='(0, 1000]',
    )
    estimator: str = flags.setting(
        'ste',
        'How gradients pass the mask: straight through top-k, Gumbel-softmax, or '
        'Soft-TopK; the schedules of the last two suit --score_scale=0.1. The mask '
        'that is measured and exported is top-k of the scores.',
        choices=estimators.KINDS,
    )
    objective: str = flags.setting(
        'ce',
        'What is minimised on answer tokens: cross-entropy, the divergence from the '
        "dense model's distribution (kl), or their sum.",
        choices=loss.OBJECTIVES,
    )
    anneal: float = flags.setting(
        0.0,
        'Share of the steps over which the number of units kept falls from all '
        'to the keep size; 0 keeps the keep size throughout.',
        within='[0, 1]',
    )
    learning_rate: float = flags.setting(
        1e-2, 'Peak learning rate of AdamW.', within='(0, 1000]'
    )
    gains: bool = flags.setting(
        False,
        'Also learn one number a channel, by which what it adds is multiplied. It is '
        'kept in the mask file and folded into down_proj at export: the exported model '
        'is no larger. It starts at 1, or as the masks of --score_init have it.',
    )
    gain_learning_rate: float = flags.setting(
        1e-2, 'Peak learning rate of --gains, without decay.', within='(0, 1000]'
    )
    mask_steps: int | None = flags.setting(
        None,
        'Learn the mask in so many of the steps, which its schedule then spans, and in '
        'those that follow --gains alone; 0 learns gains of the mask that --score_init '
        'gives. By default the mask is learned in all steps.',
        least=0,
    )
    nested: str | None = flags.setting(
        None,
        'Learn one order of the channels that serves all sparsities between two, as in '
        '0.1:0.6: each step draws one, the higher ones more often. The mask file then '
        'has ranks, of which --sparsity is the default and --mask_sparsity of chat, '
        'export, evaluate and recover another.',
    )
    budget: str = flags.setting(
        'uniform',
        'Whether every layer keeps the same number of channels, or all layers together '
        'so many (global): those with the highest scores of all, each layer a multiple '
        'of --align. Exported checkpoints have the width of the widest layer, and zeros '
        'in the others.',
        choices=budget_lib.KINDS,
    )
    width_floor: int = flags.setting(
        1, 'With --budget=global: every layer keeps so many channels at least.', least=1
    )
    micro_batches: int = flags.setting(
        1,
        'Pieces a step is cut into to save memory; gradients are accumulated.',
        least=1,
    )
    int8_base: bool = flags.setting(
        False,
        "Keep the frozen blocks' matrices as int8 with a scale for each output "
        "channel, in half of bfloat16's memory. Held-out figures of the run are then of "
        'the rounded model; what is exported is not rounded.',
    )
    heldout_every: int = flags.setting(
        0, 'Steps between held-out measurements; 0 measures 8 times a run.'
    )
    checkpoint_every: int = flags.setting(
        10,
        'Steps between checkpoints; scores are small, so saving often is cheap.',
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        score_init.start_masks(self.score_init)
        self.check_prompts(self.objective)
        if PERSONA in (self.short_prompt or '') and not getattr(self, 'personas', None):
            raise errors.InputError(
                f'--short_prompt: {PERSONA} stands for the name of each of --personas, '
                'and none are given.'
            )
        if self.gains and self.granularity != granularity_lib.CHANNELS.name:
            raise errors.InputError(
                f'--gains are of channels; --granularity={self.granularity} has none.'
            )
        self._check_nested()
        self._check_budget()
        if self.mask_steps is not None and not self.gains:
            raise errors.InputError(
                '--mask_steps leaves the steps that follow to --gains; give both, or '
                'fewer --steps.'
            )

    @property
    def nested_range(self) -> tuple[float, float]:
        """The least and the greatest sparsity of --nested."""
        low, _, high = (self.nested or '').partition(':')
        try:
            found = float(low), float(high)
        except ValueError:
            found = math.nan, math.nan
        if not 0 <= found[0] < found[1] < 1:
            raise errors.InputError(
                '--nested must be two sparsities from 0 to 1, the smaller first, as in '
                f'0.1:0.6, got {self.nested!r}.'
            )
        return found

    def _check_budget(self) -> None:
        """Raises:
        InputError: if --budget=global does not go with what is beside it.
        """
        if self.budget == 'uniform':
            if self.width_floor != 1:
                raise errors.InputError('--width_floor is for --budget=global.')
            return
        usual = {
            'granularity': granularity_lib.CHANNELS.name,
            'estimator': 'ste',
            'anneal': 0.0,
            'nested': None,
        }
        for name, value in usual.items():
            if (given := getattr(self, name)) != value:
                raise errors.InputError(
                    f'--budget=global does not go with --{name}={given}.'
                )

    def _check_nested(self) -> None:
        """Raises:
        InputError: if --nested contradicts itself or what is beside it.
        """
        if not self.nested:
            return
        low, high = self.nested_range
        if not low <= self.sparsity <= high:
            raise errors.InputError(
                f'--sparsity={self.sparsity} lies outside --nested={self.nested}.'
            )
        if self.granularity != granularity_lib.CHANNELS.name:
            raise errors.InputError(
                f'--nested is of channels; --granularity={self.granularity} has none.'
            )
        if self.anneal:
            raise errors.InputError(
                '--nested and --anneal both say how many channels a step keeps; give '
                'one of them.'
            )


# Data, model, sizes of masks, and what draws samples and random scores.
_REFERENCE_SETTINGS = (
    'base_model',
    'calibration',
    'calibration_rows',
    'heldout',
    'granularity',
    'sparsity',
    'align',
    'batch_size',
    'dtype',
    'int8_base',
    'max_length',
    'date',
    'seed',
)


@dataclasses.dataclass(frozen=True)
class TrainConfig(LearningSettings):
    """Flags of `python -m ppjax.train`."""

    calibration: str = flags.setting(
        None,
        'JSONL of chats to learn from, or demo:NAME for a persona shipped here; '
        'several, with commas between them, are learned from together.',
        path=True,
    )
    heldout: str | None = flags.setting(
        None, 'Disjoint JSONL to measure on, or demo:NAME; none by default.', path=True
    )
    calibration_rows: int | None = flags.setting(
        None,
        'Learn from so many rows only, drawn with --seed; fewer are a part of more.',
        least=1,
    )
    personas: str | None = flags.setting(
        None,
        'Names with commas between them: a mask is learned for each, in one run over '
        'one base model. {persona} in --calibration and --heldout stands for the name.',
    )
    personas_per_step: int = flags.setting(
        4,
        'Of --personas, how many take an optimizer step side by side; more want more '
        'memory.',
        least=1,
    )

    shared_steps: int | None = flags.setting(
        None,
        'Of --personas: first learn one mask from all their calibration rows, in so '
        "many steps, from which each persona's own steps then start; --score_init is "
        'where that mask starts. Rows that ask what any persona is measured on are '
        'left out.',
        within=order.STEPS,
    )
    shared_score_scale: float | None = flags.setting(
        None,
        'The --score_scale of the shared mask; 0.1 by default.',
        within='(0, 1000]',
    )
    shared_calibration: str | None = flags.setting(
        None,
        'What the shared mask learns from, with {persona} for the name; --calibration '
        'by default.',
        path=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.require_given(self, 'calibration')
        self._check_shared()
        if not self.personas:
            return
        for name in self.persona_names:
            if not re.fullmatch(r'[\w-]+', name):
                raise errors.InputError(
                    f'--personas: {name!r} is no name of letters, digits, _ and -.'
                )
        if len(set(self.persona_names)) < len(self.persona_names):
            raise errors.InputError(f'--personas={self.personas} names one twice.')
        for flag in ('calibration', 'heldout', 'shared_calibration'):
            if PERSONA not in (getattr(self, flag) or PERSONA):
                raise errors.InputError(
                    f'--{flag} must hold {PERSONA} where --personas are given, got '
                    f'{getattr(self, flag)!r}.'
                )

    def _check_shared(self) -> None:
        """Raises:
        InputError: if flags of the shared mask would mean nothing.
        """
        if self.shared_steps is None:
            for flag in ('shared_score_scale', 'shared_calibration'):
                if getattr(self, flag) is not None:
                    raise errors.InputError(f'--{flag} is for --shared_steps.')
        elif not self.personas:
            raise errors.InputError(
                '--shared_steps is for several --personas, of which each has its own '
                'mask in the end; for a single mask of all, give several files to '
                '--calibration.'
            )
        elif self.calibration_rows is not None:
            raise errors.InputError(
                '--calibration_rows does not go with --shared_steps, whose mask learns '
                'from all rows.'
            )

    def of_shared(self) -> 'TrainConfig':
        """The settings of the mask that all of `personas` start from."""
        source = self.shared_calibration or self.calibration
        scale = self.shared_score_scale
        return dataclasses.replace(
            self.after_shared(self.score_init),
            personas=None,
            calibration=','.join(
                source.replace(PERSONA, name) for name in self.persona_names
            ),
            heldout=None,
            steps=self.shared_steps,
            # Without its prompt nobody could tell which persona is meant.
            prompt_dropout=0.0,
            short_prompt=None,
            mask_steps=None,
            score_scale=_SHARED_SCORE_SCALE if scale is None else scale,
            output_dir=os.path.join(self.output_dir, 'shared', 'mask'),
        )

    def after_shared(self, start: str) -> 'TrainConfig':
        """The settings of the personas' own steps, from the shared mask."""
        return dataclasses.replace(
            self,
            score_init=start,
            shared_steps=None,
            shared_score_scale=None,
            shared_calibration=None,
        )

    def of_persona(self, name: str) -> 'TrainConfig':
        """The settings of one of `personas`' own run, in a directory of its own."""
        return dataclasses.replace(
            self.after_shared(self.score_init),
            personas=None,
            calibration=self.calibration.replace(PERSONA, name),
            heldout=self.heldout and self.heldout.replace(PERSONA, name),
            short_prompt=self.short_prompt and self.short_prompt.replace(PERSONA, name),
            output_dir=os.path.join(self.output_dir, 'personas', name),
        )

    @property
    def reference_settings(self) -> tuple[Any, ...]:
        """All settings that the dense model's and unlearned masks' figures rest on."""
        return tuple(getattr(self, name) for name in _REFERENCE_SETTINGS)

    @property
    def persona_names(self) -> tuple[str, ...]:
        """The names in `personas`."""
        return tuple(name.strip() for name in (self.personas or '').split(','))


RESUMABLE = config.RESUMABLE
