"""The cells of a sweep, learned one after the other in run directories of their own."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any

from ppjax.base import errors, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration
from ppjax.sweeping import clock as clock_lib
from ppjax.sweeping import config as config_lib
from ppjax.sweeping import grid
from ppjax.training import config as train_config
from ppjax.training import loop

ReadRows = Callable[[str, str], list[calibration.Row]]

# How many hexadecimal digits name a system prompt in results/likelihood.json.
_DIGEST = 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        name: of its folder.
        values: by axis.
        settings: of its run.
    """

    name: str
    values: dict[str, Any]
    settings: train_config.TrainConfig

    @property
    def path(self) -> pathlib.Path:
        return pathlib.Path(self.settings.output_dir)

    @property
    def is_done(self) -> bool:
        return (self.path / 'mask.pmask').exists()

    def rows(self, read: ReadRows) -> tuple[list[calibration.Row], ...]:
        """(to learn from, to measure on)."""
        assert self.settings.heldout
        return (
            read(self.settings.calibration, 'train'),
            read(self.settings.heldout, 'test'),
        )


def plan(cfg: config_lib.SweepConfig) -> list[Cell]:
    """All cells, the last axis of the grid varying fastest."""
    return [
        Cell(cfg.cell_name(values), values, cfg.cell(values))
        for values in grid.combinations(cfg.axes)
    ]


def prompt_digests(cfg: config_lib.SweepConfig, read: ReadRows) -> dict[str, str]:
    """How results name each persona's system prompts -> persona.

    Args:
        cfg: of the sweep.
        read: (source, split) -> rows.

    Raises:
        InputError: if two personas have the same prompt, so that a global mask's
            figures could not be told apart.
    """
    found: dict[str, str] = {}
    for persona in cfg.personas:
        for row in read(cfg.source(cfg.heldout, persona), 'test'):
            digest = hashlib.sha256(row.system_prompt.encode()).hexdigest()[:_DIGEST]
            if found.setdefault(digest, persona) != persona:
                raise errors.InputError(
                    f'{row.where}: the system prompt of {persona} is that of '
                    f'{found[digest]} too; a global mask could not be measured on '
                    'each.'
                )
    return found


def _learn(cell: Cell, read: ReadRows, like: pathlib.Path | None) -> bool:
    """Learns a cell's mask, or goes on; False if `stop_after` came first."""
    try:
        mask = loop.learn_mask(cell.settings, *cell.rows(read), like=like)
    except errors.InputError as error:
        raise errors.InputError(f'Cell {cell.name}: {error}') from error
    return mask is not None


def learn(
    cells: Sequence[Cell],
    directory: run_directory.RunDirectory,
    clock: clock_lib.Clock,
    read: ReadRows,
) -> bool:
    """Learns what is not learned yet, and says how far it is.

    Args:
        cells: in their order.
        directory: of the sweep.
        clock: of its cells.
        read: (source, split) -> rows.

    Returns:
        Whether all cells are done; False if one paused at `stop_after`.

    Raises:
        InputError: naming the cell that failed.
    """
    # Before hours of work: the last cell's files are read first as well.
    for cell in cells:
        cell.rows(read)
    # What masks are compared with is measured once for all cells that share it.
    measured: dict[tuple[Any, ...], pathlib.Path] = {}
    for number, cell in enumerate(cells, start=1):
        mean, left = clock.mean(), ''
        if mean is not None and not cell.is_done:
            undone = sum(not other.is_done for other in cells[number - 1 :])
            left = f', about {clock_lib.duration(mean * undone)} left'
        progress_lib.say(f'\nCell {number}/{len(cells)}: {cell.name}{left}')
        directory.status(
            state='running', stage=cell.name, step=number - 1, total_steps=len(cells)
        )
        clock.start(cell.path)
        same = cell.settings.reference_settings
        if not _learn(cell, read, measured.get(same)):
            return False
        measured.setdefault(same, cell.path)
        clock.stop(cell.path)
    return True
