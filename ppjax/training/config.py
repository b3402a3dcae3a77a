"""The settings of mask learning."""

import dataclasses

from ppjax import errors, flags, settings
from ppjax.masking import score_init
from ppjax.models import decoder


@dataclasses.dataclass(frozen=True)
class LearningSettings(settings.CommonSettings):
    """How a mask is learned; the defaults are the paper's (A.1)."""

    sparsity: float = flags.setting(
        0.25, 'Share of FFN channels removed from every layer.'
    )
    align: int = flags.setting(
        64, 'The keep size is rounded to a multiple of this; 1 keeps it exact.'
    )
    score_init: str = flags.setting(
        'activation',
        'How scores start: from channel activations on the calibration data, or '
        'random.',
        choices=score_init.KINDS,
    )
    score_scale: float = flags.setting(
        0.1,
        'Standard deviation of the starting scores in each layer; the smaller, the '
        'more channels a step can exchange.',
    )
    learning_rate: float = flags.setting(1e-2, 'Peak learning rate of AdamW.')
    weight_decay: float = flags.setting(0.01, 'Decoupled weight decay of AdamW.')
    warmup: float = flags.setting(
        0.03, 'Share of the steps in which the learning rate rises linearly.'
    )
    epochs: float = flags.setting(3.0, 'Passes over the calibration data.')
    steps: int | None = flags.setting(
        None, 'Optimizer steps, instead of --epochs; the schedule spans them.'
    )
    batch_size: int = flags.setting(16, 'Examples in every optimizer step.')
    micro_batches: int = flags.setting(
        1, 'Pieces a step is cut into to save memory; gradients are accumulated.'
    )
    remat: str = flags.setting(
        'dots',
        'What the backward pass recomputes: none, dots (all but the products with '
        'weights) or full (least memory).',
        choices=decoder.REMAT,
    )
    heldout_every: int = flags.setting(
        0, 'Steps between held-out measurements; 0 measures 8 times a run.'
    )
    checkpoint_every: int = flags.setting(
        10, 'Steps between checkpoints; scores are small, so saving often is cheap.'
    )
    log_every: int = flags.setting(1, 'Steps between lines of metrics.jsonl.')
    stop_after: int | None = flags.setting(
        None, 'Pause after this step, as if interrupted; for short trials.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.require(
            self,
            'be at least 1',
            lambda value: value >= 1,
            'batch_size',
            'micro_batches',
            'checkpoint_every',
            'log_every',
            'align',
            'steps',
            'stop_after',
        )
        settings.require(
            self,
            'be positive',
            lambda value: value > 0,
            'learning_rate',
            'epochs',
            'score_scale',
        )
        settings.require(
            self,
            'not be negative',
            lambda value: value >= 0,
            'weight_decay',
            'heldout_every',
        )
        settings.require(
            self, 'be in [0, 1)', lambda value: 0 <= value < 1, 'sparsity', 'warmup'
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig(LearningSettings):
    """Flags of `python -m ppjax.train`."""

    calibration: str = flags.setting(
        None, 'JSONL of chats to learn from, or demo:NAME for a persona shipped here.'
    )
    heldout: str | None = flags.setting(
        None, 'Disjoint JSONL to measure on, or demo:NAME; none by default.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.calibration:
            raise errors.InputError('--calibration must be given.')


# What may change between two calls on one run directory without making another run.
RESUMABLE = frozenset(
    {
        'output_dir',
        'overwrite',
        'heldout_every',
        'checkpoint_every',
        'log_every',
        'stop_after',
    }
)
