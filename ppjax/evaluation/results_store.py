"""Evaluation results as JSON files that say what they were measured with."""

from collections.abc import Callable, Mapping
import json
import pathlib
from typing import Any

from ppjax.base import atomic, json_lines, processes, versions
from ppjax.base import progress as progress_lib


def stored(
    path: pathlib.Path, settings: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """A stored result of the very same settings; None if there is none.

    Args:
        path: of the file.
        settings: all that its figures depend on, as JSON values.
        overwrite: it is measured in any case.

    Raises:
        InputError: if several processes would measure different things.
    """
    processes.agree({f'input of {path.name}': json.dumps(settings)})
    if overwrite:
        return None
    found = processes.first_decides(lambda: _read(path, settings))
    if found:
        progress_lib.say(f'{path} is there already, of the same settings.')
    return found


def _read(path: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    found = json_lines.stored_object(path)
    # As JSON spells them: tuples come back as lists.
    wanted = json.loads(json.dumps(settings))
    return found if found and found.get('settings') == wanted else None


def measured(
    path: pathlib.Path,
    settings: Mapping[str, Any],
    measure: Callable[[], Mapping[str, Any]],
    *,
    overwrite: bool,
) -> dict[str, Any]:
    """A result, measured unless the very same one is there.

    Args:
        path: of the file.
        settings: all that its figures depend on, as JSON values.
        measure: makes the figures.
        overwrite: measure in any case.
    """
    if there := stored(path, settings, overwrite=overwrite):
        return there
    found = dict(measure()) | {
        'settings': dict(settings),
        'versions': versions.versions(),
    }
    atomic.write_json(path, found)
    return found
