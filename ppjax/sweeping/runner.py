"""A sweep from start to end: cells, then tables and plots of all of them."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib

from ppjax import demo
from ppjax.base import atomic, run_directory
from ppjax.base import progress as progress_lib
from ppjax.base import versions as versions_lib
from ppjax.pages import markdown
from ppjax.sweeping import cells as cells_lib
from ppjax.sweeping import clock as clock_lib
from ppjax.sweeping import config as config_lib
from ppjax.sweeping import page, results, tables

_MAKES = (
    'sessions.json',
    'sweep.json',
    'sweep.csv',
    'sweep.md',
    'sweep.html',
    f'{config_lib.CELLS}/*',
)


def sweep(cfg: config_lib.SweepConfig) -> str | None:
    """Learns every cell of the grid in a run directory, and compares them.

    Returns:
        The tables as Markdown, or None if `cfg.stop_after` came first.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk,
            naming the cell if it is one's.
    """
    read = functools.cache(lambda source, split: demo.read_rows(source, split=split))
    cells = cells_lib.plan(cfg)
    digests = cells_lib.prompt_digests(cfg, read) if cfg.has_global else {}
    directory = run_directory.RunDirectory(cfg.output_dir)
    opened = directory.opened(
        cfg,
        {},
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )
    with opened, directory.stage('sweep'):
        clock = clock_lib.Clock(directory.path / 'sessions.json')
        if not cells_lib.learn(cells, directory, clock, read):
            directory.status(state='paused')
            progress_lib.say('Paused; the same command goes on.')
            return None
        directory.status(stage='compare', step=len(cells))
        shown = _compare(cfg, cells, digests, clock)
        directory.done()
    return shown


def _compare(
    cfg: config_lib.SweepConfig,
    cells: Sequence[cells_lib.Cell],
    digests: dict[str, str],
    clock: clock_lib.Clock,
) -> str:
    """Writes sweep.json, sweep.csv, sweep.md and sweep.html; gives the Markdown."""
    path = pathlib.Path(cfg.output_dir)
    seconds = {cell.name: clock.seconds(cell.name) for cell in cells}
    found: list[results.Result] = []
    entries = []
    for cell in cells:
        likelihood = results.read_likelihood(cell)
        own = results.results_of(cell, likelihood, digests)
        entries.append(results.as_json(cell, likelihood, own, seconds[cell.name]))
        found += own
    versions = versions_lib.versions()
    sections = page.sections(found, cfg.axes)
    shown = markdown.of_tables([table for part in sections for table in part.tables])
    atomic.write_json(
        path / 'sweep.json',
        {
            'grid': {axis.name: axis.values for axis in cfg.axes},
            'cells': entries,
            'settings': dataclasses.asdict(cfg),
            'versions': versions,
        },
    )
    atomic.write_text(path / 'sweep.csv', tables.as_csv(found, cfg.axes, seconds))
    atomic.write_text(path / 'sweep.md', shown)
    atomic.write_text(
        path / 'sweep.html', page.render(cfg, sections, seconds, versions)
    )
    return shown
