"""The settings that mask learning and recovery share."""

import dataclasses

from ppjax.base import errors, flags, settings
from ppjax.data import order
from ppjax.models import decoder


@dataclasses.dataclass(frozen=True)
class StepSettings(settings.CommonSettings):
    """How many steps there are, of what, and what is kept of them."""

    weight_decay: float = flags.setting(
        0.01, 'Decoupled weight decay of AdamW.', within='[0, 1000]'
    )
    warmup: float = flags.setting(
        0.03,
        'Share of the steps in which the learning rate rises linearly.',
        within='[0, 1)',
    )
    epochs: float = flags.setting(
        3.0, 'Passes over the calibration data.', within='(0, 100000]'
    )
    steps: int | None = flags.setting(
        None,
        'Optimizer steps, instead of --epochs; the schedule spans them.',
        within=order.STEPS,
    )
    batch_size: int = flags.setting(
        16, 'Examples in every optimizer step.', within=order.BATCH_SIZES
    )
    prompt_dropout: float = flags.setting(
        0.0,
        'Share of the steps whose examples come without the persona prompt, or under '
        '--short_prompt, so that the model learns to be the persona without it.',
        within='[0, 1]',
    )
    short_prompt: str | None = flags.setting(
        None,
        'With --prompt_dropout: the system message of those steps, as in "You are '
        'Jack."; none by default, where a chat template may put its own.',
    )
    remat: str = flags.setting(
        'dots',
        'What the backward pass recomputes: none, dots (all but the products with '
        'weights) or full (least memory).',
        choices=decoder.REMAT,
    )
    log_every: int = flags.setting(1, 'Steps between lines of metrics.jsonl.', least=1)
    stop_after: int | None = flags.setting(
        None, 'Pause after this step, as if interrupted; for short trials.', least=1
    )

    def check_prompts(self, objective: str = 'ce') -> None:
        """Raises:
        InputError: if the flags of dropped prompts mean nothing.
        """
        if self.short_prompt is not None and not self.prompt_dropout:
            raise errors.InputError('--short_prompt is for --prompt_dropout.')
        if self.prompt_dropout and objective != 'ce':
            raise errors.InputError(
                f'--prompt_dropout goes with --objective=ce, not {objective}: without '
                'its prompt the dense model, which that compares with, is no persona.'
            )

    @property
    def dropped_prompt(self) -> str | None:
        """What `learning.data.prepare_data` is to put in the persona prompt's place."""
        return (self.short_prompt or '') if self.prompt_dropout else None


# What may change between two calls on one run directory without making another run.
RESUMABLE = frozenset(
    {
        'output_dir',
        'overwrite',
        'heldout_every',
        'checkpoint_every',
        'log_every',
        'stop_after',
        # Sums in another order: the same run up to rounding, on other machines.
        'mesh',
    }
)
