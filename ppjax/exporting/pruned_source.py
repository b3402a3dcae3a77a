"""What is trained or refitted on: a model's files, perhaps sliced by a mask."""

import dataclasses
import hashlib
import pathlib
from typing import Any, TypeVar

import numpy as np

from ppjax.base import errors, flags, reading
from ppjax.exporting import hf_export, model_card
from ppjax.exporting import source as export_source
from ppjax.masking import apply, pmask
from ppjax.models import base_model, loading
from ppjax.training import trained_run

Settings = TypeVar('Settings', bound=Any)


def run_setting() -> Any:
    """A field for --run of what goes on from mask learning; see `with_run_in_place`."""
    return flags.setting(
        None,
        'Instead: run directory of mask learning; its base model and mask are taken, '
        'and its data where --calibration or --heldout are not given.',
        path=True,
    )


def heldout_setting() -> Any:
    """A field for --heldout beside it."""
    return flags.setting(
        None, 'Disjoint JSONL to measure on, or demo:NAME; none by default.', path=True
    )


@dataclasses.dataclass(frozen=True)
class PrunedSource:
    """A model that something is done to.

    Attributes:
        files: as it lies on disk: tokenizer, licence, dense weights under a mask.
        model: the weights to start from; its reader slices where there is a mask.
        persona_mask: or None.
        system_prompt: the persona prompt that came with it; '' if none did.
    """

    files: base_model.BaseModel
    model: base_model.BaseModel
    persona_mask: pmask.PersonaMask | None
    system_prompt: str

    @property
    def stored_dtype(self) -> str:
        """The precision of exports unless told otherwise: that of the files.

        What gains were folded into is read as float32, whatever it is stored in.
        """
        return hf_export.default_dtype(self.files.reader)

    @property
    def hashes(self) -> dict[str, str]:
        """Beside the base model's fingerprint, what decides the weights."""
        if self.persona_mask is None:
            return {}
        bits = np.packbits(self.persona_mask.mask).tobytes()
        content = bits + self.persona_mask.gain_bytes()
        return {'mask': hashlib.sha256(content).hexdigest()}


def open_source(
    *,
    model: str | None = None,
    base_model_name: str = '',
    mask: str | None = None,
    mask_sparsity: float | None = None,
) -> PrunedSource:
    """Opens what settings name; no weights are read.

    Args:
        model: an exported directory.
        base_model_name: or instead a dense model.
        mask: a file, of the dense model; None for all of it.
        mask_sparsity: at which it is wanted; None for the one it names.

    Raises:
        InputError: if something is absent or unreadable, or the mask is another
            base's.
    """
    if model:
        files, system_prompt = apply.open_exported(model)
        return PrunedSource(files, files, None, system_prompt)
    files = base_model.open_base_model(base_model_name)
    if not mask:
        return PrunedSource(files, files, None, '')
    persona_mask = pmask.load_for(mask, files, sparsity=mask_sparsity)
    loading.check_tensors(files.reader, files.config)
    pruned = persona_mask.pruned(files)
    return PrunedSource(files, pruned, persona_mask, persona_mask.system_prompt)


def with_run_in_place(settings: Settings) -> Settings:
    """Settings with what their `run` stands for: its base, mask and data.

    Raises:
        InputError: if it is no run directory with a learned mask.
    """
    if not settings.run:
        return settings
    run = trained_run.TrainedRun.open_finished(settings.run)
    return dataclasses.replace(
        settings,
        run=None,
        base_model=run.settings.base_model,
        mask=str(run.mask_file),
        calibration=settings.calibration or run.calibration_source,
        heldout=settings.heldout or run.heldout_source,
    )


def refuse_inside(output_dir: str, source: PrunedSource, mask: str | None) -> None:
    """Refuses to write over what is read: --overwrite would delete it.

    Raises:
        InputError: naming what lies in the run directory.
    """
    output = pathlib.Path(output_dir).expanduser().resolve()
    for path in (source.files.reader.path, mask):
        read = None if path is None else pathlib.Path(path).expanduser()
        if read is not None and read.resolve().is_relative_to(output):
            raise errors.InputError(
                f'{read} lies in --output_dir={output_dir}; give what is made of it a '
                'folder of its own.'
            )


def card_before(
    source: PrunedSource, dtype: str, command: str, *, has_template: bool
) -> str:
    """The model card of what something was done to.

    Args:
        source: the model.
        dtype: of the weights that the card comes with.
        command: what was run.
        has_template: whether the tokenizer has a chat template.
    """
    files = source.files
    if source.persona_mask is None:
        folder = files.reader.path
        if folder.is_dir() and (folder / 'README.md').is_file():
            data = reading.read_bytes(folder / 'README.md', 'Model card')
            return data.decode('utf-8', 'replace')
        return model_card.bare(files.name, model_card.inherited_license(files.reader))
    pruned = export_source.ExportSource(files, source.persona_mask, ())
    return model_card.render(
        export_source.facts(pruned, dtype, command, has_template=has_template)
    )
