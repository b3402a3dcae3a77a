"""A comparison from start to end: models made, measured, and laid side by side."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax

from ppjax import demo
from ppjax.base import atomic, errors, run_directory
from ppjax.base import progress as progress_lib
from ppjax.base import versions as versions_lib
from ppjax.comparing import cells as cells_lib
from ppjax.comparing import config as config_lib
from ppjax.comparing import general, measuring, page, stages, tables
from ppjax.comparing import rows as rows_lib
from ppjax.data import calibration
from ppjax.models import base_model
from ppjax.pages import markdown
from ppjax.sweeping import clock as clock_lib

_MAKES = (
    'sessions.json',
    'compare.json',
    'compare.csv',
    'compare.md',
    'compare.html',
    stages.GENERAL_ROWS,
    f'{cells_lib.CELLS}/*.json',
    f'{stages.MODELS}/*',
    f'{measuring.MEASURED}/*',
)


def compare(cfg: config_lib.CompareConfig) -> str | None:
    """Makes and measures every model of the grid in a run directory, and compares them.

    Returns:
        The tables as Markdown, or None if it was told to stop before its end.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk,
            naming the cell if it is one's.
    """
    rows = general.read(cfg)
    hashes = _hashes(cfg, rows)
    cells = cells_lib.plan(cfg, hashes)
    directory = run_directory.RunDirectory(cfg.output_dir)
    opened = directory.opened(
        cfg,
        {name: hashes[name] for name in ('base model', 'general')},
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )
    with opened, directory.stage('compare'):
        if rows:
            general.write(directory.path / stages.GENERAL_ROWS, rows)
        work = _Work(cfg, directory, cells)
        figures = work.do()
        if figures is None:
            directory.status(state='paused')
            progress_lib.say('Paused; the same command goes on.')
            return None
        directory.status(stage='tables', step=len(cells))
        shown = _write(cfg, cells, figures)
        directory.done(step=len(cells), total_steps=len(cells))
    return shown


def _hashes(
    cfg: config_lib.CompareConfig, rows: Sequence[calibration.Row]
) -> dict[str, str]:
    """sha256 of what is read, by the source's name."""
    found = {
        'base model': base_model.open_base_model(cfg.base_model).fingerprint(),
        'general': calibration.content_hash(list(rows)),
    }
    for values in cfg.combinations():
        read_from = [(cfg.heldout, cfg.filled(cfg.heldout, values), 'test')]
        if stages.reads_rows(cfg, values):
            read_from += [
                (cfg.calibration, source, 'train')
                for source in cfg.calibrations(values)
            ]
        for template, source, split in read_from:
            if (lacking := cfg.unfilled(source)) is not None:
                raise errors.InputError(
                    f'{template} holds {{{lacking}}}, and a grid that reads it has no '
                    f'axis {lacking}.'
                )
            if source not in found:
                read = demo.read_rows(source, split=split)
                found[source] = calibration.content_hash(read)
        flags_of = cfg.filled(cfg.evaluate, values)
        if flags_of not in found:
            found[flags_of] = measuring.data_hash(cfg, values)
    return found


class _Work:
    """The cells that are left, one after the other.

    Attributes:
        cfg: the settings.
        directory: of the comparison.
        cells: all.
    """

    def __init__(
        self,
        cfg: config_lib.CompareConfig,
        directory: run_directory.RunDirectory,
        cells: Sequence[cells_lib.Cell],
    ):
        self.cfg, self.directory, self.cells = cfg, directory, cells
        self._folder = directory.path / cells_lib.CELLS
        self._clock = clock_lib.Clock(directory.path / 'sessions.json')
        self._figures: dict[str, dict[str, Any]] = {}
        for cell in cells:
            if found := self._stored(cell):
                self._figures[cell.name] = found

    def _stored(self, cell: cells_lib.Cell) -> dict[str, Any] | None:
        found = cells_lib.stored(self._folder, cell)
        if found is None and self.cfg.known_cells:
            known = pathlib.Path(self.cfg.known_cells).expanduser()
            found = cells_lib.stored(known, cell)
            if found:
                atomic.write_json(self._folder / f'{cell.name}.json', found)
        return found

    def do(self) -> dict[str, dict[str, Any]] | None:
        """Figures of all cells by name; None if a stage was told to stop."""
        if self._figures:
            progress_lib.say(
                f'{len(self._figures)} of {len(self.cells)} cells are there already.'
            )
        left = [cell for cell in self.cells if cell.name not in self._figures]
        for number, cell in enumerate(left):
            self._say(cell, left[number:])
            if number and _shape(cell) != _shape(left[number - 1]):
                # What was compiled for all of them would fill the memory.
                jax.clear_caches()
            try:
                if not self._made(cell):
                    return None
                found = measuring.measure(self.cfg, cell)
            except errors.InputError as error:
                if isinstance(error, errors.DiskError):
                    raise
                raise errors.InputError(f'Cell {cell.name}: {error}') from error
            found['minutes'] = self._minutes(cell)
            atomic.write_json(self._folder / f'{cell.name}.json', found)
            self._figures[cell.name] = found
            measuring.say(found)
            if not self.cfg.keep_models:
                self._discard(cell, left[number + 1 :])
        return {cell.name: self._figures[cell.name] for cell in self.cells}

    def _say(self, cell: cells_lib.Cell, left: Sequence[cells_lib.Cell]) -> None:
        done = len(self.cells) - len(left)
        undone = stages.all_stages([x.way for x in left])
        seconds = self._clock.mean()
        hint = ''
        if seconds is not None:
            count = sum(_is_timed(stage) and not stage.is_done for stage in undone)
            hint = f', about {clock_lib.duration(seconds * count)} of making left'
        progress_lib.say(f'\nCell {done + 1}/{len(self.cells)}: {cell.name}{hint}')
        self.directory.status(
            state='running', stage=cell.name, step=done, total_steps=len(self.cells)
        )

    def _made(self, cell: cells_lib.Cell) -> bool:
        """Makes a cell's model, or goes on; False if a stage stopped before its end."""
        for stage in cell.way.stages:
            # One that is done as well: its run directory refuses other rows.
            progress_lib.say(f'{stage.verb}: {stage.path}')
            if _is_timed(stage):
                self._clock.start(stage.path)
            if not stage.run():
                return False
            if _is_timed(stage):
                self._clock.stop(stage.path)
        return True

    def _minutes(self, cell: cells_lib.Cell) -> float:
        names = {stage.name for stage in cell.way.stages}
        return sum(map(self._clock.seconds, names)) / 60

    def _discard(self, cell: cells_lib.Cell, others: Sequence[cells_lib.Cell]) -> None:
        gone = [
            str(stage.path.relative_to(self.directory.path))
            for stage in cells_lib.unneeded(cell, others)
        ]
        run_directory.discard(self.directory.path, gone)


def _is_timed(stage: stages.Stage) -> bool:
    """Whether its seconds count: writing a model takes next to none."""
    return stage.verb != 'export'


def _shape(cell: cells_lib.Cell) -> tuple[Any, ...]:
    """What models of one shape have in common."""
    names = (config_lib.METHOD, config_lib.SPARSITY, config_lib.RECOVERY)
    return tuple(cell.values[name] for name in names)


def _write(
    cfg: config_lib.CompareConfig,
    cells: Sequence[cells_lib.Cell],
    figures: Mapping[str, dict[str, Any]],
) -> str:
    """Writes compare.json, compare.csv, compare.md and compare.html; the Markdown."""
    path = pathlib.Path(cfg.output_dir)
    versions = versions_lib.versions()
    parts = page.sections(rows_lib.of_cells(cells, figures))
    shown = markdown.of_tables([table for part in parts for table in part.tables])
    listed = [figures[cell.name] for cell in cells]
    atomic.write_json(
        path / 'compare.json',
        {
            'grid': {axis.name: axis.values for axis in cfg.axes},
            'cells': [
                {k: x for k, x in own.items() if k not in ('measures', 'answers')}
                | {'means': measuring.means(own)}
                for own in listed
            ],
            'tables': [
                dataclasses.asdict(table) for part in parts for table in part.tables
            ],
            'settings': dataclasses.asdict(cfg),
            'versions': versions,
        },
    )
    seconds = 60 * sum(own.get('minutes') or 0.0 for own in listed)
    atomic.write_text(path / 'compare.csv', tables.as_csv(listed))
    atomic.write_text(path / 'compare.md', shown)
    atomic.write_text(
        path / 'compare.html', page.render(cfg, parts, len(cells), seconds, versions)
    )
    return shown
