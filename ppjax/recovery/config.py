"""The settings of `python -m ppjax.recover`."""

import dataclasses
import pathlib

from ppjax.base import errors, flags, ranges, settings
from ppjax.compensation import results as compensation
from ppjax.exporting import options, pruned_source
from ppjax.learning import config
from ppjax.recovery import gains as gains_lib
from ppjax.recovery import lora, rates, records

# Full finetuning takes a step in pieces to have room for its moments; gains have few,
# and every piece runs the shared prefix again.
_PIECES = {'full': 4, 'lora': 4, 'neeko': 4, 'gains': 1}


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
    mask_sparsity: float | None = settings.mask_sparsity_setting()
    model: str | None = flags.setting(
        None,
        'Instead: directory of a model that is pruned already, as exported.',
        path=True,
    )
    run: str | None = pruned_source.run_setting()
    calibration: str | None = flags.setting(
        None,
        'JSONL of chats to learn from, or demo:NAME for a persona shipped here.',
        path=True,
    )
    heldout: str | None = pruned_source.heldout_setting()
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
    neeko: bool = flags.setting(
        False,
        'Train a block of --lora_rank for every persona of --calibration, each from its '
        'own rows, and a gate between them.',
    )
    neeko_start: str | None = flags.setting(
        None,
        'With --neeko: a neeko.safetensors of the same model, whose blocks stay as they '
        'are; those of the personas of --calibration are added.',
        path=True,
    )
    gains: bool = flags.setting(
        False,
        'Train only what multiplies channels, attention outputs and norms, beside '
        'frozen weights; it is folded into them at the end.',
    )
    gain_targets: str = flags.setting(
        ','.join(gains_lib.TARGETS),
        'With --gains: what is multiplied, separated by commas.',
    )
    unlikelihood: float = flags.setting(
        0.0,
        'Weight of a second loss, which makes less likely what the model repeats in '
        'answers that it gives before the first step; 0 for none.',
        within='[0, 100]',
    )
    learning_rate: float | None = flags.setting(
        None,
        f'Peak learning rate of AdamW; by default {rates.text()}.',
        within='(0, 1000]',
    )
    micro_batches: int | None = flags.setting(
        None,
        'Pieces a step is cut into to save memory; gradients are accumulated. By '
        f'default {_PIECES["full"]}, and {_PIECES["gains"]} with --gains.',
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
    export_dtype: str | None = options.export_dtype_setting('the model given')
    system_prompt: str | None = settings.system_prompt_setting()
    verify: bool = options.verify_setting(False, "with the recovered model's")
    verify_tolerance: float = options.verify_tolerance_setting()

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
        if self.mask_sparsity is not None and not (self.mask or self.run):
            raise errors.InputError('--mask_sparsity needs --mask or --run.')
        if not self.run:
            settings.require_given(self, 'calibration')
        lora.parse_targets(self.lora_targets)
        gains_lib.parse_targets(self.gain_targets)
        self.check_prompts()
        ranges.check(self)
        if self.gains and self.lora_rank:
            raise errors.InputError(
                '--gains and --lora_rank are two ways to recover; give one of them.'
            )
        self._check_neeko()
        default = config.StepSettings.weight_decay
        if self.gains and self.weight_decay not in (0, default):
            raise errors.InputError(
                '--weight_decay draws towards 0, and gains that change nothing are 1; '
                'with --gains there is none, so leave it out.'
            )

    def _check_neeko(self) -> None:
        if not self.neeko:
            if self.neeko_start:
                raise errors.InputError('--neeko_start is of --neeko.')
            return
        if not self.lora_rank:
            raise errors.InputError(
                "--neeko needs --lora_rank, the rank of one persona's block."
            )
        for name in ('verify', 'export_dtype', 'system_prompt'):
            if getattr(self, name) not in (None, False):
                raise errors.InputError(
                    f'--neeko exports no model, so --{name} says nothing; python -m '
                    'ppjax.export --neeko=FILE does, and takes it.'
                )

    @property
    def method(self) -> str:
        """What is trained: all weights (full), adapters (lora), neeko or gains."""
        if self.gains:
            return 'gains'
        if self.neeko:
            return 'neeko'
        return 'lora' if self.lora_rank else 'full'

    @property
    def pieces(self) -> int:
        """The micro-batches given, or the method's own."""
        return self.micro_batches or _PIECES[self.method]

    def resolved(self) -> 'RecoverConfig':
        """These settings with what `run` stands for in its place.

        Where its export is refitted (`compensation`) or recovered, it is gone on from,
        unless another sparsity of the mask is asked for.

        Raises:
            InputError: if it is no run directory with a learned mask.
        """
        found = pruned_source.with_run_in_place(self)
        if self.mask_sparsity is not None:
            return found
        folder = pathlib.Path(self.run or '').expanduser()
        if self.run and (compensation.of_run(folder) or records.of_run(folder)):
            model = str(folder / 'hf')
            found = dataclasses.replace(
                self,
                run=None,
                model=model,
                calibration=found.calibration,
                heldout=found.heldout,
            )
        return dataclasses.replace(found, micro_batches=self.pieces)


RESUMABLE = config.RESUMABLE | frozenset({'verify', 'verify_tolerance'})
# Unset they are no part of a run's identity: runs were made before there were any.
LATER = (
    *('prompt_dropout', 'short_prompt', 'system_prompt'),
    *('gains', 'gain_targets', 'unlikelihood', 'neeko', 'neeko_start'),
)
