"""The story of `python -m ppjax.masks`: masks read, then compared or combined."""

import dataclasses
import pathlib

from ppjax.analysis import combining, labels, page, results, sources, study, tables
from ppjax.analysis import config as config_lib
from ppjax.base import atomic, errors, run_directory
from ppjax.base import versions as versions_lib
from ppjax.masking import pmask
from ppjax.pages import markdown, texts

_ENDINGS = ('html', 'md', 'csv', 'json')
_MAKES = tuple(f'masks.{ending}' for ending in _ENDINGS)


def run(cfg: config_lib.MasksConfig) -> str:
    """Does what the settings ask for.

    Returns:
        What to print.

    Raises:
        InputError: for anything wrong with the masks, what is wanted of them, or the
            disk.
    """
    masks = sources.read(cfg.masks, sparsity=cfg.mask_sparsity)
    if cfg.operation is None:
        return compare(cfg, masks)
    if cfg.operation == config_lib.INFO:
        return combining.facts_text(masks)
    assert cfg.output is not None
    made = combining.combine(cfg.operation, masks)
    pmask.save(cfg.output, made)
    return combining.combined_text(cfg.operation, masks, made)


def compare(cfg: config_lib.MasksConfig, masks: list[sources.SourceMask]) -> str:
    """Compares masks in a run directory, and gives the tables as text.

    Raises:
        InputError: if there is one mask, they are not alike, or see `run`.
    """
    if len(masks) < 2:
        raise errors.InputError(
            f'--masks names one mask, {masks[0].path}, which has nothing to be compared '
            'with; --operation=info shows it.'
        )
    sources.check_alike(masks)
    compared, kind = labels.compared(masks, cfg.labels)
    assert cfg.output_dir is not None
    directory = run_directory.RunDirectory(cfg.output_dir)
    opened = directory.opened(
        cfg,
        {str(mask.path): mask.sha256 for mask in masks},
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )
    with opened, directory.stage('compare'):
        found = study.of_masks(cfg, compared, kind)
        shown = _write(cfg, found, directory.path)
        directory.done()
    return shown


def _write(cfg: config_lib.MasksConfig, found: study.Study, path: pathlib.Path) -> str:
    """Writes masks.json, masks.csv, masks.md and masks.html; gives the terminal's."""
    versions = versions_lib.versions()
    parts = page.sections(cfg, found)
    every = [table for part in parts for table in part.tables]
    atomic.write_json(
        path / 'masks.json',
        results.as_json(found)
        | {'settings': dataclasses.asdict(cfg), 'versions': versions},
    )
    atomic.write_text(path / 'masks.csv', tables.as_csv(found))
    notes = ''.join(f'{note}\n\n' for note in found.notes)
    atomic.write_text(path / 'masks.md', notes + markdown.of_tables(every))
    atomic.write_text(path / 'masks.html', page.render(cfg, found, parts, versions))
    shown = [texts.table(table) for table in every if not table.folded]
    return '\n\n'.join([*shown, *found.notes])
