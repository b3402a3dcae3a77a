"""The settings of `python -m ppjax.recover`."""

import dataclasses

from ppjax.base import errors, flags, ranges, settings
from ppjax.data import order
from ppjax.exporting import hf_export
from ppjax.models import decoder
from ppjax.recovery import lora
from ppjax.training import trained_run

# Of adapters larger: they start from nothing.
_FULL_RATE, _LORA_RATE = 5e-5, 1e-4


@dataclasses.dataclass(frozen=True)
class RecoverConfig(settings.CommonSettings):
    """How a model is finetuned after pruning; the defaults are the paper's (A.1)."""

    base_model: str = flags.setting(
        None,
        'The dense model, as for python -m ppjax.train; with --mask it is pruned first.',
    )
    mask: str | None = flags.setting(None, 'A .pmask to prune --base_model by.')
    model: str | None = flags.setting(
        None, 'Instead: directory of a model that is pruned already, as exported.'
    )
    run: str | None = flags.setting(
        None,
        'Instead: run directory of mask learning; its base model and mask are taken, '
        'and its data where --calibration or --heldout are not given.',
    )
    calibration: str | None = flags.setting(
        None, 'JSONL of chats to learn from, or demo:NAME for a persona shipped here.'
    )
    heldout: str | None = flags.setting(
        None, 'Disjoint JSONL to measure on, or demo:NAME; none by default.'
    )
    lora_rank: int = flags.setting(
        0, 'Rank of LoRA adapters to train beside frozen weights; 0 trains all weights.'
    )
    lora_alpha: int = flags.setting(
        16, 'What adapters add is scaled by this, divided by the rank.'
    )
    lora_targets: str = flags.setting(
        ','.join(lora.TARGETS), 'The modules that have adapters, separated by commas.'
    )
    learning_rate: float | None = flags.setting(
        None,
        f'Peak learning rate of AdamW; by default {_FULL_RATE:g}, and {_LORA_RATE:g} '
        'with LoRA.',
        within='(0, 1000]',
    )
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
    micro_batches: int = flags.setting(
        4, 'Pieces a step is cut into to save memory; gradients are accumulated.'
    )
    remat: str = flags.setting(
        'dots',
        'What the backward pass recomputes: none, dots (all but the products with '
        'weights) or full (least memory).',
        choices=decoder.REMAT,
    )
    heldout_every: int = flags.setting(
        0, 'Steps between held-out measurements; 0 measures 4 times a run.'
    )
    checkpoint_every: int = flags.setting(
        50,
        'Steps between checkpoints. With all weights trained each takes 12 bytes a '
        'parameter; they are removed when the model is exported.',
    )
    log_every: int = flags.setting(1, 'Steps between lines of metrics.jsonl.')
    stop_after: int | None = flags.setting(
        None, 'Pause after this step, as if interrupted; for short trials.'
    )
    export_dtype: str | None = flags.setting(
        None,
        'Precision of the exported weights; by default the one that the model given '
        'is stored in, or float32 if that is quantised.',
        choices=tuple(hf_export.DTYPES),
    )

    def __post_init__(self) -> None:
        # Not the shared check: there are other ways to name a model here.
        if not self.output_dir:
            raise errors.InputError('--output_dir must be given.')
        given = [n for n in ('base_model', 'model', 'run') if getattr(self, n)]
        if len(given) != 1:
            raise errors.InputError(
                'Name what to recover with one of --model, --base_model (and --mask) '
                f'or --run; got {" and ".join(f"--{n}" for n in given) or "none"}.'
            )
        if self.mask and not self.base_model:
            raise errors.InputError('--mask needs --base_model.')
        if not self.calibration and not self.run:
            raise errors.InputError('--calibration must be given.')
        lora.parse_targets(self.lora_targets)
        settings.require(
            self,
            'be at least 1',
            lambda value: value >= 1,
            'max_length',
            'lora_alpha',
            'micro_batches',
            'checkpoint_every',
            'log_every',
            'stop_after',
        )
        settings.require(self, 'not be negative', lambda value: value >= 0, 'lora_rank')
        settings.require_seed(self)
        ranges.check(self)

    @property
    def peak_rate(self) -> float:
        """The learning rate given, or the method's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _LORA_RATE if self.lora_rank else _FULL_RATE

    def resolved(self) -> 'RecoverConfig':
        """These settings with what `run` stands for in its place.

        Raises:
            InputError: if it is no run directory with a learned mask.
        """
        if not self.run:
            return self
        run = trained_run.TrainedRun.open_finished(self.run)
        return dataclasses.replace(
            self,
            run=None,
            base_model=run.settings.base_model,
            mask=str(run.mask_file),
            calibration=self.calibration or run.calibration_source,
            heldout=self.heldout or run.heldout_source,
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
        # Sums in another order: the same run up to rounding, on other machines.
        'mesh',
    }
)
