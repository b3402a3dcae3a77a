"""The settings of a whole run, from a persona to a pruned model."""

import dataclasses

from ppjax.base import errors, flags
from ppjax.data import order
from ppjax.learning import config as learning_config
from ppjax.masking import granularity
from ppjax.synthesis import config as synthesis_config
from ppjax.training import config as train_config

# What says nothing where no mask is learned.
_OF_LEARNING = (
    'estimator',
    'objective',
    'anneal',
    'learning_rate',
    'gains',
    'gain_learning_rate',
    'mask_steps',
)

_RECOVER = 'lora'
# Of the loss that keeps what is recovered from repeating itself.
_UNLIKELIHOOD = 0.25


@dataclasses.dataclass(frozen=True)
class RunConfig(synthesis_config.SynthesisSettings, train_config.LearningSettings):
    """Flags of `python -m ppjax.run`."""

    steps: int | None = flags.setting(
        None,
        'Learn the mask in so many optimizer steps; the schedule spans them. With '
        'neither --steps nor --epochs nothing is learned but --recover: the mask keeps '
        'the channels with the largest activations.',
        within=order.STEPS_OR_NONE,
    )
    epochs: float = flags.setting(
        None,
        'Learn the mask in so many passes over the calibration data.',
        within='(0, 100000]',
    )
    compensate: str = flags.setting(
        None,
        'Whether the rows that the mask keeps are refitted, so that the exported model '
        'follows the dense one (ridge; see python -m ppjax.compensate). By default '
        'they are where no mask is learned.',
        choices=('none', 'ridge'),
    )
    recover: str = flags.setting(
        None,
        'With --compensate: whether the refitted model is then finetuned on the '
        'calibration rows: adapters beside its weights (lora), all weights (full), or '
        'only what multiplies channels, attention outputs and norms (gains); see '
        f'python -m ppjax.recover. By default {_RECOVER} where no mask is learned, and '
        'none elsewhere.',
        choices=('none', 'lora', 'full', 'gains'),
    )
    recover_steps: int | None = flags.setting(
        None,
        'Its optimizer steps; 3 passes over the calibration data by default.',
        within=order.STEPS,
    )
    recover_unlikelihood: float | None = flags.setting(
        None,
        'Weight of the loss that keeps the model from repeating itself, by default '
        f'{_UNLIKELIHOOD:g}; 0 for none (see --unlikelihood of python -m '
        'ppjax.recover).',
        within='[0, 100]',
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
        compensate, recover = self.stages
        if not self.learns_mask:
            self._refuse_learning()
        if compensate != 'none' and self.granularity == granularity.BLOCKS.name:
            raise errors.InputError(
                '--compensate refits what lacks channels, and --granularity=blocks '
                'removes whole blocks; learn a mask of them with --steps or --epochs, '
                'or give --compensate=none.'
            )
        if compensate != 'none' and self.budget != 'uniform':
            raise errors.InputError(
                f'--compensate does not go with --budget={self.budget}: it would refit '
                'the zeros that fill narrower layers up; give --compensate=none.'
            )
        if recover != 'none' and compensate == 'none':
            raise errors.InputError(f'--recover={self.recover} needs --compensate.')
        if recover == 'none':
            for name in ('recover_steps', 'recover_unlikelihood'):
                if getattr(self, name) is not None:
                    raise errors.InputError(f'--{name} needs --recover.')
        if self.own_answers and compensate == 'none':
            raise errors.InputError('--own_answers needs --compensate=ridge.')
        if self.rewriter == 'none':
            raise errors.InputError(
                '--rewriter=none leaves nothing to learn from; python -m '
                'ppjax.synthesize makes a selection alone.'
            )

    @property
    def learns_mask(self) -> bool:
        """Whether --steps or --epochs asks for it."""
        return self.epochs is not None if self.steps is None else self.steps > 0

    @property
    def stages(self) -> tuple[str, str]:
        """`compensate` and `recover`, given or by default."""
        compensate = self.compensate or ('none' if self.learns_mask else 'ridge')
        recovers = compensate == 'ridge' and not self.learns_mask
        return compensate, self.recover or (_RECOVER if recovers else 'none')

    def resolved(self) -> 'RunConfig':
        """These settings with what depends on others in its place."""
        compensate, recover = self.stages
        usual = learning_config.StepSettings.epochs
        return dataclasses.replace(
            self,
            steps=self.steps if self.learns_mask else 0,
            epochs=usual if self.epochs is None else self.epochs,
            compensate=compensate,
            recover=recover,
            recover_unlikelihood=(
                _UNLIKELIHOOD
                if self.recover_unlikelihood is None and recover != 'none'
                else self.recover_unlikelihood
            ),
        )

    def _refuse_learning(self) -> None:
        """Raises:
        InputError: if a flag says how a mask is learned that is not.
        """
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        for name in _OF_LEARNING:
            if (given := getattr(self, name)) != usual[name]:
                raise errors.InputError(
                    f'--{name}={given} is for a mask that is learned; say for how long '
                    'with --steps or --epochs.'
                )


# What may change between two calls on one run directory.
RESUMABLE = synthesis_config.RESUMABLE | train_config.RESUMABLE | frozenset({'verify'})
