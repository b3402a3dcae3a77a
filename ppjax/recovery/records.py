"""Where recovery keeps its figures, and whether they are of the model that is there."""

import pathlib
from typing import Any

from ppjax.base import json_lines
from ppjax.exporting import record

FILE = 'results/recovery.json'
# Of a run of several stages, the one in which recovery is a run of its own.
STAGE_FOLDER = 'recovered'


def of_run(run: pathlib.Path) -> dict[str, Any] | None:
    """The figures of a run of several stages whose hf/ is the recovered model."""
    found = json_lines.stored_object(run / STAGE_FOLDER / FILE)
    if found is None or found.get('identity') != record.identity(run / 'hf'):
        return None
    return found
