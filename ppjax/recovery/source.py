"""What recovery starts from: a model's files, perhaps sliced by a mask."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from ppjax.base import errors, reading
from ppjax.exporting import model_card
from ppjax.exporting import source as export_source
from ppjax.masking import apply, pmask
from ppjax.models import base_model, loading
from ppjax.recovery import config as config_lib


@dataclasses.dataclass(frozen=True)
class RecoverySource:
    """A model to recover.

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
    def hashes(self) -> dict[str, str]:
        """Beside the base model's fingerprint, what decides the weights."""
        if self.persona_mask is None:
            return {}
        bits = np.packbits(self.persona_mask.mask).tobytes()
        content = bits + self.persona_mask.gain_bytes()
        return {'mask': hashlib.sha256(content).hexdigest()}


def open_source(cfg: config_lib.RecoverConfig) -> RecoverySource:
    """Opens what resolved settings name; no weights are read.

    Raises:
        InputError: if something is absent or unreadable, or the mask is another
            base's.
    """
    if cfg.model:
        files, system_prompt = apply.open_exported(cfg.model)
        return RecoverySource(files, files, None, system_prompt)
    files = base_model.open_base_model(cfg.base_model)
    if not cfg.mask:
        return RecoverySource(files, files, None, '')
    persona_mask = pmask.load_for(cfg.mask, files)
    loading.check_tensors(files.reader, files.config)
    model = persona_mask.pruned(files)
    return RecoverySource(files, model, persona_mask, persona_mask.system_prompt)


def refuse_inside_output(cfg: config_lib.RecoverConfig, source: RecoverySource) -> None:
    """Refuses to write over what is read: --overwrite would delete it.

    Raises:
        InputError: naming what lies in the run directory.
    """
    output = pathlib.Path(cfg.output_dir).expanduser().resolve()
    for path in (source.files.reader.path, cfg.mask):
        read = None if path is None else pathlib.Path(path).expanduser()
        if read is not None and read.resolve().is_relative_to(output):
            raise errors.InputError(
                f'{read} lies in --output_dir={cfg.output_dir}; give recovery a folder '
                'of its own.'
            )


def card_before(
    source: RecoverySource, dtype: str, command: str, *, has_template: bool
) -> str:
    """The model card of what recovery started from.

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
