"""The settings of `python -m ppjax.export`."""

import dataclasses

from ppjax.base import errors, flags, ranges, settings
from ppjax.exporting import options


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Flags of `python -m ppjax.export`."""

    output_dir: str = flags.setting(
        None,
        'Run directory whose mask is exported to its folder hf/; with --materialize or '
        '--from_keep_indices the folder to write to.',
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
    keep_indices: str | None = flags.setting(
        None, 'Also write the kept channels to this file, as JSON.', writes=True
    )
    export_dtype: str | None = options.export_dtype_setting()
    system_prompt: str | None = settings.system_prompt_setting()
    verify: bool = options.verify_setting(False, "with the masked dense model's")
    verify_tolerance: float = options.verify_tolerance_setting()
    overwrite: bool = flags.setting(False, 'Replace what stands where the export goes.')

    def __post_init__(self) -> None:
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

    @property
    def from_run(self) -> bool:
        """Whether `output_dir` is a run directory and not the target itself."""
        return not (self.materialize or self.from_keep_indices)
