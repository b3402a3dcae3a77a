"""A run of mask learning, as later commands find it on disk."""

import dataclasses
import pathlib
from typing import Any

from ppjax import demo
from ppjax.base import errors, flags, json_lines, run_directory
from ppjax.data import calibration
from ppjax.masking import pmask
from ppjax.models import base_model as base_model_lib
from ppjax.training import config as config_lib


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run directory holds; files are read when they are asked for.

    Attributes:
        path: of the run directory.
        settings: of its mask learning, also where that was a stage of more.
    """

    path: pathlib.Path
    settings: config_lib.TrainConfig

    @classmethod
    def is_at(cls, path: str | pathlib.Path) -> bool:
        """Whether a folder holds the settings of a run."""
        folder = pathlib.Path(path).expanduser()
        return run_directory.settings_file(folder, 'train').is_file()

    @classmethod
    def open(cls, path: str | pathlib.Path, *, flag: str = 'run') -> 'TrainedRun':
        """Opens a run directory, finished or not.

        Args:
            path: of the folder.
            flag: that named it, for what is said of others.

        Raises:
            InputError: if it is no run of mask learning, or its settings are damaged.
        """
        folder = pathlib.Path(path).expanduser()
        if not folder.is_dir():
            raise errors.InputError(f'--{flag}={path}: run directory does not exist.')
        recorded = run_directory.settings_file(folder, 'train')
        if not recorded.is_file():
            raise errors.InputError(
                f'--{flag}={path} is no run directory: it has no config.flags, which '
                'python -m ppjax.train writes.'
            )
        try:
            settings = flags.from_flagfile(config_lib.TrainConfig, recorded)
        except errors.InputError as error:
            raise errors.InputError(
                f'--{flag}={path} is no run of mask learning, or is damaged: {error}'
            ) from error
        return cls(folder, settings)

    @classmethod
    def open_finished(
        cls, path: str | pathlib.Path, *, flag: str = 'run'
    ) -> 'TrainedRun':
        """Opens a run directory whose mask is learned; otherwise as `open`."""
        run = cls.open(path, flag=flag)
        if run.is_finished:
            return run
        if run.settings.personas:
            name = run.settings.persona_names[0]
            raise errors.InputError(
                f'--{flag}={path} holds a run of several personas; name one of them, '
                f'as {run.settings.of_persona(name).output_dir}.'
            )
        raise errors.InputError(
            f'--{flag}={path} has no mask yet (mask.pmask); wait for the run to end, or '
            'go on with it by its own command.'
        )

    @property
    def mask_file(self) -> pathlib.Path:
        """Where the learned mask is, once it is."""
        return self.path / 'mask.pmask'

    @property
    def is_finished(self) -> bool:
        """Whether the mask is learned."""
        return self.mask_file.is_file()

    @property
    def exported(self) -> pathlib.Path | None:
        """The exported model's folder, if it is there."""
        folder = self.path / 'hf'
        return folder if (folder / 'config.json').is_file() else None

    @property
    def calibration_source(self) -> str:
        """What it learned from, where that is now."""
        return self._now_at(self.settings.calibration, 'train')

    @property
    def heldout_source(self) -> str | None:
        """What it was measured on, where that is now; None if on nothing."""
        recorded = self.settings.heldout
        return self._now_at(recorded, 'test') if recorded else None

    def _now_at(self, recorded: str, split: str) -> str:
        """The run's own copy if that was read, wherever it was, or else is gone."""
        copy = self.path / 'calibration' / f'{split}.jsonl'
        own = pathlib.Path(recorded).parts[-2:] == copy.parts[-2:]
        if recorded.startswith(demo.SCHEME) or not copy.is_file():
            return recorded
        gone = any(
            not pathlib.Path(part.strip()).expanduser().exists()
            for part in recorded.split(',')
        )
        return str(copy) if own or gone else recorded

    def mask(self) -> pmask.PersonaMask:
        """The learned mask."""
        return pmask.load(self.mask_file)

    def base_model(self) -> base_model_lib.BaseModel:
        """The dense model that it learned on; no weights are read."""
        return base_model_lib.open_base_model(self.settings.base_model)

    def heldout_rows(self) -> list[calibration.Row]:
        """The rows of `heldout_source`; none if there is none."""
        source = self.heldout_source
        return demo.read_rows(source, split='test') if source else []

    def calibration_rows(self) -> list[calibration.Row]:
        """The rows of `calibration_source`.

        Raises:
            InputError: if they are no more.
        """
        return demo.read_rows(self.calibration_source, split='train')

    def calibration_count(self) -> int | None:
        """How many rows it learned from; None if they are no more."""
        try:
            return len(self.calibration_rows())
        except errors.InputError:
            return None

    def result(self, name: str) -> dict[str, Any] | None:
        """A result's JSON object; None if it is not there.

        Raises:
            InputError: if it is damaged.
        """
        path = self.path / 'results' / f'{name}.json'
        if not path.exists():
            return None
        try:
            return json_lines.read_object(path, 'Result')
        except errors.InputError as error:
            raise errors.InputError(f'{path} is damaged: {error}') from error
