"""Many personas' masks from one that all of them learned first, in one run directory.

The shared mask has a run directory of its own, `shared/mask/`; the personas' own steps
are the stage `train`. Stopped in either part, the same command goes on.
"""

from collections.abc import Mapping
import pathlib

from ppjax import demo
from ppjax.base import errors, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration
from ppjax.learning import data as data_lib
from ppjax.training import config as config_lib
from ppjax.training import loop


def learn_masks(
    cfg: config_lib.TrainConfig, rows: Mapping[str, loop.TwoSplits]
) -> dict[str, pathlib.Path] | None:
    """Learns a mask for each of many personas, from a mask of all of them.

    Args:
        cfg: the settings, with `personas` and `shared_steps`.
        rows: name -> (calibration rows, held-out rows).

    Returns:
        Name -> mask file, or None if `cfg.stop_after` or a SIGTERM came first.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk.
    """
    shared_cfg = cfg.of_shared()
    shared_rows = _shared_rows(shared_cfg, rows)
    # What the second part would refuse costs no steps of the first.
    loop.check(cfg, rows)
    directory = run_directory.RunDirectory(cfg.output_dir)
    opened = directory.opened(
        cfg,
        {},
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=('shared/*',),
    )
    with opened, directory.stage('shared'):
        progress_lib.say('The mask that all personas start from:')
        start = loop.learn_mask(shared_cfg, shared_rows, [])
        masks = None
        if start is not None:
            directory.status(stage='train')
            own_cfg = cfg.after_shared(str(start))
            masks = loop.learn_masks(own_cfg, rows, stage='train')
        if masks is None:
            directory.status(state='paused')
        else:
            directory.done(stage='train')
    return masks


def _shared_rows(
    cfg: config_lib.TrainConfig, rows: Mapping[str, loop.TwoSplits]
) -> list[calibration.Row]:
    """What the shared mask learns from: no question that a persona is measured on.

    Raises:
        InputError: if a file is absent or bad, or no row is left.
    """
    measured = {
        data_lib.question(row) for _, heldout in rows.values() for row in heldout
    }
    found = demo.read_rows(cfg.calibration, split='train')
    kept = [row for row in found if data_lib.question(row) not in measured]
    if len(kept) < len(found):
        progress_lib.say(
            f'{len(found) - len(kept)} of {len(found)} rows are not for the shared '
            'mask: a persona is measured on their questions.'
        )
    if not kept:
        raise errors.InputError(
            f'{cfg.calibration}: a persona is measured on the question of every row; '
            'none is left for the shared mask of --shared_steps.'
        )
    return kept
