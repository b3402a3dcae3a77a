"""The settings of a whole run, from a persona to a pruned model."""

import dataclasses

from ppjax.base import errors, flags
from ppjax.data import order
from ppjax.masking import granularity
from ppjax.synthesis import config as synthesis_config
from ppjax.training import config as train_config


@dataclasses.dataclass(frozen=True)
class RunConfig(synthesis_config.SynthesisSettings, train_config.LearningSettings):
    """Flags of `python -m ppjax.run`."""

    compensate: str = flags.setting(
        'none',
        'Whether the rows that the mask keeps are refitted, so that the exported model '
        'follows the dense one (ridge; see python -m ppjax.compensate).',
        choices=('none', 'ridge'),
    )
    recover: str = flags.setting(
        'none',
        'With --compensate: whether the refitted model is then finetuned on the '
        'calibration rows; gains trains what multiplies channels, attention outputs '
        'and norms, and no weight (see python -m ppjax.recover --gains).',
        choices=('none', 'gains'),
    )
    recover_steps: int | None = flags.setting(
        None, 'Its optimizer steps, instead of --epochs.', within=order.STEPS
    )
    own_answers: int = flags.setting(
        0,
        'With --compensate: fit on so many answers of the dense model to '
        '--instructions as well.',
    )
    verify: bool = flags.setting(
        True, "Compare the exported model's logits with the masked dense model's."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compensate != 'none' and self.granularity == granularity.BLOCKS.name:
            raise errors.InputError(
                '--compensate refits what lacks channels, and --granularity=blocks '
                'removes whole blocks; leave one of them out.'
            )
        if self.compensate != 'none' and self.budget != 'uniform':
            raise errors.InputError(
                f'--compensate does not go with --budget={self.budget}: it would refit '
                'the zeros that fill narrower layers up.'
            )
        if self.recover != 'none' and self.compensate == 'none':
            raise errors.InputError(f'--recover={self.recover} needs --compensate.')
        if self.recover_steps is not None and self.recover == 'none':
            raise errors.InputError('--recover_steps needs --recover.')
        if self.own_answers and self.compensate == 'none':
            raise errors.InputError('--own_answers needs --compensate=ridge.')
        if self.rewriter == 'none':
            raise errors.InputError(
                '--rewriter=none leaves nothing to learn from; python -m '
                'ppjax.synthesize makes a selection alone.'
            )


# What may change between two calls on one run directory.
RESUMABLE = synthesis_config.RESUMABLE | train_config.RESUMABLE | frozenset({'verify'})
