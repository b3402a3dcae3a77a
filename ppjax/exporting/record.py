"""What an exported folder says of itself: what it was made from, and its files.

The record lies in the folder and takes its name together with the rest, so that a
folder is never without its identity, and damage is noticed.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
from typing import Any

from ppjax.base import atomic, errors, json_lines

FILE = 'ppjax-export.json'
_FORMAT = 'ppjax.export.v1'
# People may write into it.
_CARD = 'README.md'


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write(folder: pathlib.Path, identity: Mapping[str, str]) -> list[str]:
    """Writes the record of a folder that is otherwise complete.

    Returns:
        The names of all files, its own included.
    """
    files = {
        path.name: {'bytes': path.stat().st_size, 'sha256': _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    atomic.write_json(
        folder / FILE,
        {'format': _FORMAT, 'identity': dict(identity), 'files': files},
    )
    return [*files, FILE]


def _files(
    folder: pathlib.Path,
) -> tuple[dict[str, str], dict[str, dict[str, Any]]] | None:
    """Identity and files of a record; None if there is no readable one."""
    try:
        found = json_lines.read_object(folder / FILE)
        identity, files = found['identity'], found['files']
        if (
            found['format'] == _FORMAT
            and isinstance(identity, dict)
            and all(isinstance(own, dict) for own in files.values())
        ):
            return identity, files
    except (errors.InputError, KeyError, AttributeError):
        pass
    return None


def of_run(settings: str, hashes: Mapping[str, str]) -> dict[str, str]:
    """The identity of weights that a run makes.

    Args:
        settings: that decide them, as a flagfile.
        hashes: name -> sha256 of what the run reads.
    """
    text = settings + json.dumps(hashes)
    return {'run_sha256': hashlib.sha256(text.encode()).hexdigest()}


def is_finished(
    figures: pathlib.Path, target: pathlib.Path, identity: Mapping[str, str]
) -> bool:
    """Whether a run has written its export, and the figures that come after it.

    Raises:
        InputError: if the export is damaged, or something else stands there.
    """
    if not figures.exists() or not target.exists():
        return False
    return not may_write(target, identity, overwrite=False)


def identity(folder: pathlib.Path) -> dict[str, str] | None:
    """What an exported folder says that it was made from; None if it does not."""
    found = _files(folder)
    return None if found is None else found[0]


def _is_whole(path: pathlib.Path, own: Mapping[str, Any]) -> bool:
    try:
        return path.stat().st_size == own.get('bytes') and _sha256(path) == own.get(
            'sha256'
        )
    except OSError:
        return False


def may_write(
    target: pathlib.Path, identity: Mapping[str, str], *, overwrite: bool
) -> bool:
    """Whether an export is to be written at `target`; false if it stands there, whole.

    Args:
        target: the folder.
        identity: of what is to be exported.
        overwrite: whether another export may be replaced.

    Raises:
        InputError: if something else stands there that may not, or must not, be
            replaced.
    """
    # Not `Path.exists`, which raises for a name that is too long.
    there = os.path.exists(target)
    if there and not target.is_dir():
        raise errors.InputError(f'{target} is a file; give a directory.')
    names = {entry.name for entry in target.iterdir()} if there else set()
    names = {name for name in names if not atomic.is_temporary(name)}
    if not names:
        return True
    files = _files(target)
    if files is None:
        raise errors.InputError(
            f'{target} holds files that no export made ({min(names)!r}'
            f'{", ..." if len(names) > 1 else ""}); give an empty or new '
            'folder, or move them away.'
        )
    own, recorded = files
    if overwrite:
        foreign = sorted(names - recorded.keys() - {FILE})
        if foreign:
            raise errors.InputError(
                f'{target} holds {", ".join(foreign[:3])}'
                f'{", ..." if len(foreign) > 3 else ""}, which no export made; it is '
                'not replaced. Move that away, or give another --output_dir.'
            )
        return True
    if differ := sorted(k for k in {*identity, *own} if own.get(k) != identity.get(k)):
        raise errors.InputError(
            f'{target} holds another export (differing in {", ".join(differ)}); '
            '--overwrite replaces it.'
        )
    damaged = sorted(
        name
        for name, wanted in recorded.items()
        if name != _CARD and not _is_whole(target / name, wanted)
    )
    if damaged:
        raise errors.InputError(
            f'{target / damaged[0]} is missing or not as it was written'
            f'{f" ({len(damaged)} such)" if len(damaged) > 1 else ""}; '
            '--overwrite makes the export anew.'
        )
    return False
