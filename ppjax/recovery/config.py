"""The settings of `python -m ppjax.recover`."""

import dataclasses
import pathlib

from ppjax.base import errors, flags, ranges, settings
from ppjax.compensation import results as compensation
from ppjax.exporting import hf_export, pruned_source
from ppjax.learning import config
from ppjax.recovery import lora

# Of adapters larger: they start from nothing.
_FULL_RATE, _LORA_RATE = 5e-5, 1e-4


@dataclasses.dataclass(frozen=True)
class RecoverConfig(config.StepSettings):
    """How a model is finetuned after pruning; the defaults are the paper's (A.1)."""

    base_model: str = flags.setting(
        None,
        'The dense model, as for python -m ppjax.train; with --mask it is pruned first.',
        path=True,
    )
    mask: str | None = flags.setting(
        None, 'A .pmask to prune --base_model by.', path=True
    )
    model: str | None = flags.setting(
        None,
        'Instead: directory of a model that is pruned already, as exported.',
        path=True,
    )
    run: str | None = flags.setting(
        None,
        'Instead: run directory of mask learning; its base model and mask are taken, '
        'and its data where --calibration or --heldout are not given.',
        path=True,
    )
    calibration: str | None = flags.setting(
        None,
        'JSONL of chats to learn from, or demo:NAME for a persona shipped here.',
        path=True,
    )
    heldout: str | None = flags.setting(
        None, 'Disjoint JSONL to measure on, or demo:NAME; none by default.', path=True
    )
    lora_rank: int = flags.setting(
        0,
        'Rank of LoRA adapters to train beside frozen weights; 0 trains all weights.',
        least=0,
    )
    lora_alpha: int = flags.setting(
        16, 'What adapters add is scaled by this, divided by the rank.', least=1
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
    micro_batches: int = flags.setting(
        4,
        'Pieces a step is cut into to save memory; gradients are accumulated.',
        least=1,
    )
    heldout_every: int = flags.setting(
        0, 'Steps between held-out measurements; 0 measures 4 times a run.'
    )
    checkpoint_every: int = flags.setting(
        50,
        'Steps between checkpoints. With all weights trained each takes 12 bytes a '
        'parameter; they are removed when the model is exported.',
        least=1,
    )
    export_dtype: str | None = flags.setting(
        None,
        'Precision of the exported weights; by default the one that the model given '
        'is stored in, or float32 if that is quantised.',
        choices=tuple(hf_export.DTYPES),
    )

    system_prompt: str | None = settings.system_prompt_setting()

    def __post_init__(self) -> None:
        # Not the shared check: there are other ways to name a model here.
        settings.require_given(self, 'output_dir')
        given = [n for n in ('base_model', 'model', 'run') if getattr(self, n)]
        if len(given) != 1:
            raise errors.InputError(
                'Name what to recover with one of --model, --base_model (and --mask) '
                f'or --run; got {" and ".join(f"--{n}" for n in given) or "none"}.'
            )
        if self.mask and not self.base_model:
            raise errors.InputError('--mask needs --base_model.')
        if not self.run:
            settings.require_given(self, 'calibration')
        lora.parse_targets(self.lora_targets)
        self.check_prompts()
        ranges.check(self)

    @property
    def peak_rate(self) -> float:
        """The learning rate given, or the method's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _LORA_RATE if self.lora_rank else _FULL_RATE

    def resolved(self) -> 'RecoverConfig':
        """These settings with what `run` stands for in its place.

        Where its export is refitted (`compensation`), that is what is recovered.

        Raises:
            InputError: if it is no run directory with a learned mask.
        """
        found = pruned_source.with_run_in_place(self)
        if self.run and compensation.of_run(pathlib.Path(self.run).expanduser()):
            model = str(pathlib.Path(self.run).expanduser() / 'hf')
            return dataclasses.replace(
                self,
                run=None,
                model=model,
                calibration=found.calibration,
                heldout=found.heldout,
            )
        return found


RESUMABLE = config.RESUMABLE
# Unset they are no part of a run's identity: runs were made before there were any.
LATER = ('prompt_dropout', 'short_prompt', 'system_prompt')
