"""The settings of `python -m ppjax.export`."""

import dataclasses

from ppjax.base import errors, flags, ranges, settings
from ppjax.exporting import options
from ppjax.exporting.gguf import types


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Flags of `python -m ppjax.export`."""

    output_dir: str = flags.setting(
        None,
        'Run directory whose mask is exported to its folder hf/; with --materialize or '
        '--from_keep_indices the folder to write to; with --model the one whose folder '
        'gguf/ is filled, by default that beside the model.',
        path=True,
    )
    materialize: bool = flags.setting(
        False, 'Export --mask applied to --base_model; needs no run directory.'
    )
    mask: str | None = flags.setting(
        None, 'A .pmask file, with --materialize.', path=True
    )
    mask_sparsity: float | None = settings.mask_sparsity_setting()
    from_keep_indices: str | None = flags.setting(
        None,
        'JSON of {"topk_indices": [[...] x layers]} to export, instead of a mask.',
        path=True,
    )
    base_model: str | None = flags.setting(
        None, "Model that the mask is applied to; by default the run's own.", path=True
    )
    model: str | None = flags.setting(
        None,
        'Instead: an exported directory, refitted or recovered or not, that is written '
        'as --gguf.',
        path=True,
    )
    neeko: str | None = flags.setting(
        None,
        'Instead: a neeko.safetensors of python -m ppjax.recover --neeko, of whose '
        'blocks those that suit --persona are merged into the model that they were '
        'learned on, which --base_model (and --mask) or --model name if it is not '
        'where it was.',
        path=True,
    )
    gate: str = flags.setting(
        options.NEAREST,
        'With --neeko: nearest takes the block of the persona whose text is nearest '
        "to --persona's, which is its own if it has one; mixture all blocks, with the "
        'softmax of how near each is.',
        choices=(options.NEAREST, options.MIXTURE),
    )
    gate_temperature: float = flags.setting(
        options.GATE_TEMPERATURE,
        'With --gate=mixture: what cosines are divided by before the softmax.',
        within='(0, 1000]',
    )
    gguf: str | None = flags.setting(
        None,
        'Also write files for llama.cpp and Ollama, to the folder gguf/ beside the '
        f'Hugging Face directory: {", ".join(types.TYPES)}, several with commas between '
        'them.',
    )
    gguf_widths: str = flags.setting(
        'own',
        'With --gguf, of layers of different widths: own writes them as they are '
        "(llama.cpp's architecture deci; not of Qwen3), filled with zeros in the place "
        'of what narrower ones lack, as the Hugging Face directory has them.',
        choices=('own', 'filled'),
    )
    persona: str | None = flags.setting(
        None,
        'With --gguf: the character card whose name goes into the names of files, and '
        'whose first message into the Modelfile; by default that of the run. With '
        '--neeko: the persona, a text, a file, a card or demo:NAME, or the digest by '
        'which results/recovery.json calls one that has a block.',
        path=True,
    )
    card: str | None = flags.setting(
        None,
        'Also write this character card (PNG, JSON or CHARX) back with the mask in it, '
        'to the folder card/ beside the Hugging Face directory. Such a card serves as '
        '--mask.',
        path=True,
    )
    new_card: str | None = flags.setting(
        None,
        'Instead of --card: the name of a character, of whom a card with the persona '
        'text and the mask is made.',
    )
    keep_indices: str | None = flags.setting(
        None, 'Also write the kept channels to this file, as JSON.', writes=True
    )
    export_dtype: str | None = options.export_dtype_setting()
    system_prompt: str | None = settings.system_prompt_setting()
    verify: bool = options.verify_setting(
        False,
        "with the masked dense model's; of --gguf with llama.cpp (if xllamacpp is "
        'installed) tokens, probabilities and a greedy answer, else every tensor',
    )
    verify_tolerance: float = options.verify_tolerance_setting()
    overwrite: bool = flags.setting(False, 'Replace what stands where the export goes.')

    def __post_init__(self) -> None:
        if self.neeko is not None:
            self._check_neeko()
            ranges.check(self)
            return
        if (self.gate, self.gate_temperature) != (
            options.NEAREST,
            options.GATE_TEMPERATURE,
        ):
            raise errors.InputError('--gate and --gate_temperature are of --neeko.')
        if self.gguf is not None:
            types.asked(self.gguf)
        elif self.persona is not None and self.new_card is None:
            raise errors.InputError(
                '--persona is of --gguf and --new_card; give one of them too.'
            )
        self._check_card()
        if self.model is not None:
            self._check_model()
            ranges.check(self)
            return
        settings.require_given(self, 'output_dir')
        if self.mask and self.from_keep_indices:
            raise errors.InputError(
                '--mask and --from_keep_indices both say which channels stay; '
                'give one of them.'
            )
        if self.mask and not self.materialize:
            raise errors.InputError(
                '--mask needs --materialize; without it the mask of the run directory '
                '--output_dir is exported.'
            )
        if self.materialize and not (self.mask or self.from_keep_indices):
            raise errors.InputError(
                '--materialize needs --mask or --from_keep_indices.'
            )
        if not self.from_run and not self.base_model:
            given = 'materialize' if self.materialize else 'from_keep_indices'
            raise errors.InputError(f'--{given} needs --base_model.')
        if self.mask_sparsity is not None and self.from_keep_indices:
            raise errors.InputError(
                '--mask_sparsity is of a mask; --from_keep_indices says which channels '
                'stay.'
            )
        ranges.check(self)

    def _check_card(self) -> None:
        if self.card is not None and self.new_card is not None:
            raise errors.InputError(
                '--card and --new_card are two ways to a card; give one of them.'
            )
        if self.wants_card and (self.model or self.from_keep_indices):
            other = 'model' if self.model else 'from_keep_indices'
            raise errors.InputError(
                f'A card carries a persona mask, and --{other} is none.'
            )
        if self.new_card is not None and not any(map(str.isalnum, self.new_card)):
            raise errors.InputError('--new_card must be a name.')

    def _check_neeko(self) -> None:
        settings.require_given(self, 'persona', 'output_dir')
        others = (
            *('materialize', 'from_keep_indices', 'gguf', 'card', 'new_card'),
            'keep_indices',
        )
        for name in others:
            if getattr(self, name) not in (None, False):
                raise errors.InputError(
                    f'--neeko writes a Hugging Face directory; --{name} has no meaning '
                    'beside it.'
                )
        if self.model and self.base_model:
            raise errors.InputError(
                '--model and --base_model both name what the blocks are of; give one.'
            )
        if self.mask and not self.base_model:
            raise errors.InputError('--mask needs --base_model beside --neeko.')

    @property
    def wants_card(self) -> bool:
        """Whether a card is to be written."""
        return self.card is not None or self.new_card is not None

    def _check_model(self) -> None:
        if self.gguf is None:
            raise errors.InputError(
                '--model is a Hugging Face directory already; give --gguf=TYPE to have '
                'it as GGUF.'
            )
        others = (
            *('materialize', 'mask', 'mask_sparsity', 'from_keep_indices'),
            *('base_model', 'keep_indices', 'export_dtype'),
        )
        for name in others:
            if getattr(self, name) not in (None, False):
                raise errors.InputError(
                    f'--model is pruned already and written as it is; --{name} has no '
                    'meaning beside it.'
                )

    @property
    def gguf_types(self) -> tuple[str, ...]:
        """Those of --gguf; none if there are none."""
        return () if self.gguf is None else types.asked(self.gguf)

    @property
    def from_run(self) -> bool:
        """Whether `output_dir` is a run directory and not the target itself."""
        return not (self.materialize or self.from_keep_indices or self.model)
