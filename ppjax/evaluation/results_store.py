"""Evaluation results as JSON files that say what they were measured with."""

from collections.abc import Callable, Mapping
import json
import pathlib
from typing import Any

from ppjax import atomic, versions
from ppjax import progress as progress_lib


def read_current(
    path: pathlib.Path, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """A stored result of the very same settings; None if there is none."""
    try:
        stored = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError, RecursionError):
        return None
    # As JSON spells them: tuples come back as lists.
    wanted = json.loads(json.dumps(settings))
    if isinstance(stored, dict) and stored.get('settings') == wanted:
        return stored
    return None


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
    if not overwrite and (stored := read_current(path, settings)):
        progress_lib.say(f'{path} is there already, of the same settings.')
        return stored
    found = dict(measure()) | {
        'settings': dict(settings),
        'versions': versions.versions(),
    }
    atomic.write_json(path, found)
    return found
