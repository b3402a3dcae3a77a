"""The run directory: what a run read, made and measured, and whether it may go on."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import datetime
import json
import pathlib
import shutil
from typing import Any, TypeVar

from ppjax.base import atomic, errors, flags, processes

Settings = TypeVar('Settings')

_CONFIG = 'config.flags'
_INPUTS = 'inputs.json'
_STATUS = 'status.json'
_STAGES = 'stages'


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def settings_file(run: str | pathlib.Path, stage: str) -> pathlib.Path:
    """Where a stage's settings are recorded: its own file, or the whole run's."""
    own = pathlib.Path(run) / _STAGES / f'{stage}.flags'
    return own if own.exists() else pathlib.Path(run) / _CONFIG


class RunDirectory:
    """One run's folder. Its settings and inputs are fixed when it is first opened."""

    def __init__(self, path: str | pathlib.Path, *, stage: str | None = None):
        """Args:
        path: of the folder; it may not exist yet.
        stage: opens one stage of a run of several, which has records of its own
            under `stages/`.
        """
        self.path = pathlib.Path(path)
        self._is_stage = stage is not None
        if stage is None:
            self._config, self._inputs = self.path / _CONFIG, self.path / _INPUTS
        else:
            self._config = self.path / _STAGES / f'{stage}.flags'
            self._inputs = self.path / _STAGES / f'{stage}.inputs.json'
        self._status: dict[str, Any] = {}

    def open(
        self,
        settings: Any,
        inputs: dict[str, str],
        *,
        resumable: frozenset[str],
        overwrite: bool,
        makes: Sequence[str] = (),
    ) -> bool:
        """Starts a run here, or goes on with the one found.

        All processes of a run must have the folder in common.

        Args:
            settings: the dataclass of flags.
            inputs: name -> content hash of what the run reads.
            resumable: settings that may differ from the run found.
            overwrite: discard the run found instead; of a stage only if it is
                another one, so that what still holds is used again.
            makes: files and folders that a stage makes, all that it may discard.

        Returns:
            Whether a run was found and goes on.

        Raises:
            InputError: if another run is here, naming what differs, or the folder
                holds other things, or another process does not find it.
        """
        found = processes.first_decides(
            lambda: self._open(
                settings, inputs, resumable=resumable, overwrite=overwrite, makes=makes
            )
        )
        if not processes.everywhere(self._config.exists()):
            raise errors.InputError(
                f'--output_dir={self.path}: not all processes find this folder; give '
                'one on a disk that they share.'
            )
        return found

    def _open(
        self,
        settings: Any,
        inputs: dict[str, str],
        *,
        resumable: frozenset[str],
        overwrite: bool,
        makes: Sequence[str],
    ) -> bool:
        if overwrite and not self._is_stage and self.path.exists():
            self._refuse_foreign()
            shutil.rmtree(self.path)
        found = self._config.exists()
        differing = self._differing(settings, inputs, resumable) if found else []
        if differing and overwrite:
            for name in makes:
                _remove(self.path / name)
            found = False
        elif differing:
            raise errors.InputError(
                f'{self.path} holds another run; these differ: '
                f'{"; ".join(differing)}. Use another --output_dir, or --overwrite '
                'to discard that run.'
            )
        if not found:
            if not self._is_stage:
                self._refuse_foreign()
            atomic.write_json(self._inputs, inputs)
        # Repeating the recorded command must never discard the run.
        atomic.write_text(
            self._config, flags.to_flagfile(settings, omit=('overwrite',))
        )
        return found

    def _refuse_foreign(self) -> None:
        if self.path.is_dir():
            known = {_INPUTS, _CONFIG, _STATUS, _STAGES}
            names = {entry.name for entry in self.path.iterdir()}
            if names and not names & known:
                raise errors.InputError(
                    f'--output_dir={self.path} holds files that are no run '
                    f'({min(names)!r}, ...); give an empty or new folder.'
                )
        elif self.path.exists():
            raise errors.InputError(f'--output_dir={self.path} is a file.')

    def _differing(
        self, settings: Any, inputs: dict[str, str], resumable: frozenset[str]
    ) -> list[str]:
        """What differs from the run found, for people."""
        try:
            old = flags.from_flagfile(type(settings), self._config)
        except errors.InputError as error:
            raise errors.InputError(
                f'{self.path} holds a run of another verb ({error}); use another '
                '--output_dir.'
            ) from error
        differing = [
            f'--{field.name} ({getattr(old, field.name)!r} there, '
            f'{getattr(settings, field.name)!r} now)'
            for field in dataclasses.fields(settings)
            if field.name not in resumable
            and getattr(old, field.name) != getattr(settings, field.name)
        ]
        try:
            old_inputs = json.loads(self._inputs.read_text('utf-8'))
        except (OSError, ValueError):
            old_inputs = {}
        return differing + [
            f'the content of {name}'
            for name, value in inputs.items()
            if old_inputs.get(name) != value
        ]

    def status(self, **changes: Any) -> None:
        """Updates status.json."""
        self._status.setdefault('started', _now())
        self._status |= changes | {'updated': _now()}
        keys = ('state', 'stage', 'step', 'total_steps', 'started', 'updated', 'error')
        atomic.write_json(
            self.path / _STATUS, {key: self._status.get(key) for key in keys}
        )

    def done(self, **changes: Any) -> None:
        """Marks the run as done; a stage leaves that to the run it is part of."""
        self.status(state='running' if self._is_stage else 'done', **changes)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Keeps status.json true to what happens inside."""
        self.status(state='running', stage=name, error=None)
        try:
            yield
        except KeyboardInterrupt:
            self.status(state='interrupted')
            raise
        except BaseException as error:
            # A full disk must not hide the error that it caused.
            with contextlib.suppress(errors.InputError):
                self.status(state='failed', error=str(error) or repr(error))
            raise
