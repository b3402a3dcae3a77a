"""The cells of a comparison: their models made, then measured, one after the other."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from ppjax.base import json_lines
from ppjax.comparing import config as config_lib
from ppjax.comparing import stages
from ppjax.sweeping import grid

CELLS = 'cells'


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model on one persona.

    Attributes:
        name: of its file.
        values: on the axes that matter to it, and those that are always there.
        shown: on the axes of the grid alone.
        way: how its model comes about.
        identity: of all that its figures rest on.
    """

    name: str
    values: dict[str, Any]
    shown: dict[str, Any]
    way: stages.Way
    identity: str

    @property
    def persona(self) -> str:
        return self.values.get(config_lib.PERSONA, '')


def plan(cfg: config_lib.CompareConfig, hashes: Mapping[str, str]) -> list[Cell]:
    """All cells, each once: values that change nothing of a model are left out.

    Args:
        cfg: the settings.
        hashes: name -> sha256 of what is read: of `general`, `base model`, each source
            of rows by its name, and the data of tasks by the flags that name them.

    Raises:
        InputError: naming the flag of settings that contradict each other.
    """
    found: dict[str, Cell] = {}
    axes = [axis.name for axis in cfg.axes]
    always = (config_lib.PERSONA, config_lib.RECOVERY)
    for values in cfg.combinations():
        _, after = stages.used_values(cfg, values)
        kept = {
            k: values[k] for k in axes if k in values and (k in after or k in always)
        }
        name = grid.name_of(kept, ())
        if name in found:
            continue
        made = stages.way(cfg, values)
        identity = _identity(cfg, values, made, hashes)
        found[name] = Cell(name, values, kept, made, identity)
    return list(found.values())


def _identity(
    cfg: config_lib.CompareConfig,
    values: dict[str, Any],
    way: stages.Way,
    hashes: Mapping[str, str],
) -> str:
    """Hash over what decides a cell's figures, wherever its files lie."""
    flags_of = cfg.filled(cfg.evaluate, values)
    parts: dict[str, Any] = {
        'stages': [[stage.verb, stage.settings] for stage in way.stages],
        'evaluate': [flags_of, hashes[flags_of]],
        'common': [cfg.dtype, cfg.max_length, cfg.date],
        'base model': hashes['base model'],
        'heldout': hashes[cfg.filled(cfg.heldout, values)],
    }
    if cfg.instructions:
        parts['general'] = [hashes['general'], cfg.rival_texts]
    if stages.reads_rows(cfg, values):
        first, *others = cfg.calibrations(values)
        parts['calibration'] = hashes[first]
        if others:
            parts['calibrations'] = [hashes[source] for source in others]
    if cfg.curves:
        parts['curves'] = True
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stored(folder: pathlib.Path, cell: Cell) -> dict[str, Any] | None:
    """The figures of a finished cell in a folder of them; None if there are none."""
    found = json_lines.stored_object(folder / f'{cell.name}.json')
    return found if found and found.get('identity') == cell.identity else None


def unneeded(cell: Cell, others: Sequence[Cell]) -> list[stages.Stage]:
    """The stages of a finished cell that no unfinished one needs."""
    needed = {stage.path for other in others for stage in other.way.stages}
    return [stage for stage in cell.way.stages if stage.path not in needed]
