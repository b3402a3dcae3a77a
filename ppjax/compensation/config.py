"""The settings of `python -m ppjax.compensate`."""

import dataclasses
import math

from ppjax.base import errors, flags, ranges, settings
from ppjax.data import order
from ppjax.exporting import options, pruned_source

# What a layer's FFN is to add: what brings the pruned model's stream to the dense
# one's; what the dense FFN adds to its own stream; what it would add to the pruned one.
TARGETS = ('residual', 'ffn', 'own_ffn')


@dataclasses.dataclass(frozen=True)
class CompensateConfig(settings.CommonSettings):
    """How the rows of `down_proj` that a mask keeps are refitted."""

    base_model: str = flags.setting(
        None,
        'The dense model, as for python -m ppjax.train; needs --mask or --sparsity.',
        path=True,
    )
    mask: str | None = flags.setting(
        None, 'A .pmask of FFN channels to prune --base_model by.', path=True
    )
    mask_sparsity: float | None = settings.mask_sparsity_setting()
    sparsity: float | None = flags.setting(
        None,
        'Instead of --mask: share of FFN channels to remove from every layer, those '
        'with the smallest activations on --calibration.',
        within='[0, 1)',
    )
    align: int = flags.setting(
        64,
        'The number of channels that --sparsity keeps is rounded to a multiple of '
        'this; 1 keeps it exact.',
        least=1,
    )
    run: str | None = pruned_source.run_setting()
    calibration: str | None = flags.setting(
        None,
        'JSONL of chats to fit on, several separated by commas, or demo:NAME for a '
        'persona shipped here.',
        path=True,
    )
    heldout: str | None = pruned_source.heldout_setting()
    own_answers: int = flags.setting(
        0,
        'Fit on so many answers of the dense model under the persona prompt as well, '
        'to questions of --instructions: the method needs no other answers.',
    )
    instructions: str | None = flags.setting(
        None,
        'For --own_answers: general instructions, as for python -m ppjax.run; their '
        'answers are not used.',
        path=True,
    )
    target: str = flags.setting(
        'residual',
        'What a layer is fitted to add: what brings the pruned stream to the dense one '
        '(residual), or what the dense FFN adds, to the dense stream (ffn) or to the '
        'pruned one (own_ffn).',
        choices=TARGETS,
    )
    damping: str = flags.setting(
        '0.001,0.01,0.1,1',
        'How strongly rows are held where they are, as shares of the mean square of an '
        'activation, separated by commas. Each layer takes the one that fits the texts '
        'held back best.',
    )
    damping_share: float = flags.setting(
        0.15,
        'Share of the examples that is held back to choose --damping on; then all are '
        'fitted.',
        within='(0, 1)',
    )
    bias: bool = flags.setting(
        False,
        'Fit a bias of down_proj as well, which a Llama alone can hold (mlp_bias).',
    )
    batch_size: int = flags.setting(
        16, 'Examples that are run at a time.', within=order.BATCH_SIZES
    )
    export_dtype: str | None = options.export_dtype_setting()
    verify: bool = options.verify_setting(True, "with the refitted model's")
    verify_tolerance: float = options.verify_tolerance_setting()
    stop_after: int | None = flags.setting(
        None, 'Pause after this layer, as if interrupted; for short trials.', least=1
    )

    def __post_init__(self) -> None:
        # Not the shared check: --run names a model as well.
        settings.require_given(self, 'output_dir')
        if bool(self.run) == bool(self.base_model):
            raise errors.InputError(
                'Name what to refit with --run, or with --base_model and --mask or '
                '--sparsity.'
            )
        ways = (self.run, self.mask, self.sparsity is not None)
        if sum(map(bool, ways)) != 1:
            raise errors.InputError(
                'Say what is pruned with one of --mask, --sparsity (both of '
                '--base_model) or --run.'
            )
        if self.mask_sparsity is not None and self.sparsity is not None:
            raise errors.InputError('--mask_sparsity needs --mask or --run.')
        if not self.run:
            settings.require_given(self, 'calibration')
        if self.own_answers:
            settings.require_given(self, 'instructions')
        self.dampings()
        ranges.check(self)

    def dampings(self) -> list[float]:
        """The numbers of `damping`.

        Raises:
            InputError: if one is none, or not positive.
        """
        found = []
        for part in self.damping.split(','):
            try:
                found.append(float(part))
            except ValueError:
                found.append(math.nan)
            if not 0 < found[-1] < math.inf:
                raise errors.InputError(
                    f'--damping must be positive numbers, got {part.strip()!r}.'
                )
        return found

    def resolved(self) -> 'CompensateConfig':
        """These settings with what `run` stands for in its place.

        Raises:
            InputError: if it is no run directory with a learned mask.
        """
        return pruned_source.with_run_in_place(self)


# What may change between two calls on one run directory without making another run.
RESUMABLE = frozenset(
    {'output_dir', 'overwrite', 'mesh', 'stop_after', 'verify', 'verify_tolerance'}
)
