"""Held-out figures that a run is compared with, kept so that they are measured once."""

from collections.abc import Sequence
import pathlib
from typing import Any

from ppjax.base import errors, json_lines, processes
from ppjax.base import progress as progress_lib


def stored(
    path: pathlib.Path, names: Sequence[str], size: int
) -> dict[str, list[float]] | None:
    """-log p of every held-out example, by model; None if they must be measured.

    Args:
        path: results/references.json.
        names: of the models that it must have.
        size: held-out examples.
    """
    return processes.first_decides(lambda: _read(path, names, size))


def _read(
    path: pathlib.Path, names: Sequence[str], size: int
) -> dict[str, list[float]] | None:
    if not path.exists():
        return None
    try:
        found = json_lines.read_object(path, 'References')
        if set(names) <= set(found) and all(_is_row(x, size) for x in found.values()):
            return found
    except errors.InputError:
        pass
    progress_lib.say(f'{path} is damaged; its figures are measured again.')
    return None


def _is_row(value: Any, size: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == size
        and all(isinstance(x, float | int) for x in value)
    )
