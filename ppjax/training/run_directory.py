"""The run directory: what a run read, made and measured, and whether it may go on."""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import json
import pathlib
import shutil
from typing import Any, TypeVar

from ppjax import atomic, errors, flags

Settings = TypeVar('Settings')

_CONFIG = 'config.flags'
_INPUTS = 'inputs.json'
_STATUS = 'status.json'


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


class RunDirectory:
    """One run's folder. Its settings and inputs are fixed when it is first opened."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self._status: dict[str, Any] = {}

    def open(
        self,
        settings: Any,
        inputs: dict[str, str],
        *,
        resumable: frozenset[str],
        overwrite: bool,
    ) -> bool:
        """Starts a run here, or goes on with the one found.

        Args:
            settings: the dataclass of flags.
            inputs: name -> content hash of what the run reads.
            resumable: settings that may differ from the run found.
            overwrite: discard the run found instead.

        Returns:
            Whether a run was found and goes on.

        Raises:
            InputError: if another run is here, naming what differs, or the folder
                holds other things.
        """
        if overwrite and self.path.exists():
            self._refuse_foreign()
            shutil.rmtree(self.path)
        config = self.path / _CONFIG
        if config.exists():
            self._refuse_other_run(settings, inputs, resumable)
            found = True
        else:
            self._refuse_foreign()
            found = False
            atomic.write_json(self.path / _INPUTS, inputs)
        # Repeating the recorded command must never discard the run.
        atomic.write_text(config, flags.to_flagfile(settings, omit=('overwrite',)))
        return found

    def _refuse_foreign(self) -> None:
        if self.path.is_dir():
            known = {_INPUTS, _CONFIG, _STATUS}
            names = {entry.name for entry in self.path.iterdir()}
            if names and not names & known:
                raise errors.InputError(
                    f'--output_dir={self.path} holds files that are no run '
                    f'({min(names)!r}, ...); give an empty or new folder.'
                )
        elif self.path.exists():
            raise errors.InputError(f'--output_dir={self.path} is a file.')

    def _refuse_other_run(
        self, settings: Any, inputs: dict[str, str], resumable: frozenset[str]
    ) -> None:
        old = flags.from_flagfile(type(settings), self.path / _CONFIG)
        differing = [
            f'--{field.name} ({getattr(old, field.name)!r} there, '
            f'{getattr(settings, field.name)!r} now)'
            for field in dataclasses.fields(settings)
            if field.name not in resumable
            and getattr(old, field.name) != getattr(settings, field.name)
        ]
        try:
            old_inputs = json.loads((self.path / _INPUTS).read_text('utf-8'))
        except (OSError, ValueError):
            old_inputs = {}
        differing += [
            f'the content of {name}'
            for name, value in inputs.items()
            if old_inputs.get(name) != value
        ]
        if differing:
            raise errors.InputError(
                f'{self.path} holds another run; these differ: '
                f'{"; ".join(differing)}. Use another --output_dir, or --overwrite '
                'to discard that run.'
            )

    def status(self, **changes: Any) -> None:
        """Updates status.json."""
        self._status.setdefault('started', _now())
        self._status |= changes | {'updated': _now()}
        keys = ('state', 'stage', 'step', 'total_steps', 'started', 'updated', 'error')
        atomic.write_json(
            self.path / _STATUS, {key: self._status.get(key) for key in keys}
        )

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
