"""What is exported: a base model, a mask, and what is known of both."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from ppjax import demo
from ppjax.base import errors, flags, run_directory
from ppjax.exporting import config as config_lib
from ppjax.masking import granularity as granularity_lib
from ppjax.masking import keep_indices, pmask
from ppjax.models import base_model, safetensors_reader
from ppjax.training import config as train_config


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported: a base model, bool [R, U], and what is known of the mask."""

    base: base_model.BaseModel
    fingerprint: str
    mask: np.ndarray
    system_prompt: str
    files: tuple[pathlib.Path, ...]
    kind: granularity_lib.Granularity = granularity_lib.CHANNELS
    trained: train_config.TrainConfig | None = None
    calibration_rows: int | None = None
    likelihood: dict[str, Any] | None = None

    @property
    def keep(self) -> int:
        return int(self.mask[0].sum())

    @property
    def pruned(self) -> base_model.BaseModel:
        """What is left of the base model, still unread."""
        return self.kind.pruned(self.base, self.mask)

    def identity(self, dtype: str) -> dict[str, str]:
        """What decides every exported weight."""
        bits = np.packbits(self.mask, axis=-1, bitorder='little')
        return {
            'base_fingerprint': self.fingerprint,
            'mask_sha256': hashlib.sha256(bits.tobytes()).hexdigest(),
            'dtype': dtype,
        }


def open_source(cfg: config_lib.ExportConfig) -> Source:
    """Opens what the settings name; no weights are read.

    Raises:
        InputError: if something is absent or unreadable, or the mask is another
            base's.
    """
    return _from_run(cfg) if cfg.from_run else _from_files(cfg)


def require_run(run: pathlib.Path) -> None:
    """Raises:
    InputError: if there is no run directory with a learned mask.
    """
    if not run.is_dir():
        raise errors.InputError(f'Run directory {str(run)!r} does not exist.')
    if not (run / 'mask.pmask').is_file():
        raise errors.InputError(
            f'Run directory {str(run)!r} has no mask.pmask: it is another directory, '
            'or its mask is not learned yet.'
        )


def _from_run(cfg: config_lib.ExportConfig) -> Source:
    run = pathlib.Path(cfg.output_dir).expanduser()
    require_run(run)
    mask_file = run / 'mask.pmask'
    trained = None
    recorded = run_directory.settings_file(run, 'train')
    if cfg.base_model is None or recorded.is_file():
        trained = flags.from_flagfile(train_config.TrainConfig, recorded)
    name = cfg.base_model or (trained.base_model if trained else '')
    source = _with_mask(base_model.open_base_model(name), mask_file)
    return dataclasses.replace(
        source,
        trained=trained,
        calibration_rows=_calibration_rows(run, trained) if trained else None,
        likelihood=read_if_there(run / 'results' / 'likelihood.json'),
    )


def _from_files(cfg: config_lib.ExportConfig) -> Source:
    base = base_model.open_base_model(str(cfg.base_model))
    if cfg.mask:
        return _with_mask(base, pathlib.Path(cfg.mask).expanduser())
    file = pathlib.Path(str(cfg.from_keep_indices)).expanduser()
    mask = keep_indices.load(file, base.config.num_layers, base.config.d_ff)
    return Source(base, base.fingerprint(), mask, '', (base.reader.path, file))


def _with_mask(base: base_model.BaseModel, file: pathlib.Path) -> Source:
    persona_mask = pmask.load(file)
    fingerprint = base.fingerprint()
    persona_mask.check_base(fingerprint, base.config.num_layers, base.config.d_ff)
    return Source(
        base,
        fingerprint,
        persona_mask.mask,
        persona_mask.system_prompt,
        (base.reader.path, file),
        persona_mask.kind,
    )


def read_if_there(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object that may not be there."""
    return safetensors_reader.read_json(path) if path.exists() else None


def _calibration_rows(
    run: pathlib.Path, trained: train_config.TrainConfig
) -> int | None:
    """Rows of the run's own copy, else of the file it read; None if neither is left."""
    copy = run / 'calibration' / 'train.jsonl'
    source = str(copy) if copy.is_file() else trained.calibration
    try:
        return len(demo.read_rows(source, split='train'))
    except errors.InputError:
        return None
