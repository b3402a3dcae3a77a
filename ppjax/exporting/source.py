"""What is exported: a base model, a mask, and what is known of both."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from ppjax.exporting import config as config_lib
from ppjax.exporting import hf_export, model_card, published
from ppjax.learning import references
from ppjax.masking import keep_indices, pmask
from ppjax.models import base_model
from ppjax.training import config as train_config
from ppjax.training import trained_run


@dataclasses.dataclass(frozen=True)
class ExportSource:
    """What is exported: a base model, a mask, and what is known of how it was learned.

    `asked` is the share to remove that was asked for, if known.
    """

    base: base_model.BaseModel
    persona_mask: pmask.PersonaMask
    files: tuple[pathlib.Path, ...]
    trained: train_config.TrainConfig | None = None
    calibration_rows: int | None = None
    likelihood: dict[str, Any] | None = None
    asked: float | None = None

    @property
    def pruned(self) -> base_model.BaseModel:
        """What is left of the base model, still unread."""
        return self.persona_mask.pruned(self.base)

    def identity(self, dtype: str) -> dict[str, str]:
        """What decides every exported weight."""
        mask = self.persona_mask
        bits = np.packbits(mask.mask, axis=-1, bitorder='little').tobytes()
        return {
            'base_fingerprint': mask.base_fingerprint,
            'mask_sha256': hashlib.sha256(bits + mask.gain_bytes()).hexdigest(),
            'dtype': dtype,
        }


def open_source(cfg: config_lib.ExportConfig) -> ExportSource:
    """Opens what the settings name; no weights are read.

    Raises:
        InputError: if something is absent or unreadable, or the mask is another
            base's.
    """
    return _from_run(cfg) if cfg.from_run else _from_files(cfg)


def require_run(cfg: config_lib.ExportConfig) -> None:
    """Raises:
    InputError: if there is no run directory with a learned mask.
    """
    if cfg.base_model is None or trained_run.TrainedRun.is_at(cfg.output_dir):
        trained_run.TrainedRun.open_finished(cfg.output_dir, flag='output_dir')


def _from_run(cfg: config_lib.ExportConfig) -> ExportSource:
    if cfg.base_model and not trained_run.TrainedRun.is_at(cfg.output_dir):
        file = pathlib.Path(cfg.output_dir).expanduser() / 'mask.pmask'
        base = base_model.open_base_model(cfg.base_model)
        return _with_mask(base, file, cfg.mask_sparsity)
    run = trained_run.TrainedRun.open_finished(cfg.output_dir, flag='output_dir')
    base = base_model.open_base_model(cfg.base_model or run.settings.base_model)
    found = dataclasses.replace(
        _with_mask(base, run.mask_file, cfg.mask_sparsity),
        trained=run.settings,
        calibration_rows=run.calibration_count(),
    )
    if cfg.mask_sparsity is not None:
        # What was measured is the mask at the run's own sparsity.
        return dataclasses.replace(found, asked=cfg.mask_sparsity)
    return dataclasses.replace(
        found,
        asked=run.settings.sparsity,
        likelihood=references.at_one_sparsity(run.result('likelihood')),
    )


def _from_files(cfg: config_lib.ExportConfig) -> ExportSource:
    base = base_model.open_base_model(str(cfg.base_model))
    if cfg.mask:
        file = pathlib.Path(cfg.mask).expanduser()
        return _with_mask(base, file, cfg.mask_sparsity)
    file = pathlib.Path(str(cfg.from_keep_indices)).expanduser()
    mask = keep_indices.load(file, base.config.num_layers, base.config.d_ff)
    # Of nobody: neither persona nor prompt is known.
    kept = pmask.PersonaMask(mask, base.name, base.fingerprint(), persona_sha256='')
    return ExportSource(base, kept, (base.reader.path, file))


def _with_mask(
    base: base_model.BaseModel, file: pathlib.Path, sparsity: float | None
) -> ExportSource:
    mask = pmask.load_for(file, base, sparsity=sparsity)
    return ExportSource(base, mask, (base.reader.path, file))


def facts(
    source: ExportSource, dtype: str, command: str, *, has_template: bool
) -> model_card.Facts:
    """What the card of an export tells.

    Args:
        source: what is exported.
        dtype: of its weights.
        command: what was run.
        has_template: whether the tokenizer has a chat template.
    """
    trained, mask = source.trained, source.persona_mask
    dense = hf_export.parameter_count(source.base)
    pruned = hf_export.parameter_count(source.pruned)
    width = hf_export.DTYPES[dtype][0].itemsize
    return model_card.Facts(
        base_name=source.base.name,
        base_fingerprint=mask.base_fingerprint,
        license=model_card.inherited_license(source.base.reader),
        system_prompt=mask.system_prompt,
        chat_template=has_template,
        num_layers=source.base.config.num_layers,
        d_ff=source.base.config.d_ff,
        keep=mask.keep,
        dtype=dtype,
        parameters=(dense, pruned),
        weight_bytes=(dense * width, pruned * width),
        command=command,
        sparsity=source.asked,
        likelihood=source.likelihood,
        calibration=trained.calibration if trained else None,
        calibration_rows=source.calibration_rows,
        settings=published.settings_text(trained) if trained else '',
        kept_blocks=tuple(mask.indices()[0].tolist())
        if mask.granularity == pmask.BLOCKS
        else None,
        gains=mask.has_gains,
        widths=None if mask.kept is None else tuple(mask.kept.sum(axis=1).tolist()),
    )
