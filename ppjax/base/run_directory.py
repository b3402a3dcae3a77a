"""The run directory: what a run read, made and measured, and whether it may go on.

A folder is a run if it carries the marker, which is written first. The marker names all
that commands make there, and only that is ever removed. One command at a time holds
the folder.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import datetime
import glob
import json
import os
import pathlib
import re
import shutil
from typing import Any, TypeVar

import ppjax
from ppjax.base import atomic, errors, flags, json_lines, locks, processes, reading
from ppjax.base import progress as progress_lib

Settings = TypeVar('Settings')

MARKER = 'ppjax-run.json'
_FORMAT = 'ppjax.run.v1'
_CONFIG = 'config.flags'
_INPUTS = 'inputs.json'
_STATUS = 'status.json'
_STATUS_KEYS = ('state', 'stage', 'step', 'total_steps', 'started', 'updated', 'error')
_STAGES = 'stages'
_RECORDS = (_CONFIG, _INPUTS, _STATUS, f'{_STAGES}/*.flags', f'{_STAGES}/*.inputs.json')


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def settings_file(run: str | pathlib.Path, stage: str) -> pathlib.Path:
    """Where a stage's settings are recorded: its own file, or the whole run's."""
    own = pathlib.Path(run) / _STAGES / f'{stage}.flags'
    return own if own.exists() else pathlib.Path(run) / _CONFIG


def recorded(run: str | pathlib.Path, stage: str, flag: str) -> str | None:
    """The value of a flag that a stage, or the whole run, was started with.

    None if the folder is no run, or the flag was not given.
    """
    try:
        lines = reading.read_text(settings_file(run, stage), 'Settings').splitlines()
    except errors.InputError:
        return None
    start = f'--{flag}='
    return next((x.removeprefix(start) for x in lines if x.startswith(start)), None)


@contextlib.contextmanager
def visiting(path: str | pathlib.Path, *, makes: Sequence[str]) -> Iterator[None]:
    """Holds a folder to which something is added, a run directory or another.

    Args:
        path: of the folder; made if absent.
        makes: what may be added, as for `RunDirectory.opened`.

    Raises:
        InputError: if another process holds it, or it cannot be written.
    """
    folder = pathlib.Path(path)
    with _holding(folder):
        processes.first_decides(lambda: _enter(folder, makes))
        yield


@contextlib.contextmanager
def _holding(folder: pathlib.Path) -> Iterator[list[str]]:
    """Makes and holds a folder; what was made and stays empty is taken away.

    Yields:
        The folders that were not there, innermost first.
    """
    fresh = processes.first_decides(lambda: _make_folder(folder))
    try:
        with locks.held(folder):
            yield fresh
    finally:
        if processes.is_first():
            with contextlib.suppress(OSError):
                for name in fresh:
                    os.rmdir(name)


def _enter(folder: pathlib.Path, makes: Sequence[str]) -> None:
    atomic.remove_dead(folder)
    if (folder / MARKER).exists():
        _add_to_marker(folder, makes)


def _make_folder(folder: pathlib.Path) -> list[str]:
    """Makes it and its parents; those that were not there, innermost first."""
    fresh = []
    try:
        for parent in (folder, *folder.parents):
            if parent.exists():
                break
            fresh.append(str(parent))
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = isinstance(error, FileExistsError) and folder.is_file()
        reason = 'it is a file' if is_file else error.strerror
        raise errors.DiskError(f'--output_dir={folder}: {reason}.') from error
    return fresh


def _read_marker(folder: pathlib.Path) -> dict[str, Any] | None:
    """The marker; None if the folder has none.

    Raises:
        InputError: if it is damaged, or another version's.
    """
    path = folder / MARKER
    if not path.exists():
        return None
    marker = _read_object(path)
    makes = marker.get('makes')
    if marker.get('format') != _FORMAT:
        raise errors.InputError(
            f'{path}: format {marker.get("format")!r}, wanted {_FORMAT!r}; this run was '
            'made by another version of ppjax. Give another --output_dir.'
        )
    if not isinstance(makes, list) or not all(isinstance(x, str) for x in makes):
        raise errors.InputError(f'{path} is damaged: it does not say what a run made.')
    return marker


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json_lines.read_object(path, 'Record')
    except errors.InputError as error:
        raise errors.InputError(
            f'{path} is damaged ({error}) What this run was made from cannot be '
            'compared. Use another --output_dir, or --overwrite to discard that run.'
        ) from None


def _add_to_marker(folder: pathlib.Path, makes: Sequence[str]) -> None:
    marker = _read_marker(folder) or {
        'format': _FORMAT,
        'tool_version': ppjax.__version__,
        'created': _now(),
        'makes': [],
    }
    known = marker['makes']
    wanted = known + [name for name in makes if name not in known]
    if wanted != known or not (folder / MARKER).exists():
        atomic.write_json(folder / MARKER, marker | {'makes': wanted})


def _made(folder: pathlib.Path, makes: Sequence[str]) -> list[pathlib.Path]:
    """Files and folders there that patterns name; never what lies outside."""
    found = []
    for pattern in makes:
        parts = pathlib.PurePosixPath(pattern)
        if parts.is_absolute() or '..' in parts.parts or not parts.parts:
            continue
        found += sorted(folder.glob(pattern))
    return found


def discard(folder: pathlib.Path, makes: Sequence[str]) -> None:
    """Removes what a run made in a folder that is held; see `RunDirectory.opened`.

    Folders that are empty then go as well.

    Raises:
        DiskError: if it cannot.
    """
    parents = set()
    try:
        for path in _made(folder, makes):
            if (path / MARKER).is_file():
                _discard_run(path)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            parents |= {p for p in path.parents if p != folder and folder in p.parents}
    except OSError as error:
        raise errors.DiskError(f'Cannot clear {folder}: {error.strerror}.') from error
    for parent in sorted(parents, reverse=True):
        with contextlib.suppress(OSError):
            parent.rmdir()


def adds(folder: pathlib.Path, makes: Sequence[str]) -> None:
    """Notes in the marker, if there is one, what is about to be made in a folder."""
    if processes.is_first() and (folder / MARKER).exists():
        _add_to_marker(folder, makes)


def _discard_run(folder: pathlib.Path) -> None:
    """Removes a run within another; what it did not make stays."""
    marker = _read_marker(folder) or {'makes': []}
    discard(folder, [*marker['makes'], *_RECORDS])
    if _left(folder):
        atomic.write_json(folder / MARKER, marker | {'makes': []})
    else:
        discard(folder, [MARKER, locks.NAME])
        folder.rmdir()


def _left(folder: pathlib.Path) -> list[str]:
    """What is there beside lock and marker, and folders of runs of their own."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in (locks.NAME, MARKER) and not any(entry.glob(f'*/{MARKER}'))
    )


def _refuse_discarding_inputs(
    folder: pathlib.Path, makes: Sequence[str], settings: Any
) -> None:
    """Refuses --overwrite of what the new run reads."""
    discarded = [path.resolve() for path in _made(folder, makes)]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if (
            field.name == 'output_dir'
            or not isinstance(value, str)
            or len(value) > 8192
        ):
            continue
        for path in _named_paths(value):
            for gone in discarded:
                if path == gone or path.is_relative_to(gone):
                    raise errors.InputError(
                        f'--{field.name}: {path} belongs to the run in {folder}, which '
                        '--overwrite would discard; nothing was removed. Give another '
                        '--output_dir, or move that file away.'
                    )


def _named_paths(value: str) -> Iterator[pathlib.Path]:
    """The files that a flag's value may name: lists, counts and templates as well."""
    for part in (value, *value.split(',')):
        name = re.sub(r':\d+$', '', part.strip())
        try:
            if not name:
                continue
            name = str(pathlib.Path(name).expanduser())
            pattern = re.sub(r'\{\w+\}', '*', name)
            names = glob.glob(pattern) if pattern != name else [name]
            yield from (pathlib.Path(x).resolve() for x in names if os.path.exists(x))
        except (OSError, RuntimeError, ValueError):  # A long text is no path.
            continue


class RunDirectory:
    """One run's folder. Its settings and inputs are fixed when it is first opened."""

    def __init__(self, path: str | pathlib.Path, *, stage: str | None = None):
        """Args:
        path: of the folder; it may not exist yet.
        stage: opens one stage of a run of several, which has records of its own
            under `stages/`.
        """
        self.path = pathlib.Path(path).expanduser()
        self._is_stage = stage is not None
        own = (_CONFIG, _INPUTS)
        if stage is not None:
            own = (f'{_STAGES}/{stage}.flags', f'{_STAGES}/{stage}.inputs.json')
        self._config, self._inputs = (self.path / name for name in own)
        self._status: dict[str, Any] = {}

    @contextlib.contextmanager
    def opened(
        self,
        settings: Any,
        inputs: dict[str, str],
        *,
        resumable: frozenset[str],
        overwrite: bool,
        makes: Sequence[str],
    ) -> Iterator[bool]:
        """Holds the folder and starts a run in it, or goes on with the one found.

        All processes of a run must have the folder in common. A new run that is
        refused before it made anything leaves no folder behind.

        Args:
            settings: the dataclass of flags.
            inputs: name -> content hash of what the run reads.
            resumable: settings that may differ from the run found.
            overwrite: discard the run found instead; of a stage only if it is
                another one, so that what still holds is used again.
            makes: all that the run makes, as patterns relative to the folder; what
                --overwrite may discard.

        Yields:
            Whether a run was found and goes on.

        Raises:
            InputError: if another run is here, naming what differs, or the folder
                holds other things, is in use, or another process does not find it.
        """
        with _holding(self.path) as fresh:
            found = processes.first_decides(
                lambda: self._open(settings, inputs, resumable, overwrite, makes)
            )
            if not processes.everywhere(self._config.exists()):
                raise errors.InputError(
                    f'--output_dir={self.path}: not all processes find this folder; '
                    'give one on a disk that they share.'
                )
            try:
                yield found
            except errors.DiskError:
                raise
            except errors.InputError:
                if fresh and processes.is_first():
                    self._forget_if_nothing_made()
                raise

    def _forget_if_nothing_made(self) -> None:
        """Removes the records of a run that was refused before it made anything."""
        with contextlib.suppress(OSError, errors.InputError):
            records = set(_files(_made(self.path, [*_RECORDS, MARKER, locks.NAME])))
            if not any(
                path.is_file() for path in self.path.rglob('*') if path not in records
            ):
                marker = _read_marker(self.path) or {'makes': []}
                discard(self.path, [*marker['makes'], *_RECORDS, MARKER])

    def _open(
        self,
        settings: Any,
        inputs: dict[str, str],
        resumable: frozenset[str],
        overwrite: bool,
        makes: Sequence[str],
    ) -> bool:
        # Repeating the recorded command must never discard the run.
        config = flags.to_flagfile(settings, omit=('overwrite',))
        atomic.remove_dead(self.path)
        marker = _read_marker(self.path)
        if marker is None and (left := _left(self.path)):
            raise errors.InputError(
                f'--output_dir={self.path} holds files that are no run ({left[0]!r}'
                f'{", ..." if len(left) > 1 else ""}: there is no {MARKER}); give an '
                'empty or new folder.'
            )
        if marker is not None and overwrite and not self._is_stage:
            known = [*marker['makes'], *makes, *_RECORDS]
            _refuse_discarding_inputs(self.path, known, settings)
            discard(self.path, known)
            if left := _left(self.path):
                progress_lib.say(
                    f'Left in {self.path}, since no run made it: {", ".join(left)}.'
                )
            atomic.write_json(self.path / MARKER, marker | {'makes': []})
        found = self._config.exists()
        differing = (
            self._differing(settings, inputs, resumable, overwrite) if found else []
        )
        if differing and overwrite:
            _refuse_discarding_inputs(self.path, makes, settings)
            discard(self.path, makes)
            found = False
        elif differing:
            raise errors.InputError(
                f'{self.path} holds another run; these differ: '
                f'{"; ".join(differing)}. Use another --output_dir, or --overwrite '
                'to discard that run.'
            )
        _add_to_marker(self.path, makes)
        if not found:
            atomic.write_json(self._inputs, inputs)
        atomic.write_text(self._config, config)
        return found

    def _differing(
        self,
        settings: Any,
        inputs: dict[str, str],
        resumable: frozenset[str],
        overwrite: bool,
    ) -> list[str]:
        """What differs from the run found, for people."""
        try:
            old = flags.from_flagfile(type(settings), self._config)
            old_inputs = _read_object(self._inputs)
        except errors.InputError as error:
            if overwrite:
                return ['the records']
            if not self._config.is_file() or 'damaged' in str(error):
                raise
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
        return differing + [
            f'the content of {name}'
            for name, value in inputs.items()
            if old_inputs.get(name) != value
        ]

    def status(self, **changes: Any) -> None:
        """Updates status.json."""
        self._status.setdefault('started', _now())
        self._status |= changes | {'updated': _now()}
        atomic.write_json(
            self.path / _STATUS, {key: self._status.get(key) for key in _STATUS_KEYS}
        )

    def done(self, **changes: Any) -> None:
        """Marks the run as done; a stage leaves that to the run it is part of."""
        self.status(state='running' if self._is_stage else 'done', **changes)

    def paused(self, step: int, total_steps: int) -> None:
        """Marks the run as one that goes on later, and says so."""
        self.status(state='paused', step=step, total_steps=total_steps)
        progress_lib.say(f'Paused after step {step}; the same command goes on.')

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Keeps status.json true to what happens inside."""
        self.status(state='running', stage=name, error=None)
        try:
            yield
        except KeyboardInterrupt:
            self._last_word(state='interrupted')
            raise
        except BaseException as error:
            self._last_word(state='failed', error=str(error) or repr(error))
            raise

    def _last_word(self, **changes: Any) -> None:
        """The status of what ends with an error, which this must not hide."""
        try:
            self.status(**changes)
        except errors.InputError:
            # A full disk has room for what is no longer than before.
            own = {key: self._status.get(key) for key in _STATUS_KEYS}
            own |= {'error': 'disk full'}
            path = self.path / _STATUS
            with contextlib.suppress(OSError), path.open('r+b') as file:
                file.write(json.dumps(own).encode())
                file.truncate()


def _files(paths: Sequence[pathlib.Path]) -> Iterator[pathlib.Path]:
    for path in paths:
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from path.rglob('*')
